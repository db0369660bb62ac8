"""Recipes that are written for data at hand."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizing import train
from flows.checking import check_for
from flows.cli.drafting import DraftError, draft
from flows.evaluating.gate import Evaluation, Interval, check
from flows.evaluating.measured import asked_of
from flows.recipe import Recipe
from flows.recipes.loader import RecipeError, control_of
from infra.ledger.intervals import wilson

SPLITS = {"train": {"rows": 180}, "validation": {"rows": 8}, "test": {"rows": 24}}
FEW = {**SPLITS, "test": {"rows": 3}}
WORDS = ["rose", "tulip", "no", "null", "1e3", "it's"]


def pictures(side: int = 32, *, classes: bool = False, **changes: Any) -> dict[str, Any]:
    return {
        "name": "flowers",
        "modality": "image",
        "image_size": side,
        "channels": 3,
        "vocabulary": sorted(WORDS),
        "max_words": 2,
        "attributes": {"caption": WORDS} if classes else {},
        "held_out": [],
        "captions": WORDS,
        "splits": SPLITS,
        **changes,
    }


SOUNDS = {**pictures(), "modality": "audio", "sample_rate": 8000, "clip_samples": 8000}
SPEECH = {
    **pictures(),
    "modality": "speech",
    **{"sample_rate": 8000, "most_seconds": 30.0, "loudness": None, "trim": None},
    "attributes": {"text": WORDS, "speaker": ["ann", "bob"]},
    "vocabulary": [],
}
TEXT = {
    "name": "book",
    "modality": "text",
    "tokenizer": train(["the cat sat.", "a dog ran."], "characters", 64),
    "attributes": {},
    "held_out": [],
    "vocabulary": [],
    "captions": [],
    "splits": SPLITS,
}


def written(data: Mapping[str, Any], roles: tuple[str, ...] = (), family: str = "") -> Recipe:
    return Recipe.model_validate(yaml.safe_load(draft("mine", data, roles, family)))


@pytest.mark.parametrize(
    ("data", "roles", "family", "metrics"),
    [
        (pictures(), (), "", ["edm_bits_per_dim", "memorised"]),
        (pictures(splits=FEW), (), "", ["edm_nats"]),
        (pictures(classes=True), (), "", ["edm_bits_per_dim", "alignment", "memorised"]),
        (pictures(classes=True), (), "ddpm", ["alignment", "memorised"]),
        (pictures(channels=1, vocabulary=[], captions=[""]), (), "", ["edm_bits_per_dim", "memorised"]),
        (SOUNDS, (), "", ["wavenet_bits_per_sample"]),
        (TEXT, ("text",), "", ["gpt_nats_per_token"]),
        (TEXT, ("user", "assistant"), "", ["gpt_nats_per_token"]),
        (TEXT, ("source", "target"), "", ["transformer_nats_per_token"]),
    ],
)  # fmt: skip
def test_a_draft_asks_for_what_its_data_let_one_measure_and_breaks_it_in_a_control(
    data: dict[str, Any], roles: tuple[str, ...], family: str, metrics: list[str]
) -> None:
    recipe = written(data, roles, family)
    found = check_for(recipe, data)
    assert list(recipe.gate.metrics) == metrics
    assert not [name for name in metrics if found[name]]
    assert (recipe.judge is not None) == bool(data["attributes"])
    (control,) = recipe.control
    assert set(control.refused_by) <= set(metrics)
    assert control_of(recipe).stages != recipe.stages


@pytest.mark.parametrize("count", [2, 3, 6])
def test_a_gate_of_few_classes_can_be_passed(count: int) -> None:
    """Where all that is drawn is right and none of it a copy; of two pictures no share is surely above a half."""
    classes = WORDS[:count]
    recipe = written(pictures(captions=classes, attributes={"caption": classes}))
    drawn = len(asked_of(classes, recipe.evaluation)) * len(recipe.evaluation.seeds)
    shares = {"alignment": drawn, "memorised": 0}
    metrics = {
        name: Interval(value=right / drawn, low=low, high=high, count=drawn)
        for name, right in shares.items()
        for low, high in [wilson(right, drawn)]
    }
    asked = {name: recipe.gate.metrics[name] for name in shares}
    found = Evaluation(evaluation_set="", judge=None, metrics=metrics, outcomes={})
    report = check(recipe.gate.model_copy(update={"metrics": asked}), found, None)
    assert report.passed, report.refusal()


@settings(max_examples=40, deadline=None)
@given(side=st.integers(8, 128))
def test_a_draft_fits_pictures_of_any_size(side: int) -> None:
    data = pictures(side)
    check_for(written(data), data)


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100])
def test_a_draft_speaks_at_any_rate_and_is_broken_where_words_are_judged(rate: int) -> None:
    words = {**SPEECH, "sample_rate": rate}
    recipe = written(words)
    found = check_for(recipe, words)
    assert list(recipe.gate.metrics) == ["acoustic_mel_l1", "word_accuracy"]
    assert not [name for name in recipe.gate.metrics if found[name]]
    assert recipe.control[0].refused_by == ("word_accuracy",)
    sentences = {**words, "attributes": {"speaker": ["ann", "bob"]}}
    assert list(written(sentences).gate.metrics) == ["acoustic_mel_l1"]
    check_for(written(sentences), sentences)


@pytest.mark.parametrize(
    ("family", "prompts", "message"),
    [
        ("bert", [], "try_prompts: every prompt needs a blank, written [MASK]"),
        ("bert", ["the [MASK] sat"], ""),
        ("gpt", ["the cat " * 9], "try_prompts: a prompt has 73 tokens, but this model sees 32"),
        ("gpt", [], ""),
        ("transformer", ["the cat " * 9], "try_prompts: the prompt 'the cat the cat"),
        ("transformer", ["the cat"], ""),
    ],
)
def test_a_prompt_to_try_that_a_network_of_text_could_not_read_is_refused(
    family: str, prompts: list[str], message: str
) -> None:
    stage = {"family": family, "preset": "tiny", "training": {"steps": 1}}
    document = {"name": "mine", "data": {"name": "book"}, "stages": {family: stage}}
    asked = Recipe.model_validate({**document, "try_prompts": prompts})
    if not message:
        assert check_for(asked, TEXT)
        return
    with pytest.raises(RecipeError, match=re.escape(message)):
        check_for(asked, TEXT)


def test_prompts_to_try_are_the_datas_own_captions_whatever_yaml_makes_of_such_words() -> None:
    assert written(pictures()).try_prompts == tuple(WORDS)


@pytest.mark.parametrize(
    ("data", "family", "message"),
    [
        (pictures(), "ddpm", "no draft of 'ddpm' for flowers; choose one of edm"),
        (pictures(), "gpt", "no draft of 'gpt' for flowers; choose one of edm"),
        (SOUNDS, "edm", "no draft of 'edm' for flowers; choose one of wavenet"),
    ],
)
def test_a_family_that_cannot_be_judged_on_the_data_is_refused(
    data: dict[str, Any], family: str, message: str
) -> None:
    with pytest.raises(DraftError, match=message):
        draft("mine", data, (), family)
