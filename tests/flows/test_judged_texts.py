"""Judging of text and sound: nats that tell a trained model from one that is not, and galleries to look at and hear."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor

from data import loaders
from flows.evaluating import sounds, texts
from flows.evaluating.evaluate import Order, evaluation_set
from flows.evaluating.gate import Evaluation as EvaluationRecord
from flows.evaluating.gate import check
from flows.evaluating.modalities import judging
from flows.evaluating.pipeline import draw
from flows.evaluating.scores import Judged
from flows.evaluating.sheets import lines_of, of_texts, spectrogram
from flows.evaluating.written import copied
from flows.recipe import Bound, Evaluation, Gate
from flows.training.previews import png_of_samples
from infra.pipelines import PinnedStage, Pipeline
from models.family import Family
from models.language.transformer import Transformer
from models.request import Record
from tests.flows.modalities_kit import (
    RATE,
    SIGNS,
    Hiss,
    HissConfig,
    Unigram,
    UnigramConfig,
    fit,
    prose,
    sound_folder,
    text_folder,
    tone,
)

SPEC = Evaluation(bootstrap=20, gallery=4)


def pipeline_of(model: Family, **changes: Any) -> Pipeline:
    kind = model.capabilities.modality
    reads = model.capabilities.condition == "text"
    stage = PinnedStage(
        stage="toy", name="toy.toy", version=1, sha256="0" * 64, family="toy",
        inputs={"text": "text"} if reads else {},
        outputs={"text": "text"} if kind == "text" else {"sound": f"sound * of {RATE} Hz"},
        **changes,
    )  # fmt: skip
    rate = RATE if kind == "audio" else None
    return Pipeline(endpoint="toy", modality=kind, stages=(stage,), vocabulary=(), sample_rate=rate)


def judged(model: Family, prepared: Path, **changes: Any) -> Judged:
    pipeline = pipeline_of(model, **changes)
    module = judging(pipeline.modality, prepared)
    prompts, seeds = module.requests(pipeline, prepared, SPEC)
    parts = [
        module.packed(draw([model], pipeline, prompts[part], seeds[part]))
        for part in (slice(0, 3), slice(3, None))
    ]
    return module.score(
        parts, prompts, judge=None, prepared=prepared, spec=SPEC, models=[model], pipeline=pipeline
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prose"
    return text_folder(
        folder, {"train": prose(0, 40), "validation": prose(2, 5), "test": prose(1, 12)}
    )


@pytest.fixture(scope="module")
def hums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "hums"
    low, high = ("low", tone(100, 0.1)), ("high", tone(400))
    return sound_folder(folder, {"train": [low, high] * 4, "test": [low, high] * 3})


def learned(prepared: Path, context: int = 16) -> Unigram:
    model = Unigram(UnigramConfig(context=context))
    fit(model, model.examples(loaders.records(prepared, "train")))
    return model


def test_held_out_text_is_rated_row_by_row_and_what_learned_nothing_rates_it_lower(
    prepared: Path,
) -> None:
    trained, fresh = judged(learned(prepared), prepared), judged(Unigram(UnigramConfig()), prepared)
    nats, uniform = trained.metrics["toy_nats"], fresh.metrics["toy_nats"]
    assert uniform.value == pytest.approx(16 * np.log(38), rel=1e-4)  # every one of 38 tokens alike
    assert nats.high < 0.8 * uniform.low
    assert len(trained.outcomes["toy_nats"]) == nats.count > 150
    assert trained.metrics["toy_nats_per_token"].value == pytest.approx(nats.value / 16)


def test_rows_that_were_cut_otherwise_are_another_evaluation(prepared: Path) -> None:
    """So a gate refuses to compare nats of windows of 16 tokens with nats of windows of 8."""
    order = Order(
        pipeline={}, judge=None, prepared="", judged_on="", data_identity="d", spec={}, tracking_uri="", cache="",
        num_gpus=0,
    )  # fmt: skip
    cuts = [judged(Unigram(UnigramConfig(context=size)), prepared).cut for size in (16, 8, 16)]
    sets = [evaluation_set(order, [], [0], cut) for cut in cuts]
    assert sets[0] == sets[2] != sets[1]
    assert evaluation_set(order, ["a"], [0]) == evaluation_set(order, ["a"], [0], "")


def test_held_out_pairs_that_are_too_long_are_counted_and_said(tmp_path: Path) -> None:
    test: list[Record] = [(("source", one), ("target", "ab")) for one in ("a", "b", "c", "a" * 9)]
    prepared = text_folder(tmp_path / "pairs", {"train": test[:2], "test": test})
    small = dataclasses.replace(
        Transformer.presets["tiny"], tokenizer=SIGNS, max_source=8, max_target=8
    )
    found = judged(Transformer(small).eval(), prepared)
    assert found.metrics["toy_nats"].count == 3
    assert found.left_out == (
        "toy, held-out data: 1 of 4 pairs are left out: "
        "they have more than 7 (max_source) or 7 (max_target) tokens",
    )
    roomy = dataclasses.replace(small, max_source=16)
    assert judged(Transformer(roomy).eval(), prepared).left_out == ()


def test_what_was_written_can_be_read_beside_its_prompt(prepared: Path) -> None:
    model = Unigram(UnigramConfig(reads=True))
    files = judged(model, prepared, max_tokens=9).files
    samples = json.loads(files["samples.json"])
    assert [sample["seed"] for sample in samples] == [0, 1, 2, 3]
    assert all(len(sample["text"]) == 9 for sample in samples)
    openings = {record[0][1][:10] for record in loaders.records(prepared, "test")}
    assert {sample["prompt"][:10] for sample in samples} <= openings
    image = Image.open(io.BytesIO(files["gallery.png"]))
    assert image.width > 900


@pytest.mark.parametrize(
    ("record", "opening"),
    [
        ([("text", "to be or not to be that is the question")], "to be or not to be that is the"),
        ([("text", "short")], "short"),
        ([("source", "ein hund"), ("target", "a dog")], "ein hund"),
        ([("system", "be kind"), ("user", "hello"), ("assistant", "hi")], "hello"),
    ],
)
def test_a_record_is_asked_by_how_it_begins(record: Record, opening: str) -> None:
    assert texts.openings([record], 3) == [opening]


def test_only_the_shorter_half_of_the_questions_is_asked() -> None:
    records = [[("user", "x" * size), ("assistant", "y")] for size in range(1, 11)]
    assert texts.openings(records, 100) == ["x" * size for size in range(1, 6)]


def test_the_recipes_prompts_are_asked_in_turn() -> None:
    model = Unigram(UnigramConfig(reads=True))
    pipeline = pipeline_of(model).model_copy(update={"try_prompts": ("a", "b")})
    assert texts.requests(pipeline, Path("nowhere"), SPEC) == (["a", "b", "a", "b"], [0, 1, 2, 3])


def test_who_copies_the_training_split_is_told_from_who_writes_alike() -> None:
    train, held_out, alike = prose(0, 60), prose(1, 40), prose(3, 40)
    parrot = [text for record in train for _, text in record][:40]
    honest = [text for record in alike for _, text in record]
    copies, own = (texts.memorised(one, held_out, train) for one in (parrot, honest))
    assert copies is not None
    assert own is not None
    assert copies.mean() == 1
    assert own.mean() < 0.2  # one in twenty by chance
    assert texts.memorised(parrot[:5], held_out, train) is None
    assert texts.memorised(parrot, train, train) is None, (
        "nothing could copy more than held-out text"
    )


def test_the_longest_copied_stretch_is_found() -> None:
    assert copied("xxabcdyy", "zabcdz") == 4
    assert copied("xyz", "abc") == 0
    assert copied("abc", "abc") == 3


def test_held_out_sound_is_rated_up_to_where_it_ends_and_can_be_heard(hums: Path) -> None:
    sound, length, captions, _ = loaders.sounds(hums, "test")
    batch = {"sound": sound, "length": length}
    fitted = fit(Hiss(HissConfig()), batch)
    ours, loud = judged(fitted, hums), judged(Hiss(HissConfig()), hums)
    assert ours.metrics["toy_nats"].value < loud.metrics["toy_nats"].value
    first = -fitted.log_prob(batch).detach()[0].item()
    assert ours.outcomes["toy_nats"][0] == pytest.approx(first, abs=1e-3)
    assert captions == ["low", "high"] * 3
    assert sorted(ours.files) == ["gallery.png", *(f"samples/0{n}.wav" for n in range(4))]
    x_T, rate = soundfile.read(io.BytesIO(ours.files["samples/02.wav"]))
    assert (rate, len(x_T)) == (RATE, 400)
    made = draw([fitted], pipeline_of(fitted), [], [2])[0]
    assert np.abs(x_T - made.numpy()).max() < 1e-4


class Loud(Hiss):
    """Draws twice as loud as it says that sounds are."""

    def sample(self, request: Any) -> Tensor:
        return (2 * super().sample(request)).clamp(-1, 1)


class Mute(Hiss):
    """Draws silence, which is likelier than any sound."""

    def sample(self, request: Any) -> Tensor:
        return 0 * super().sample(request)


def test_a_sampler_of_other_sounds_than_the_likelihood_says_is_refused(tmp_path: Path) -> None:
    noise = 0.1 * torch.randn(40, 400, generator=torch.Generator().manual_seed(0))
    rows = [("hiss", one) for one in noise]
    hisses = sound_folder(tmp_path / "hisses", {"train": rows[:10], "test": rows[10:]})
    sound, length, *_ = loaders.sounds(hisses, "train")
    fitted = fit(Hiss(HissConfig()), {"sound": sound, "length": length})
    gate = Gate(metrics={"toy_sample_gap": Bound(at_least=-2, at_most=2)})  # of four sounds
    for kind, passes in ((Hiss, True), (Loud, False), (Mute, False)):
        model = kind(HissConfig())
        model.load_state_dict(fitted.state_dict())
        found = judged(model, hisses).metrics
        assert found["toy_nats"].value == pytest.approx(-353, rel=0.1)
        record = EvaluationRecord(evaluation_set="", judge=None, metrics=found, outcomes={})
        assert check(gate, record, None).passed == passes, found


def test_a_model_of_captioned_sound_is_asked_by_captions_and_told_them(hums: Path) -> None:
    model = Hiss(HissConfig(vocabulary=("high", "low")))
    pipeline = pipeline_of(model)
    assert sounds.requests(pipeline, hums, SPEC)[0] == ["high", "low", "high", "low"]
    assert judged(model, hums).metrics["toy_nats"].count == 6


def test_a_spectrogram_shows_high_tones_above_low_ones() -> None:
    def brightest(x_T: Tensor) -> int:
        return int(np.asarray(spectrogram(x_T)).sum((1, 2)).argmax())

    assert brightest(tone(700)) < brightest(tone(100)) - 20
    assert spectrogram(torch.zeros(5)).size == spectrogram(tone(100)).size


def test_lines_fit_the_sheet_whatever_a_text_holds() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(15)
    lines = lines_of("one two\n" + "w" * 400 + " " + "many words " * 40, font)
    assert lines[0] == "one two"
    assert all(font.getlength(line) <= 900 for line in lines[1:-1])
    assert of_texts([("", ""), ("a", "b\nc")])
    assert lines_of("many words " * 400, font)[-1].endswith(" ...")


def test_training_shows_what_is_written_and_heard_and_a_model_that_cannot_be_asked_goes_on(
    prepared: Path, hums: Path
) -> None:
    class Strict(Unigram):
        def sample(self, request: Any) -> Tensor:  # noqa: ARG002
            raise ValueError("no blank to fill in")

    before = torch.get_rng_state()
    batch = {"tokens": torch.zeros(1)}
    for model, folder in (
        (Unigram(UnigramConfig(reads=True)), prepared),
        (Hiss(HissConfig()), hums),
    ):
        found = png_of_samples(model, folder, batch)
        assert found is not None
        assert Image.open(io.BytesIO(found)).width > 300
    assert png_of_samples(Strict(UnigramConfig(reads=True)), prepared, batch) is None
    assert torch.equal(before, torch.get_rng_state())
