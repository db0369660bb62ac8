"""What a recipe asks of its stages is checked against the data before anything is trained."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Completed, Failed, State

from flows.recipe import Recipe
from flows.train import check_sampling, check_specs, outcomes, train_stages
from flows.training.specifying import training_spec
from tests.flows.modalities_kit import prose, text_folder
from tests.flows.training_kit import prepare


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({"family": "ddpm", "preset": "huge"}, "has no preset 'huge'; choose one of tiny"),
        ({"family": "ddpm", "config": {"widht": 3}}, "has no setting 'widht'"),
        ({"family": "ddpm", "image_size": 7}, "image_size 7"),
        ({"family": "attribute-judge", "config": {"width": 9}}, "multiple of 8, got 9"),
        (
            {"family": "gan", "training": {"steps": 5, "cuda_graph": True}},
            r"training\.cuda_graph holds the step of one player, and gan has 2 players",
        ),
        ({"family": "lda", "training": {"steps": 5}}, r"counts in 1 pass\(es\) .* set it to 1"),
    ],
)
def test_a_stage_that_does_not_suit_its_data_is_named_before_anything_is_trained(
    stage: dict[str, object], says: str, tmp_path: Path
) -> None:
    good = {"family": "vae", "preset": "tiny", "training": {"steps": 1}}
    stages = {"vae": good, "other": {"preset": "tiny", "training": {"steps": 1}, **stage}}
    recipe = Recipe.model_validate({"name": "shades", "data": {"name": "shades"}, "stages": stages})
    prepared = {"path": str(prepare(tmp_path / "shades")), "identity": "data"}
    specs = [training_spec(recipe, name, prepared) for name in stages]
    check_specs(specs[:1])
    with pytest.raises(ValueError, match=rf"shades\.other: .*{says}"):
        check_specs(specs)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"negative_prompt": "elephants"}, "negative_prompt: unknown word 'elephants'"),
        ({"size": "40x24"}, "size: this model draws pictures of one size"),
    ],
)
def test_options_that_nothing_can_be_drawn_by_are_refused_before_anything_is_trained(
    options: dict[str, object], says: str, tmp_path: Path
) -> None:
    stage = {"family": "ddpm", "preset": "tiny", "training": {"steps": 1}, "guidance": 2}
    prepared = {"path": str(prepare(tmp_path / "shades")), "identity": "data"}

    def checked(options: dict[str, object]) -> None:
        stages = {"base": {**stage, "options": options}}
        document = {"name": "shades", "data": {"name": "shades"}, "stages": stages}
        recipe = Recipe.model_validate(document)
        check_sampling(recipe, {"base": training_spec(recipe, "base", prepared)})

    checked({"negative_prompt": "dark"})
    with pytest.raises(ValueError, match=rf"stages\.base\.{says}"):
        checked(options)


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({"config": {"caption_drop": 0.0, "guidance": 1.0}, "guidance": 2}, "got 2"),
        ({"config": {"caption_drop": 0.0}}, r"got 3\.0"),
    ],
)
def test_guidance_that_nothing_was_learned_for_is_refused_whoever_sets_it(
    stage: dict[str, Any], says: str, tmp_path: Path
) -> None:
    whole = {"family": "ddpm", "preset": "tiny", "training": {"steps": 1}, **stage}
    document = {"name": "shades", "data": {"name": "shades"}, "stages": {"base": whole}}
    recipe = Recipe.model_validate(document)
    prepared = {"path": str(prepare(tmp_path / "shades")), "identity": "data"}
    with pytest.raises(ValueError, match=rf"guidance must be 1 where caption_drop is 0.*{says}"):
        check_sampling(recipe, {"base": training_spec(recipe, "base", prepared)})


@pytest.mark.parametrize(
    ("name", "stage", "says"),
    [
        ("prose", {}, r"prose\.base: ddpm learns no text"),
        ("shades", {"image_size": 7}, r"shades\.base: .*image_size 7"),
        ("shades", {"preset": "huge"}, r"shades\.base: .*has no preset 'huge'"),
        ("shades", {"options": {"size": "40x24"}}, r"stages\.base\.size: this model draws"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_stage_that_does_not_suit_its_data_is_told_before_its_options(
    name: str, stage: dict[str, Any], says: str, tmp_path: Path
) -> None:
    whole = {"family": "ddpm", "preset": "tiny", "training": {"steps": 1}, "guidance": 2, **stage}
    document = {"name": name, "data": {"name": name}, "stages": {"base": whole}}
    folder = tmp_path / name
    made = text_folder(folder, {"train": prose(0, 3)}) if name == "prose" else prepare(folder)
    with pytest.raises(ValueError, match=says):
        train_stages(Recipe.model_validate(document), {"path": str(made), "identity": "data"})


def test_a_failed_training_is_told_when_those_beside_it_have_ended() -> None:
    told = Event()

    def fails() -> State[None]:
        return Failed(data=ValueError("it diverged"))

    def trains() -> State[int]:
        assert told.wait(60)
        return Completed(data=1)

    def both() -> None:
        with pytest.raises(ValueError, match="it diverged"):
            outcomes({"one": submitted(fails), "other": other})

    with ThreadPoolExecutor() as pool:

        def submitted(work: Callable[[], State[Any]]) -> PrefectConcurrentFuture[Any]:
            return PrefectConcurrentFuture(uuid4(), pool.submit(work))

        other = submitted(trains)
        asked = pool.submit(both)
        with pytest.raises(TimeoutError):
            asked.result(0.5)
        told.set()
        asked.result(60)


@pytest.mark.parametrize("family", ["vae", "attribute-judge"])
def test_what_looks_at_pictures_is_not_trained_on_text(family: str, tmp_path: Path) -> None:
    stage = {"family": family, "preset": "tiny", "training": {"steps": 1}}
    document = {"name": "prose", "data": {"name": "prose"}, "stages": {"base": stage}}
    folder = text_folder(tmp_path / "prose", {"train": prose(0, 3)})
    prepared = {"path": str(folder), "identity": "data"}
    spec = training_spec(Recipe.model_validate(document), "base", prepared)
    with pytest.raises(
        ValueError, match=rf"prose\.base: {family} learns no text, and prose is text"
    ):
        check_specs([spec])
