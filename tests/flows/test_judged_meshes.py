"""Judging meshes: real solids pass for what they are, and each of the broken ones fails where it should."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.makers.solids import SOLIDS
from flows.checking import check
from flows.evaluating import meshes as judging
from flows.evaluating.evaluate import judging as module_of
from flows.evaluating.pipeline import ports_of
from flows.recipe import Evaluation
from flows.recipes.loader import RecipeError, load
from infra.pipelines import PinnedStage, Pipeline
from models.judges.attribute_judge import AttributeJudge
from tests.data.prepare_kit import prepare
from tests.flows.judges_kit import learned
from tests.models.families_kit import tiny

ROOT = Path(__file__).parents[2]
SIDE, VOXELS = 16, 24
COLOURS = {"red": (0.85, 0.2, 0.2), "green": (0.15, 0.7, 0.4), "blue": (0.2, 0.4, 0.95)}
THINGS = tuple(f"a {colour} {solid}" for solid in SOLIDS for colour in COLOURS)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entry = {"maker": "solids", "count": 720, "image_size": SIDE}
    return prepare(tmp_path_factory.mktemp("solids"), entry, "seen")


@pytest.fixture(scope="module")
def judge(prepared: Path) -> AttributeJudge:
    found: AttributeJudge = learned(
        AttributeJudge, "attribute-judge", prepared, rate=3e-3, rows=32, steps=120
    )
    return found


def real(thing: str) -> Tensor:
    """The solid itself as a volume, a little darker towards its rim, as light near the camera leaves it."""
    _, colour, solid = thing.split()
    place = ((2 * np.arange(VOXELS) + 1) / VOXELS - 1) / 0.85
    z, y, x = np.meshgrid(place, place, place, indexing="ij")
    away = torch.from_numpy(SOLIDS[solid](np.stack([x, y, z]).reshape(3, -1))).reshape(x.shape)
    painted = 0.8 * torch.tensor(COLOURS[colour])[:, None, None, None].expand(3, *away.shape)
    return torch.cat([painted, (-30 * away).sigmoid()[None]]).float()


def broken(made: Tensor, how: str) -> Tensor:
    found = made.clone()
    if how == "haze":  # it looks as it should, and nothing of it is opaque
        found[:, 3] *= 0.45
    elif how == "card":  # flat, as from the front alone it cannot be told
        found[:, 3] *= (torch.arange(VOXELS) == VOXELS // 2).float()[None, :, None, None]
    elif how == "grey":
        found[:, :3] = found[:, :3].mean(1, keepdim=True)
    elif how == "crumbs":
        found[:, 3] *= (
            torch.rand(found[:, 3].shape, generator=torch.Generator().manual_seed(0)) > 0.9
        )
    return found


def scored(
    prepared: Path,
    judge: AttributeJudge | None,
    made: Tensor,
    prompts: Sequence[str],
    gallery: int = 32,
) -> Any:
    found = judging.score(
        [judging.packed(made)],
        prompts,
        judge=judge,
        prepared=prepared,
        spec=Evaluation(bootstrap=20, gallery=gallery),
        models=[],
        pipeline=pinned(),
    )
    assert found.files["gallery.png"][:4] == b"\x89PNG"
    return found.metrics


def pinned() -> Pipeline:
    model = tiny("dreamfusion", vocabulary=("a", "red", "cone"))
    stage = PinnedStage(stage="it", name="it", version=1, sha256="", family="", **ports_of(model))
    return Pipeline(endpoint="toy", modality="mesh", stages=(stage,))


def test_real_solids_pass_and_each_broken_kind_fails_by_its_own_number(
    prepared: Path, judge: AttributeJudge
) -> None:
    made = torch.stack([real(one) for one in THINGS])
    whole = scored(prepared, judge, made, THINGS)
    assert whole["alignment_colour"].value > 0.9
    assert whole["alignment_solid"].value > 0.85
    assert whole["alignment"].value > 0.8
    assert whole["connected"].value == 1
    limits = {
        **{"haze": ("connected", 0.0), "card": ("alignment", 0.7)},
        **{"grey": ("alignment_colour", 0.5), "crumbs": ("connected", 0.3)},
    }
    for how, (name, most) in limits.items():
        found = scored(prepared, judge, broken(made, how), THINGS)
        assert found[name].value <= most, how


def test_a_gallery_of_one_shows_one(prepared: Path) -> None:
    made = torch.stack([real(one) for one in THINGS[:2]])
    assert scored(prepared, None, made, THINGS[:2], gallery=1)["connected"].value == 1


def test_things_are_asked_for_by_captions_that_name_no_view(prepared: Path) -> None:
    prompts, seeds = judging.requests(pinned(), prepared, Evaluation(seeds=(0, 1)))
    assert len(prompts) == len(seeds) == 32
    assert len(set(prompts)) == 16
    assert "a red cone" in prompts
    assert not any("seen" in one for one in prompts)


def test_a_caption_without_a_view_is_left_as_it_is() -> None:
    assert judging.thing("a red cone") == "a red cone"
    assert judging.thing("a cone seen by me seen from above") == "a cone seen by me"


def test_meshes_are_judged_by_their_own_module(prepared: Path) -> None:
    assert module_of("mesh", prepared) is judging


def test_a_recipe_may_ask_for_as_many_steps_as_a_volume_takes() -> None:
    path = ROOT / "flows/recipes/solids-dreamfusion.yaml"
    check(load(path, ["stages.dreamfusion.steps=15000"]), ROOT)
    with pytest.raises(RecipeError, match="steps must be between 1 and 20000, got 20001"):
        check(load(path, ["stages.dreamfusion.steps=20001"]), ROOT)


def test_a_gate_may_ask_for_what_is_measured_of_meshes_and_for_nothing_else() -> None:
    path = ROOT / "flows/recipes/solids-dreamfusion.yaml"
    assert not {*load(path).gate.metrics} - {*check(load(path), ROOT)}
    with pytest.raises(RecipeError, match="nobody measures 'alignment_view'"):
        check(load(path, ["gate.metrics.alignment_view.at_least=0.5"]), ROOT)
