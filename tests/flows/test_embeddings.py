"""What is measured where captions and pictures are embedded: who finds whom, and whether pictures say their prompts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data.loaders import everything, read_header
from flows.evaluating import embeddings, pictures
from flows.evaluating.gate import Evaluation as Found
from flows.evaluating.gate import check
from flows.evaluating.pipeline import abilities, draw, ports_of
from flows.evaluating.scores import Scores
from flows.recipe import Bound, Evaluation, Gate
from flows.training.previews import png_of_samples
from infra.pipelines import PinnedStage, Pipeline
from models.family import Family
from models.text_to_image.clip import CLIP
from models.variational.vae import VAE
from tests.flows.training_kit import WORDS, prepare

DIGITS = tuple("0123456789")


class Reader(CLIP):
    """Sees a picture's first pixel, in tenths, as the digit that a caption says."""

    def of_pixels(self, pixels: Tensor) -> Tensor:
        return F.one_hot((pixels[:, 0, 0, 0] * 10).round().long(), 16).float()

    def of_text(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens[:, 0] - 1, 16).float()


def reader() -> Reader:
    return Reader(replace(CLIP.presets["tiny"], vocabulary=DIGITS)).eval()


def showing(digits: Sequence[int]) -> Tensor:
    return (torch.tensor(digits) / 10)[:, None, None, None].expand(-1, 1, 8, 8)


def pinned(stage: str, model: Family) -> PinnedStage:
    return PinnedStage(
        stage=stage, name=f"toy.{stage}", version=1, sha256="0" * 64, family=stage, **ports_of(model)
    )  # fmt: skip


def test_a_picture_looks_among_all_captions_and_a_caption_among_pictures_that_hold_its_own() -> (
    None
):
    """Of nine digits that are shown, 3 looks like 8 twice in four; nobody shows a 9."""
    captions = [digit for digit in DIGITS[:9] for _ in range(4)]
    shown = [int(caption) for caption in captions]
    shown[12], shown[13] = 8, 8
    found = Scores(Evaluation(bootstrap=100))
    embeddings.retrieval(found, reader(), "clip", showing(shown), captions, DIGITS)
    captioned, pictured = (found.metrics[f"clip_{one}_r1"] for one in ("caption", "picture"))
    assert captioned.value == pytest.approx(1 - 0.5 / 9), "a caption counts once, like any other"
    assert captioned.count == len(captions)
    assert pictured.value == pytest.approx(8 / 9), "8 finds a picture of 3 first"
    assert pictured.count == 9
    assert found.outcomes["clip_caption_r1"] == [1, 1, 1, 0.5, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("other", "score", "passes"), [(0, 1.0, True), (1, 0.0, False)])
def test_a_gate_of_the_score_refuses_pictures_that_are_drawn_for_others_captions(
    tmp_path: Path, other: int, score: float, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline of pictures pins CLIP beside what draws, wired nowhere."""
    prepared = prepare(tmp_path / "digits", rows=2, validation=2)
    captions = [*DIGITS]
    shown = showing([int(one) for one in captions])

    def held(*_: object, **__: object) -> tuple[Tensor, list[str], None]:
        return shown, captions, None

    monkeypatch.setattr(pictures, "as_squares", held)
    monkeypatch.setattr(
        pictures, "read_header", lambda _: {"held_out": [], "attributes": {}, "captions": DIGITS}
    )
    painter = VAE(VAE.presets["tiny"]).eval()
    stages = (pinned("vae", painter), pinned("clip", reader()))
    only = Pipeline(endpoint="toy", stages=stages[:1], image_size=(8, 8)).entrances
    judged = pictures.score(
        [(shown * 255).byte().numpy()],
        [DIGITS[(int(one) + other) % 10] for one in captions],
        judge=None,
        prepared=prepared,
        spec=Evaluation(bootstrap=20),
        models=[painter, reader()],
        pipeline=Pipeline(endpoint="toy", stages=stages, entrances=only, image_size=(8, 8)),
    )
    assert judged.metrics["clip_score"].value == pytest.approx(score)
    assert judged.metrics["clip_caption_r1"].value == 1, "held-out pairs say how good the judge is"
    gate = Gate(metrics={"clip_score": Bound(at_least=0.8)})
    found = Found(evaluation_set="", judge=None, metrics=judged.metrics, outcomes={})
    assert check(gate, found, production=None).passed == passes


def test_a_pipeline_that_embeds_is_judged_by_who_finds_whom_and_shows_it(tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "shades", rows=8, validation=4)
    header = read_header(prepared)
    splits = {**header["splits"], "test": header["splits"]["validation"]}
    (prepared / "dataset.json").write_text(json.dumps({**header, "splits": splits}))
    torch.manual_seed(0)
    size = {"image_size": 8, "channels": 3, "vocabulary": WORDS}
    model = CLIP(replace(CLIP.presets["tiny"], **size)).eval()  # type: ignore[arg-type]
    pipeline = Pipeline(
        endpoint="toy",
        modality="embedding",
        abilities=abilities(model),
        stages=(pinned("clip", model),),
    )
    assert pipeline.able == ("embeddings",)
    prompts, seeds = embeddings.requests(pipeline, prepared, Evaluation())
    assert prompts == list(read_header(prepared)["captions"])
    drawn = draw([model], pipeline, prompts, seeds, rows_at_once=1)
    torch.testing.assert_close(drawn, model.embed(prompts))
    judged = embeddings.score(
        [embeddings.packed(drawn)],
        prompts,
        judge=None,
        prepared=prepared,
        spec=Evaluation(bootstrap=10),
        models=[model],
        pipeline=pipeline,
    )
    assert judged.metrics.keys() == {"clip_caption_r1", "clip_picture_r1"}
    assert judged.files["gallery.png"].startswith(b"\x89PNG")
    pixels, _, _ = everything(prepared, "train", image_size=8)
    assert png_of_samples(model, prepared, {"pixels": pixels}) is None, "nothing is drawn"
