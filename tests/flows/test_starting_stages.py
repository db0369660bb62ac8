"""`starts_from`: a stage's first weights are those of another one of the recipe, as far as its family takes them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import models
from flows.checking import check
from flows.evaluation import pin
from flows.recipe import Recipe, drawing
from flows.recipes.loader import RecipeError, load
from flows.train import check_specs, needed
from flows.training import starting
from flows.training.ray_train import fit
from flows.training.spec import Base, TrainingSpec
from flows.training.specifying import training_spec
from infra.storage import IntegrityError, seal
from models import build, configure, describe, trainable
from models.family import Batch, Losses, Trainable
from tests.flows.training_kit import prepare, spec_of
from tests.flows.versions_kit import NAME, Installation

ROOT = Path(__file__).parents[2]
STILL: dict[str, Any] = {
    "optimizers": {"model": {"learning_rate": 1e-12, "warmup_steps": 0, "weight_decay": 0}}
}


@dataclass(frozen=True, kw_only=True)
class WiderConfig:
    image_size: int = 8
    channels: int = 3


class Wider(Trainable):
    """Takes a VAE's latent means over, and has a layer of its own."""

    Config = WiderConfig
    presets: ClassVar[Mapping[str, WiderConfig]] = {"tiny": WiderConfig()}

    def __init__(self, config: WiderConfig) -> None:
        super().__init__()
        self.config = config
        self.taken = nn.Linear(2, 3)
        self.own = nn.Linear(3, 1)

    def start_from(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if "right" not in weights:
            raise ValueError("there is no right to take over")
        return {"taken.weight": weights["right"]}

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002
        mean_B2 = batch["pixels"].mean((2, 3))[:, :2]
        return Losses(self.own(self.taken(mean_B2)).square().mean(), len(mean_B2))


@pytest.fixture(autouse=True)
def wider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "FAMILIES", {**models.FAMILIES, "wider": f"{__name__}:Wider"})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared") / "shades", validation=16)


def sealed(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Base:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: one.contiguous() for name, one in weights.items()}, folder / "model.safetensors")  # fmt: skip
    digest = seal(folder, {"kind": "model"})
    return Base(name="toys.still", version=2, digest=digest, path=folder)


def begun(spec: TrainingSpec, base: Base) -> TrainingSpec:
    return spec.model_copy(update={"base": base, "inherits": True})


def test_a_training_begins_with_the_weights_of_the_stage_before_it(
    prepared: Path, tmp_path: Path
) -> None:
    spec = spec_of(prepared, seed=7, steps=1, **STILL)
    torch.manual_seed(1)
    model = trainable("ddpm")(starting.config_of(spec, starting.facts_of(prepared, 8)))
    base = sealed(tmp_path / "still", model.state_dict(), describe(model))
    notes: list[str] = []
    found = fit(
        begun(spec, base),
        run_id=None,
        tracking_uri=None,
        runs=tmp_path / "runs",
        on_progress=lambda now: notes.append(now.note),
    )
    got = load_file(found.directory / "model.safetensors")
    for name, was in model.state_dict().items():
        torch.testing.assert_close(got[name], was, rtol=0, atol=1e-6)
    assert any(one.startswith(f"starts from {base.says}: ") for one in notes)


def test_a_family_says_which_weights_it_takes_and_keeps_the_rest_as_drawn(
    prepared: Path, tmp_path: Path
) -> None:
    base = sealed(tmp_path / "still", {"right": torch.full((3, 2), 5.0)}, {})
    spec = begun(spec_of(prepared, family="wider"), base)
    check_specs([spec])
    model = Wider(WiderConfig())
    own = model.own.weight.clone()
    starting.load(model, spec, base)
    assert bool((model.taken.weight == 5).all())
    assert torch.equal(model.own.weight, own)
    (base.path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(IntegrityError):
        starting.load(model, spec, base)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"wrong": torch.ones(2)}, "starts_from: .* there is no right to take over"),
        ({"right": torch.ones(2, 2)}, "does not fit: taken.weight is 2x2 there, 3x2 here"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_is_trained(
    prepared: Path, tmp_path: Path, weights: dict[str, Tensor], message: str
) -> None:
    spec = begun(spec_of(prepared, family="wider"), sealed(tmp_path / "still", weights, {}))
    with pytest.raises(ValueError, match=message) as refused:
        check_specs([spec])
    assert "\n" not in str(refused.value)


def test_another_beginning_is_other_work(prepared: Path, tmp_path: Path) -> None:
    plain = spec_of(prepared)
    base = sealed(tmp_path / "still", {"right": torch.ones(3, 2)}, {})
    other = base.model_copy(update={"digest": "0" * 64})
    renamed = base.model_copy(update={"name": "x", "path": Path("/elsewhere")})
    specs = [
        plain,
        plain.model_copy(update={"base": base}),
        begun(plain, base),
        begun(plain, other),
    ]
    assert len({spec.identity for spec in specs}) == 4
    assert begun(plain, renamed).identity == begun(plain, base).identity


DDPM = {"family": "ddpm", "preset": "base", "image_size": 16, "training": {"steps": 1}}
RECIPE: dict[str, Any] = {
    "name": "toy",
    "data": {"name": "shapes"},
    "stages": {"still": DDPM, "moving": {**DDPM, "starts_from": "still"}},
    "pipeline": {"generate": {"moving": {"text": "request.text"}}},
}


def written(folder: Path) -> Path:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return path


def test_a_stage_that_others_only_start_from_is_trained_first_and_draws_nothing(
    tmp_path: Path,
) -> None:
    recipe = load(written(tmp_path))
    assert needed(recipe, "still") == set()
    assert needed(recipe, "moving") == {"still"}
    assert [*drawing(recipe)] == ["moving"]
    found = check(recipe, ROOT)
    assert not [name for name in found if name.startswith("still_")]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.moving.starts_from=stil", "'stil' is no stage that stands before moving: one of still"),
        ("stages.still.starts_from=moving", "'moving' is no stage that stands before still: none is"),
        ("stages.moving.training.from=toy:1", "still and training: toy:1 are two beginnings"),
        ("pipeline=null", "stages.moving.starts_from: say in `pipeline:` which stages draw"),
    ],
)  # fmt: skip
def test_a_beginning_that_is_not_there_is_refused(
    tmp_path: Path, override: str, message: str
) -> None:
    path = written(tmp_path)
    with pytest.raises(RecipeError) as refusal:
        load(path, [override])
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.moving.family=naive-bayes", "starts_from: naive-bayes counts, and keeps nothing"),
        ("stages.moving.preset=tiny", "starts_from: still does not fit: "),
    ],
)
def test_what_cannot_start_from_a_stage_is_told_by_a_check(
    tmp_path: Path, override: str, message: str
) -> None:
    recipe = load(written(tmp_path), [override])
    with pytest.raises(RecipeError) as refusal:
        check(recipe, ROOT)
    assert message in str(refusal.value)


def test_the_version_that_a_stage_starts_from_is_pinned_by_its_digest(
    here: Installation, prepared: Path
) -> None:
    here.pipeline(0)
    recipe = Recipe.model_validate(RECIPE)
    [version] = here.registry.versions(f"{NAME}.base")
    trained = {"still": {"name": version.name, "version": version.number, "digest": version.digest}}
    spec = training_spec(recipe, "moving", {"path": str(prepared), "identity": "d1"}, trained)
    assert spec.inherits
    assert spec.base is not None
    assert (spec.base.name, spec.base.digest) == (version.name, version.digest)
    assert (spec.base.path / "model.safetensors").is_file()
    only = {"moving": trained["still"]}
    pinned = pin(recipe, only | trained, {})
    assert [stage.stage for stage in pinned.stages] == ["moving"]


def test_a_network_of_other_names_is_not_taken_over_as_if_it_fitted() -> None:
    model = trainable("vae")(configure("vae", "tiny", {}, {}))
    with pytest.raises(ValueError, match="it has besides odd and 0 more"):
        build(describe(model)).start_from({**model.state_dict(), "odd": torch.zeros(1)})
