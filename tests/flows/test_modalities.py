"""Pipelines of sound and text beside those of pictures: what they say of themselves, and what fits together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from flows.cli import training_verbs
from flows.evaluating import modalities
from flows.evaluating.pipeline import (
    MODALITIES,
    SILENCE,
    StageMismatch,
    abilities,
    asked,
    check_fit,
    draw,
    interface_hash,
    joined,
)
from flows.provenance import cards, lineage
from flows.recipe import Stage
from infra.pipelines import Modality, PinnedStage, Pipeline
from models import FAMILIES, trainable

OLD = {  # as it was written before there were other modalities
    "format": 1, "endpoint": "toy", "vocabulary": ["red"], "image_size": [8, 8], "sample": 0.0, "try_prompts": [],
    "stages": [{
        "stage": "base", "name": "toy.base", "version": 1, "sha256": "0" * 64, "family": "ddpm",
        "interface": "4a5e1d6be099fb70", "accepts": {"prompt": "text", "picture": None},
        "gives": {"picture": [3, 8, 8]}, "steps": 2, "guidance": None,
    }],
}  # fmt: skip


def pinned(
    name: str, inputs: dict[str, str], outputs: dict[str, str], **settings: Any
) -> PinnedStage:
    return PinnedStage(
        stage=name, name=f"toy.{name}", version=1, sha256="0" * 64, family="x", inputs=inputs, outputs=outputs,
        **settings,
    )  # fmt: skip


def test_a_pipeline_of_pictures_that_was_written_before_is_read() -> None:
    pipeline = Pipeline.model_validate(OLD)
    [stage] = pipeline.stages
    assert (stage.inputs, stage.outputs) == ({"text": "text"}, {"pixels": "pixels 3x8x8"})
    assert stage.options == {"steps": 2}
    assert stage.interface is None, "it was a hash of what format 2 has not"
    assert pipeline.entrances["generate"].nodes["base"].salt == "", (
        "a seed is still the same picture"
    )
    assert (pipeline.abilities, pipeline.sample_rate, pipeline.image_size) == ((), None, (8, 8))
    assert Pipeline.model_validate_json(pipeline.model_dump_json()) == pipeline


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_says_what_it_gives_and_can_be_asked_for(name: str) -> None:
    model = trainable(name)(trainable(name).presets["tiny"])
    able = model.capabilities
    [port] = model.outputs.values()
    assert MODALITIES.get(port.kind, able.modality) in {able.modality, "embedding"}
    found = set(abilities(model))
    onward = port.kind in {
        "codes",
        "embedding",
        "latent",
        "mel",
    }  # which another stage reads or decodes
    assert found or onward, "a family that can be asked for nothing cannot be served"
    assert ("images" in found) == (port.kind == "pixels")
    assert ("scores" in found) == able.likelihood
    assert ("chat" in found, "embeddings" in found) == (able.chats, able.embeds)
    assert interface_hash(model) == interface_hash(model)


def test_stages_of_different_modalities_are_refused_by_naming_both() -> None:
    words = pinned("words", {"text": "text"}, {"text": "text"})
    sound = pinned("sound", {}, {"sound": "sound * of 8000 Hz"})
    finer = pinned("finer", {"rough": "sound * of 16000 Hz"}, {"sound": "sound * of 24000 Hz"})
    with pytest.raises(
        StageMismatch,
        match=r"finer takes sound \* of 16000 Hz as rough, but sound.sound is sound \* of 8000 Hz",
    ):
        check_fit(piped(sound, finer))
    with pytest.raises(StageMismatch, match=r"as rough, but words.text is text"):
        check_fit(piped(words, finer))
    with pytest.raises(StageMismatch, match="as rough from nothing, but there is nothing yet"):
        check_fit(piped(finer))


def piped(*stages: PinnedStage, modality: Any = "audio") -> Pipeline:
    return Pipeline(endpoint="toy", modality=modality, stages=stages)


@dataclass(frozen=True, slots=True)
class Able:
    chats: bool


@dataclass(slots=True)
class Writer:
    """Writes as many tokens as its seeds say, and remembers what it was asked for."""

    capabilities: Able
    told: list[Any] = field(default_factory=list)
    takes: Mapping[str, Any] = field(default_factory=dict)

    def sample(self, request: Any) -> Tensor:
        self.told.append(request)
        return torch.full((len(request.seeds), max(request.seeds)), 7)


def test_a_stage_is_sampled_as_it_is_pinned_and_who_chats_is_asked_by_dialogues() -> None:
    settings = {"max_tokens": 5, "temperature": 0.8, "top_k": 3, "top_p": 0.9, "seconds": None}
    stage = pinned("gpt", {"text": "text"}, {"text": "text"}, **settings)
    plain, chatting = Writer(Able(chats=False)), Writer(Able(chats=True))
    for writer in (plain, chatting):
        request: Any = asked(writer, stage, ["hello"], [3])  # type: ignore[arg-type]
        assert request.options == {k: v for k, v in settings.items() if v is not None}
    assert asked(plain, stage, ["hello"], [3]).prompts == ("hello",)  # type: ignore[arg-type]
    assert request.prompts == ()
    assert request.dialogues == ((("user", "hello"),),)


def test_texts_of_several_batches_end_where_each_ends() -> None:
    stage = pinned("gpt", {}, {"text": "text"})
    rows = draw(
        [Writer(Able(chats=False))], piped(stage, modality="text"), [], [2, 4, 3], rows_at_once=1
    )  # type: ignore[list-item]
    assert rows.tolist() == [[7, 7, -1, -1], [7, 7, 7, 7], [7, 7, 7, -1]]
    assert joined([torch.ones(1, 2), torch.ones(1, 3)], 0).tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize(
    "setting", [{"top_p": 0}, {"top_p": 1.1}, {"top_k": 0}, {"temperature": -1}, {"max_tokens": 0}]
)
def test_a_recipe_asks_for_no_sampling_that_there_is_not(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Stage.model_validate({"family": "gpt", "training": {"steps": 1}, **setting})


@pytest.mark.parametrize(
    "table", [cards.MADE, training_verbs.INTO, lineage.NOUNS, SILENCE, modalities.MODULES]
)
def test_what_is_said_of_each_modality_is_said_of_all(table: Mapping[str, Any]) -> None:
    assert {*table} == {*get_args(Modality)}
