"""Versions that give text or sound: pinned, published with what was written or heard, compared, and exported."""

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file

import models
from flows import drift, evaluation
from flows.comparing.compare import Incomparable, compare, side
from flows.comparing.samples import Pictures, Texts, draw_both
from flows.context import named
from flows.evaluating.gate import Evaluation, Interval
from flows.evaluating.pipeline import draw
from flows.evaluating.sheets import of_texts
from flows.evaluation import pin
from flows.provenance.bundle import export, import_folder
from flows.recipe import Recipe
from flows.reports.compare import page, sheet
from infra.media.sounds import wav
from infra.registry.registry import Version
from infra.storage import seal, sha256_of, verify
from models import describe
from models.family import Family
from tests.flows.modalities_kit import Hiss, HissConfig, Unigram, UnigramConfig
from tests.flows.versions_kit import Installation

ASKED = ("the cat", "a dog")
KIT = "tests.flows.modalities_kit"


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    table: Any = models.FAMILIES
    monkeypatch.setitem(table, "unigram", f"{KIT}:Unigram")
    monkeypatch.setitem(table, "hiss", f"{KIT}:Hiss")


def writer(seed: int = 0) -> Family:
    torch.manual_seed(seed)
    model = Unigram(UnigramConfig(reads=True))
    with torch.no_grad():
        model.logits.normal_()
    return model.eval()


def hummer(loud: float) -> Family:
    model = Hiss(HissConfig())
    with torch.no_grad():
        model.log_std.fill_(loud)
    return model.eval()


def published(
    here: Installation, name: str, model: Family, files: Mapping[str, bytes], **sampling: Any
) -> Version:
    """Publish a pipeline of one stage as judging does."""
    family = describe(model)["family"]
    stage = {"family": family, "training": {"steps": 1}, **sampling}
    document = {"name": name, "data": {"name": "nowhere"}, "stages": {"base": stage}}
    recipe = Recipe.model_validate({**document, "try_prompts": ASKED})
    made = here.home / "made"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(describe(model)))
    save_file(model.state_dict(), made / "model.safetensors")
    seal(made, {"kind": "model", "data_identity": "d0", "git_commit": "c0"})
    weights = sha256_of(made / "model.safetensors")
    first = here._publish(f"{name}.base", made, weights, {"atelier.family": family})
    pipeline = pin(recipe, {"base": named(first)}, {"captions": []})
    found = Evaluation(
        evaluation_set="set-1",
        judge=None,
        metrics={"base_nats": Interval(value=1.0, low=0.9, high=1.1, count=2)},
        outcomes={"base_nats": [0.9, 1.1]},
        left_out=["base, held-out data: 3 of 9 pairs are left out"],
    )
    run = here.registry.start_run(name, f"judge-{first.ref}", {})
    version: Version = evaluation._publish(
        recipe, pipeline, {"identity": "d0"}, found, dict(files), run_id=run, key=f"judged-{first.ref}"
    )  # fmt: skip
    return version


def texts(here: Installation, seed: int) -> Version:
    files = {"gallery.png": of_texts([("a", "b")]), "samples.json": b"[]"}
    return published(here, "prose", writer(seed), files, temperature=0.5, max_tokens=12)


def hums(here: Installation, loud: float) -> Version:
    files = {f"samples/0{n}.wav": wav(torch.zeros(100).numpy(), 2000) for n in range(2)}
    return published(here, "hums", hummer(loud), files, seconds=0.1)


def test_a_version_of_text_says_what_it_gives_and_how_it_is_sampled(here: Installation) -> None:
    version = texts(here, 0)
    found = side(version.ref).pipeline
    assert (found.modality, found.image_size, found.sample_rate) == ("text", None, None)
    assert found.abilities == ("completions", "scores")  # it writes nothing unasked
    assert found.stages[0].options == {"temperature": 0.5, "max_tokens": 12}
    assert draw([writer()], found, ASKED, [1, 2]).shape == (2, 12)
    card = (here.registry.fetch(version) / "card.md").read_text()
    assert "It makes text and can be asked for completions, scores." in card
    assert "`base` is sampled with max tokens 12, temperature 0.5." in card
    assert "\nIn no metric: base, held-out data: 3 of 9 pairs are left out.\n" in card


def test_a_version_of_sound_carries_what_can_be_heard(here: Installation, tmp_path: Path) -> None:
    version = hums(here, 0.0)
    found = side(version.ref).pipeline
    assert (found.modality, found.sample_rate, found.abilities) == (
        "audio",
        2000,
        ("scores", "samples"),
    )
    directory = here.registry.fetch(version)
    assert "samples/01.wav" in verify(directory, version.digest)["files"]
    assert soundfile.info(directory / "samples/01.wav").samplerate == 2000
    assert "It makes sound at 2000 Hz" in (directory / "card.md").read_text()
    export(version.ref, tmp_path / "out")
    again = import_folder(tmp_path / "out", trust=_signer())
    assert again.version.digest == version.digest


def _signer() -> str:
    from flows.provenance.bundle import signing

    return signing().fingerprint()


def test_two_versions_of_text_are_laid_side_by_side(here: Installation) -> None:
    first, second = side(texts(here, 0).ref), side(texts(here, 1).ref)
    drawn = draw_both(first, second, count=6)
    assert isinstance(drawn, Texts)
    assert set(drawn.prompts) == set(ASKED)
    assert len(drawn.first) == len(drawn.second) == 6
    assert drawn.first != drawn.second
    found = compare(first, second)
    text = page(found, drawn)
    assert text.count('<td class="text">') == 12
    assert Image.open(io.BytesIO(sheet(found, drawn))).width > 900
    itself = draw_both(first, first, count=2)
    assert itself.says == "2 of 2 texts are the same, letter by letter"


def test_two_versions_of_sound_are_compared_by_their_spectrograms(here: Installation) -> None:
    first, second = side(hums(here, -3.0).ref), side(hums(here, 0.0).ref)
    drawn = draw_both(first, second, count=3)
    assert isinstance(drawn, Pictures)
    assert drawn.first.shape[:2] == (3, 3)
    assert page(compare(first, second), drawn).count("<img") == 9
    itself = draw_both(first, first, count=2)
    assert itself.says == "both drew the same sounds, as their spectrograms show, bit for bit"


def test_text_and_sound_make_nothing_alike(here: Installation) -> None:
    first, second = side(texts(here, 0).ref), side(hums(here, 0.0).ref)
    with pytest.raises(Incomparable, match="prose:1 gives text and hums:1 gives audio"):
        draw_both(first, second)


def test_sampling_that_differs_is_a_difference_of_stages(here: Installation) -> None:
    first = side(texts(here, 0).ref)
    [stage] = first.pipeline.stages
    hot = stage.model_copy(update={"options": {**stage.options, "temperature": 0.9}})
    warmer = first.pipeline.model_copy(update={"stages": (hot,)})
    ((_, a, b, same),) = compare(first, dataclasses.replace(first, pipeline=warmer)).stages
    assert not same
    assert ("temperature 0.5" in a, "temperature 0.9" in b) == (True, True)


def test_drift_of_text_is_refused_in_one_line(here: Installation) -> None:
    here.promote(texts(here, 0))
    with pytest.raises(ValueError, match=r"^prose:1 gives text: drift is looked for in pictures alone$"):  # fmt: skip
        drift.examine("prose")


def test_votes_on_text_are_refused_in_one_line(
    here: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.cli import compare_verbs

    monkeypatch.setattr(compare_verbs, "use_stack", lambda: None)
    refs = [texts(here, seed).ref for seed in (0, 1)]
    with pytest.raises(
        Incomparable, match="prose:1 gives text: blind votes are for pictures, and meshes"
    ):
        compare_verbs.vote(*refs)
