"""Whether speech is what was asked for: a judge of real recordings tells words and voices; a broken speaker fails."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from data import loaders
from flows.checking import check_for
from flows.comparing.compare import Incomparable
from flows.comparing.spoken import Speaking, after_another, rows_of
from flows.evaluating import speech
from flows.evaluating.gate import Evaluation, check
from flows.evaluating.modalities import judging
from flows.evaluating.pipeline import draw, ports_of
from flows.evaluating.scores import Scores
from flows.recipe import Evaluation as EvaluationSpec
from flows.recipe import Gate
from flows.recipes.loader import RecipeError, control_of, load
from flows.reports import spectrograms
from infra.media.sounds import wav
from infra.pipelines import PinnedStage, Pipeline
from models.family import Family
from models.judges.speech_judge import SpeechJudge, trimmed
from tests.data import prepare_kit
from tests.models.families_kit import tiny

RECIPES = Path(__file__).parents[2] / "flows" / "recipes"
RATE = 8000
WORDS = {"oh": (400.0, 800.0), "eight": (1900.0, 700.0)}  # Hz, first and last
VOICES = {"ann": 1.3, "bob": 1.0}

DATA = {
    "name": "words", "modality": "speech", "sample_rate": RATE, "most_seconds": 30.0, "loudness": None,
    "trim": None, "attributes": {"text": ["one", "two"], "speaker": ["ann"]}, "vocabulary": [], "held_out": [],
    "max_words": 1,
}  # fmt: skip


def said(word: str, voice: str, number: int) -> Tensor:
    """A tone that glides from one pitch to another, in the voice's own height, no two alike."""
    first, last = (hertz * VOICES[voice] for hertz in WORDS[word])
    count = 2400 + 40 * number
    hertz = torch.linspace(first, last, count) + 3 * number
    noise = torch.randn(count, generator=torch.Generator().manual_seed(number))
    return 0.4 * (2 * torch.pi * (hertz / RATE).cumsum(0)).sin() + 0.002 * noise


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("words")
    (project / "said").mkdir()
    for number in range(16):
        for word in WORDS:
            for voice in VOICES:
                path = project / "said" / f"{word}_{voice}_{number}.wav"
                path.write_bytes(wav(said(word, voice, number).numpy(), RATE))
    entry = {
        "maker": "speech", "path": "said", "pattern": "{text}_{speaker}_{index}.wav",
        "test": {"index": [str(number) for number in range(4)]},
    }  # fmt: skip
    return prepare_kit.prepare(project, entry)


def found(words: Path, made: list[Tensor], asked: list[str], voices: list[str]) -> dict[str, float]:
    scores, facts = Scores(EvaluationSpec(bootstrap=50)), loaders.read_header(words)
    real = speech._some(words, "test", 100)
    speech._judged(scores, words, facts, real, (made, asked, voices))
    return {name: one.value for name, one in scores.metrics.items()}


def test_a_judge_of_real_speech_hears_words_and_voices_and_what_is_wrong_with_either(
    words: Path,
) -> None:
    asked, voices = ["oh", "oh", "eight", "eight"] * 3, ["ann", "bob"] * 6
    right = [said(*pair, 30) for pair in zip(asked, voices, strict=True)]
    metrics = found(words, right, asked, voices)
    assert metrics["recognised_words"] > 0.94
    assert metrics["recognised_speakers"] > 0.94
    assert metrics["word_accuracy"] == metrics["speaker_accuracy"] == 1
    mute = found(words, right[:1] * 12, asked, voices)
    assert mute["word_accuracy"] == mute["speaker_accuracy"] == 0.5
    other = [
        said("oh" if word == "eight" else "eight", who, 30)
        for word, who in zip(asked, voices, strict=True)
    ]
    assert found(words, other, asked, voices)["word_accuracy"] == 0


@pytest.mark.parametrize(("recipe", "shorter"), [("fsdd-units", 2 / 3), ("fsdd-speech", 0.85)])
def test_speech_that_is_too_fast_too_slow_or_cut_lasts_otherwise_than_recordings(
    words: Path, recipe: str, shorter: float
) -> None:
    """The judge hears the same words: it hears spectra in parts of a sound, however long they are."""
    recorded = right, asked, voices = speech._some(words, "test", 100)
    bound = load(RECIPES / f"{recipe}.yaml").gate.metrics["relative_duration"]
    gate = Gate(metrics={"relative_duration": bound})
    for sounds, passes in (
        (right, True),
        ([one[::2] for one in right], False),
        ([one.repeat_interleave(2) for one in right], False),
        ([one[: int(shorter * len(one))] for one in right], False),
    ):
        scores = Scores(EvaluationSpec(bootstrap=50))
        speech._duration(scores, recorded, (sounds, asked, voices))
        record = Evaluation(evaluation_set="", judge=None, metrics=scores.metrics, outcomes={})
        assert check(gate, record, None).passed == passes, scores.metrics


def test_silence_around_speech_changes_nothing_that_is_heard(words: Path) -> None:
    sounds, texts, speakers = speech._some(words, "train", 100)
    judge = SpeechJudge(sounds, texts, speakers, RATE)
    padded = [torch.nn.functional.pad(one, (900, 2000)) for one in sounds]
    assert judge.heard(padded) == judge.heard(sounds)
    assert trimmed(torch.zeros(100)).shape == (1,)


def pipeline_of(models: Sequence[Family]) -> Pipeline:
    names = ("acoustic", "vocoder")[-len(models) :] if len(models) > 1 else ("model",)
    stages = [
        PinnedStage(
            **{"stage": name, "name": name, "version": 1, "sha256": "0" * 64, "family": "x"},
            **ports_of(model),
        )
        for name, model in zip(names, models, strict=True)
    ]
    return Pipeline(endpoint="toy", modality="audio", stages=stages, sample_rate=RATE)


def test_every_voice_says_one_text_after_the_other(words: Path) -> None:
    models = (tiny("matcha", speakers=tuple(VOICES)), tiny("griffin-lim"))
    for model in models:
        model.eval()
    pipeline = pipeline_of(models)
    prompts, seeds = speech.requests(pipeline, words, EvaluationSpec(samples=6))
    assert prompts == ["eight", "eight", "oh", "oh", "eight", "eight"]
    made = speech.drawn(models, pipeline, prompts[2:], seeds[2:], words)
    for row, (voice, prompt, seed) in enumerate(
        zip(["ann", "bob"] * 2, prompts[2:], seeds[2:], strict=True)
    ):
        alone = draw(models, pipeline, [prompt], [seed], options={"voice": voice})[0]
        torch.testing.assert_close(made[row, : len(alone)], alone, rtol=0, atol=1e-3)
        assert not made[row, len(alone) :].any()


def test_a_pipeline_with_voices_of_its_own_is_judged_by_its_words_alone(words: Path) -> None:
    """A checkpoint of others never heard the data's speakers."""
    voice = tiny("vits-checkpoint").eval()
    pipeline = pipeline_of([voice])
    spec = EvaluationSpec(samples=4, gallery=2, bootstrap=20)
    prompts, seeds = speech.requests(pipeline, words, spec)
    assert prompts == ["eight", "eight", "oh", "oh"]
    made = speech.drawn([voice], pipeline, prompts, seeds, words)
    for row, name in enumerate(["0", "1"] * 2):
        alone = draw([voice], pipeline, [prompts[row]], [seeds[row]], options={"voice": name})[0]
        torch.testing.assert_close(made[row, : len(alone)], alone)
    judged = speech.score(
        [speech.packed(made)], prompts, judge=None, prepared=words, spec=spec,
        models=[voice], pipeline=pipeline,
    )  # fmt: skip
    assert {"word_accuracy", "recognised_words", "real_time_factor"} <= judged.metrics.keys()
    assert "speaker_accuracy" not in judged.metrics


def test_a_sheet_of_speech_shows_recordings_their_copies_and_every_version(words: Path) -> None:
    networks = [tiny("matcha", speakers=tuple(VOICES)).eval(), tiny("griffin-lim").eval()]
    alone = [tiny("vits-checkpoint").eval()]
    versions = [
        Speaking(f"{name}:1", pipeline_of(models), models)
        for name, models in (("staged", networks), ("alone", alone))
    ]
    rows = rows_of(versions, ["oh", "eight"], "bob", words, seed=3)
    assert [row.label for row in rows] == [
        "recording\nbob", "its mels by\nvocoder:1", "x\nstaged:1", "x\nalone:1",
    ]  # fmt: skip
    recorded, copied, *_ = rows
    for one, other in zip(recorded.sounds, copied.sounds, strict=True):
        assert len(one) == len(other)
        assert not torch.equal(one, other)
    said = draw(alone, versions[1].pipeline, ["eight"], [4])[0]
    torch.testing.assert_close(rows[3].sounds[1], trimmed(said))
    sheet = Image.open(io.BytesIO(spectrograms.sheet(rows, ["oh", "eight"])))
    assert sheet.format == "PNG"
    assert sheet.width > sheet.height / 2 > 200
    sound_T, rate = after_another(rows)
    assert rate == RATE
    assert len(sound_T) > sum(len(one) for row in rows for one in row.sounds)
    with pytest.raises(Incomparable, match="hold no recording of 'nine' by 'bob'"):
        rows_of(versions, ["nine"], "bob", words, seed=0)


def test_a_tone_is_a_line_at_its_height_and_silence_is_dark() -> None:
    tone_T = (2 * torch.pi * 1000 * torch.arange(RATE) / RATE).sin()
    tone_T[RATE // 2 :] = 0
    level_KF = spectrograms.decibels(tone_T, RATE)
    bands, frames = level_KF.shape
    assert abs(level_KF[:, 10].argmax() / (bands - 1) * RATE / 2 - 1000) < RATE / 2 / bands
    assert level_KF[:, frames - 10].max() < spectrograms.FLOOR_DB
    assert level_KF.max() == 0


def test_sound_is_judged_as_speech_where_speech_was_learned(words: Path, tmp_path: Path) -> None:
    assert judging("audio", words) is speech
    header = json.loads((words / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**header, "modality": "audio"}))
    assert judging("audio", tmp_path).__name__ == "flows.evaluating.sounds"


def test_the_recipe_of_speech_has_controls_for_durations_and_for_texts() -> None:
    recipe = load(RECIPES / "fsdd-speech.yaml")
    first, second = (control_of(recipe, number).stages["acoustic"] for number in range(2))
    assert first.config == {"alignment": "uniform"}
    assert second.training.shuffle_captions
    assert recipe.gate.metrics["acoustic_mel_l1"].at_most == 0.6


def test_a_recipe_from_which_mels_come_out_is_refused_before_it_trains() -> None:
    recipe = load(RECIPES / "fsdd-speech.yaml")
    alone = recipe.model_copy(
        update={"stages": {"acoustic": recipe.stages["acoustic"]}, "gate": Gate(), "control": ()}
    )
    with pytest.raises(
        RecipeError, match=r"stages: mel comes out of acoustic, and can only be given as .*sound"
    ):
        check_for(alone, DATA)
    assert "word_accuracy" in check_for(recipe, DATA)


def test_a_vocoder_that_learned_nothing_and_one_of_other_mels_are_refused() -> None:
    recipe = load(RECIPES / "fsdd-vocos.yaml")
    assert recipe.stages["vocoder"].family == "vocos"
    assert control_of(recipe, 0).stages["vocoder"].training.steps == 1
    assert {"vocoder_mel_error", "word_accuracy"} <= check_for(recipe, DATA).keys()
    other = load(RECIPES / "fsdd-vocos.yaml", ["stages.vocoder.config.mel={hop: 64}"])
    with pytest.raises(RecipeError, match=r"vocoder takes mel .* as mel, but acoustic\.mel is mel"):
        check_for(other, DATA)
