"""Whether made sounds are what was asked for, and made: one deaf to captions fails, a player of recordings too."""

from pathlib import Path
from typing import Final

import pytest
import torch

from data import loaders
from flows.evaluating import sounds
from flows.evaluating.gate import Evaluation, Interval, check
from flows.evaluating.scores import Scores
from flows.recipe import Evaluation as EvaluationSpec
from flows.recipes.loader import load
from models.judges import metrics
from models.judges.recogniser import Recogniser, features
from tests.data import prepare_kit

RECIPES = Path(__file__).parents[2] / "flows" / "recipes"
RATE = 8000


@pytest.fixture(scope="module")
def vowels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entry = {"maker": "vowels", "count": 480, "clip_samples": 2400}
    return prepare_kit.prepare(tmp_path_factory.mktemp("vowels"), entry)


def heard(vowels: Path, asked: list[str], made: torch.Tensor) -> dict[str, Interval]:
    scores = Scores(EvaluationSpec(bootstrap=200))
    sounds._heard(scores, vowels, made, asked, loaders.sounds(vowels, "test"))
    return scores.metrics


def test_a_recogniser_is_right_on_sounds_it_never_heard_and_knows_nothing_from_shuffled_labels(
    vowels: Path,
) -> None:
    sound, length, _, attributes = loaders.sounds(vowels, "train")
    held_out, lengths, _, wanted = loaders.sounds(vowels, "test")
    right, single = metrics.alignment(
        Recogniser(sound, length, attributes, RATE).predict(held_out, lengths), wanted
    )
    assert right.float().mean() > 0.9
    assert single.shape == wanted.shape
    order = torch.randperm(len(sound), generator=torch.Generator().manual_seed(0))
    taught_wrong = Recogniser(sound, length, attributes[order], RATE)
    joint, _ = metrics.alignment(taught_wrong.predict(held_out, lengths), wanted)
    assert joint.float().mean() < 0.3


def test_an_attribute_of_one_value_is_that_value() -> None:
    noise = torch.rand(8, 2400, generator=torch.Generator().manual_seed(0)) - 0.5
    length = torch.full((8,), 2400)
    alone = torch.full((8, 1), 3)
    assert torch.equal(Recogniser(noise, length, alone, RATE).predict(noise, length), alone)


def test_a_sound_shorter_than_a_window_and_a_silent_one_have_features() -> None:
    found = features(torch.zeros(2, 40), torch.tensor([40, 3]), RATE)
    assert found.isfinite().all()
    assert found.shape == (2, 120)


def test_what_follows_a_sound_s_end_is_not_heard() -> None:
    noise = torch.rand(1, 4000, generator=torch.Generator().manual_seed(0)) - 0.5
    short = torch.cat([noise[:, :2400], torch.ones(1, 1600)], 1)
    silent = torch.cat([noise[:, :2400], torch.zeros(1, 1600)], 1)
    length = torch.tensor([2048])
    assert torch.equal(features(short, length, RATE), features(silent, length, RATE))


def test_a_network_deaf_to_its_captions_is_refused_by_the_gate_of_the_recipe(vowels: Path) -> None:
    sound, _, captions, _ = loaders.sounds(vowels, "test")
    bound = load(RECIPES / "vowels-wavenet.yaml").gate.metrics["alignment_vowel"]
    gate = load(RECIPES / "vowels-wavenet.yaml").gate.model_copy(
        update={"metrics": {"alignment_vowel": bound}}
    )
    deaf = [sound[0]] * len(sound)  # one sound, whatever is asked
    for made, passes in ((sound, True), (torch.stack(deaf), False)):
        found = heard(vowels, captions, made)
        assert found["recognised"].value > 0.9
        record = Evaluation(evaluation_set="", judge=None, metrics=found, outcomes={})
        assert check(gate, record, None).passed == passes
        assert (found["alignment_vowel"].value > 0.5) == passes


REFUSED: Final = {
    "one sound a caption, whatever the seed": "distinct",
    "recordings that are played back": "memorised",
    "... at half the loudness": "memorised",
    "... a few samples later": "memorised",
    "... with a little noise": "memorised",
}


@pytest.mark.parametrize("said", ["sounds that nobody learned", *REFUSED])
@pytest.mark.parametrize("recipe", ["vowels-wavenet", "fsdd-wavenet"])
def test_sounds_that_are_repeated_or_played_back_are_refused(
    vowels: Path, said: str, recipe: str
) -> None:
    learned, *_ = loaders.sounds(vowels, "train")
    unseen, _, captions, _ = loaders.sounds(vowels, "validation")
    noise = torch.randn(learned.shape, generator=torch.Generator().manual_seed(0))
    made = {
        "sounds that nobody learned": unseen,
        "one sound a caption, whatever the seed": unseen[
            [captions.index(caption) for caption in captions]
        ],
        "recordings that are played back": learned,
        "... at half the loudness": learned / 2,
        "... a few samples later": learned.roll(5, dims=1),
        "... with a little noise": learned + 0.005 * noise,
    }[said]
    gate = load(RECIPES / f"{recipe}.yaml").gate
    bounds = {name: gate.metrics[name] for name in ("distinct", "memorised")}
    record = Evaluation(evaluation_set="", judge=None, metrics=heard(vowels, [], made), outcomes={})
    report = check(gate.model_copy(update={"metrics": bounds}), record, None)
    refused = {REFUSED[said]} if said in REFUSED else set()
    assert {one.name for one in report.conditions if not one.passed} == refused


def test_sounds_that_last_longer_than_recordings_are_compared_by_their_beginnings(
    vowels: Path,
) -> None:
    learned, *_ = loaders.sounds(vowels, "train")
    unseen, *_ = loaders.sounds(vowels, "validation")
    for begun, low, high in ((learned[:40], 1, 1), (unseen, 0, 0.2)):
        made = torch.cat([begun, begun.flip(1)], 1)
        assert low <= heard(vowels, [], made)["memorised"].value <= high


def test_recordings_that_begin_in_silence_are_no_copies_of_one_another(vowels: Path) -> None:
    learned, _, _, _ = loaders.sounds(vowels, "train")
    unseen, *rest = loaders.sounds(vowels, "test")
    late = torch.cat([torch.zeros(len(unseen), 1200), unseen[:, 1200:]], 1)
    both = torch.cat([unseen, late])
    scores = Scores(EvaluationSpec(bootstrap=200))
    sounds._heard(scores, vowels, learned[:40, :1200], [], (both, *rest))
    assert scores.metrics["memorised"].value == 1
    assert sounds.beginnings(both, 1200).equal(unseen[:, :1200])
    assert sounds.beginnings(both, 2400).equal(both)
