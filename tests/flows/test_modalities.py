"""Pipelines of sound and text beside those of pictures: what they say of themselves, and what fits together."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from flows.evaluating.pipeline import (
    StageMismatch,
    abilities,
    asked,
    check_fit,
    draw,
    interface,
    interface_hash,
    joined,
)
from flows.recipe import Stage
from infra.pipelines import Accepts, Gives, PinnedStage, Pipeline
from models import FAMILIES, describe, trainable
from models.diffusion.ddpm import DDPM

OLD = {  # as it was written before there were other modalities
    "format": 1, "endpoint": "toy", "vocabulary": ["red"], "image_size": [8, 8], "sample": 0.0, "try_prompts": [],
    "stages": [{
        "stage": "base", "name": "toy.base", "version": 1, "sha256": "0" * 64, "family": "ddpm",
        "interface": "4a5e1d6be099fb70", "accepts": {"prompt": "text", "picture": None},
        "gives": {"picture": [3, 8, 8]}, "steps": 2, "guidance": None,
    }],
}  # fmt: skip


def pinned(name: str, accepts: Accepts, gives: Gives, **settings: Any) -> PinnedStage:
    return PinnedStage(
        stage=name, name=f"toy.{name}", version=1, sha256="0" * 64, family="x", accepts=accepts, gives=gives,
        **settings,
    )  # fmt: skip


def test_a_pipeline_of_pictures_that_was_written_before_is_read() -> None:
    pipeline = Pipeline.model_validate(OLD)
    assert pipeline.modality == pipeline.stages[0].gives.modality == "image"
    assert (pipeline.abilities, pipeline.sample_rate, pipeline.image_size) == ((), None, (8, 8))
    assert Pipeline.model_validate_json(pipeline.model_dump_json()) == pipeline


def test_a_pipeline_of_pictures_keeps_the_interface_that_it_was_pinned_with() -> None:
    """The hashes were taken before `Gives` had a modality: another one would refuse every version made until then."""
    tiny = DDPM.presets["tiny"]
    captioned = dataclasses.replace(tiny, vocabulary=("red", "square"))
    upscaling = dataclasses.replace(tiny, image_size=16, low_size=8, text="none", attention=0)
    vae = trainable("vae")
    found = [
        interface_hash(describe(model))
        for model in (DDPM(captioned), DDPM(upscaling), vae(vae.presets["tiny"]))
    ]
    assert found == ["4a5e1d6be099fb70", "c2577115fee1d927", "4cadbb3f7724634d"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_says_what_it_gives_and_can_be_asked_for(name: str) -> None:
    model = trainable(name)(trainable(name).presets["tiny"])
    able = model.capabilities
    config = describe(model)
    _, gives = interface(config)
    assert gives.modality == able.modality
    told = [gives.picture, gives.sample_rate, gives.tokenizer]
    assert [value is not None for value in told] == [
        able.modality == kind for kind in ("image", "audio", "text")
    ]
    found = set(abilities(config))
    assert found, "a family that can be asked for nothing cannot be served"
    assert ("images" in found) == (able.modality == "image")
    assert ("scores" in found) == able.likelihood
    assert ("chat" in found, "embeddings" in found) == (able.chats, able.embeds)
    assert interface_hash(config) == interface_hash(config)


def test_stages_of_different_modalities_are_refused_by_naming_both() -> None:
    words = pinned("words", Accepts(prompt="text"), Gives(modality="text", tokenizer="a" * 16))
    sound = pinned("sound", Accepts(prompt="none"), Gives(modality="audio", sample_rate=8000))
    finer = pinned(
        "finer",
        Accepts(prompt="none", sample_rate=16000),
        Gives(modality="audio", sample_rate=24000),
    )
    voice = pinned(
        "voice",
        Accepts(prompt="none", tokenizer="a" * 16),
        Gives(modality="audio", sample_rate=8000),
    )
    check_fit([words, voice])
    with pytest.raises(
        StageMismatch,
        match=r"toy\.sound:1 gives sound of 8000 Hz, but toy\.finer:1 takes sound of 16000 Hz",
    ):
        check_fit([sound, finer])
    with pytest.raises(StageMismatch, match=r"gives text by tokenizer a{16}, but .* takes sound"):
        check_fit([words, finer])
    with pytest.raises(
        StageMismatch, match=r"toy\.voice:1 takes text by tokenizer a{16}: no stage"
    ):
        check_fit([voice])


@dataclass(frozen=True, slots=True)
class Able:
    chats: bool


@dataclass(slots=True)
class Writer:
    """Writes as many tokens as its seeds say, and remembers what it was asked for."""

    capabilities: Able
    told: list[Any] = field(default_factory=list)
    names: ClassVar[Sequence[str]] = ("max_tokens", "temperature", "top_k", "top_p", "seconds")

    def sample(self, request: Any) -> Tensor:
        self.told.append(request)
        return torch.full((len(request.seeds), max(request.seeds)), 7)


def test_a_stage_is_sampled_as_it_is_pinned_and_who_chats_is_asked_by_dialogues() -> None:
    settings = {"max_tokens": 5, "temperature": 0.8, "top_k": 3, "top_p": 0.9, "seconds": None}
    stage = pinned("gpt", Accepts(prompt="text"), Gives(modality="text", tokenizer="a"), **settings)
    plain, chatting = Writer(Able(chats=False)), Writer(Able(chats=True))
    for writer in (plain, chatting):
        request: Any = asked(writer, stage, ["hello"], [3])  # type: ignore[arg-type]
        assert {name: getattr(request, name) for name in writer.names} == settings
    assert asked(plain, stage, ["hello"], [3]).prompts == ("hello",)  # type: ignore[arg-type]
    assert request.prompts == ()
    assert request.dialogues == ((("user", "hello"),),)


def test_texts_of_several_batches_end_where_each_ends() -> None:
    stage = pinned("gpt", Accepts(prompt="none"), Gives(modality="text", tokenizer="a"))
    rows = draw([Writer(Able(chats=False))], [stage], [], [2, 4, 3], rows_at_once=1)  # type: ignore[list-item]
    assert rows.tolist() == [[7, 7, -1, -1], [7, 7, 7, 7], [7, 7, 7, -1]]
    assert joined([torch.ones(1, 2), torch.ones(1, 3)], 0).tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize(
    "setting", [{"top_p": 0}, {"top_p": 1.1}, {"top_k": 0}, {"temperature": -1}, {"max_tokens": 0}]
)
def test_a_recipe_asks_for_no_sampling_that_there_is_not(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Stage.model_validate({"family": "gpt", "training": {"steps": 1}, **setting})
