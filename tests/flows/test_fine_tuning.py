"""`training.from`: a stage's first weights are a registered version's, of every family that learns by gradients."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows import context
from flows.checking import check_for
from flows.evaluating.pipeline import load_model
from flows.provenance.bases import base_of, version_of
from flows.provenance.lineage import graph_of
from flows.provenance.pruning import pieces
from flows.recipe import Recipe
from flows.recipes.loader import RecipeError, load
from flows.train import check_specs, publish, work_of
from flows.training import starting
from flows.training.checkpoints import detached
from flows.training.ray_train import Trained, fit
from flows.training.run_folder import RunFolder
from flows.training.spec import Base, TrainingSpec
from flows.training.specifying import training_spec
from flows.tune import plan_of
from flows.tuning.plan import trial_recipe, values_of
from flows.tuning.space import Search
from infra.registry.registry import RegistryError, Version
from infra.settings import settings
from infra.storage import seal, verify
from models import configure, describe, trainable
from models.family import Family
from models.parts.tokens import of_signs
from tests.flows.shared_batches import learned_by_gradients
from tests.flows.training_kit import prepare, spec_of, train_without_ray, weights_of
from tests.flows.versions_kit import NAME, Installation
from tests.models.families_kit import batch_of

WORDS = ("red", "green", "blue")
NEW = ("mauve", "teal")
STILL: dict[str, Any] = {
    "optimizers": {"model": {"learning_rate": 1e-12, "warmup_steps": 0, "weight_decay": 0}}
}


def stored(model: Family, folder: Path) -> Base:
    """Seal a model's weights as a version's."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(describe(model)))
    save_file(detached(model.state_dict()), folder / "model.safetensors")
    digest = seal(folder, {"kind": "model"})
    return Base(name="toys.base", version=3, digest=digest, path=folder)


def learned(name: str) -> tuple[Family, dict[str, Any]]:
    """Return a family's tiny model, of captions where it reads any, with no weight at its start; and its settings."""
    fields = {field.name for field in dataclasses.fields(trainable(name).Config)}
    settings_of = {"text": "caption"} if "text" in fields else {}
    torch.manual_seed(0)
    model = trainable(name)(configure(name, "tiny", settings_of, {"vocabulary": WORDS}))
    assert isinstance(model, Family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval(), settings_of


def losses(model: Family, batch: Mapping[str, torch.Tensor]) -> list[float]:
    """Return each player's; of DALL-E that of codes: it writes words too, and has then more to choose from."""
    model.eval()
    found = []
    for player in model.players:
        torch.manual_seed(1)
        made = model(batch, player)
        found.append(made.parts.get("image_nats", made.total).item())
    return found


@pytest.mark.parametrize("name", learned_by_gradients())
def test_a_family_starts_from_weights_that_it_learned_whatever_words_come_to_them(
    name: str, tmp_path: Path
) -> None:
    """New words stand behind the old ones, and a tokenizer stays: what the base made of a batch is what is made now."""
    model, asked = learned(name)
    base = stored(model, tmp_path / "base")
    batch = batch_of(model)
    facts = {"vocabulary": (*NEW, "red"), "max_words": 1, "tokenizer": of_signs("xyz")}
    spec = spec_of(tmp_path, family=name, config=asked).model_copy(update={"base": base})
    torch.manual_seed(5)
    fresh = trainable(name)(starting.config_of(spec, facts))
    assert isinstance(fresh, Family)
    assert losses(fresh, batch) != losses(model, batch)
    starting.load(fresh, spec, base)
    assert losses(fresh, batch) == losses(model, batch)
    if hasattr(fresh.config, "vocabulary"):
        assert fresh.config.vocabulary == (*WORDS, *NEW)
        assert fresh.encode(["teal"]) is not None
    if hasattr(fresh.config, "tokenizer"):
        assert fresh.config.tokenizer == model.config.tokenizer


@pytest.mark.parametrize("name", learned_by_gradients())
def test_tensors_that_do_not_fit_are_named_in_one_line(name: str, tmp_path: Path) -> None:
    model, asked = learned(name)
    weights = model.state_dict()
    first, *_, last = (key for key, value in weights.items() if value.ndim)
    folder = stored(model, tmp_path / "base").path
    changed = {key: value.contiguous() for key, value in weights.items() if key != first}
    changed |= {last: torch.zeros(1, 1, 1, 1, 1), "odd.weight": torch.zeros(2)}
    save_file(changed, folder / "model.safetensors")
    spec = spec_of(tmp_path, family=name, config=asked)
    config = starting.config_of(spec, {"vocabulary": WORDS})
    with pytest.raises(ValueError, match="does not fit") as refused:
        starting.check(spec, config, folder, "toys.base:3")
    says = str(refused.value)
    assert "\n" not in says
    assert f"it lacks {first}" in says
    assert "it has besides odd.weight" in says
    assert f"of another shape {last} (1x1x1x1x1 there, " in says


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared") / "shades", validation=16)


@pytest.fixture(scope="module")
def first(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training from nothing."""
    rules = {"optimizers": {"model": {"learning_rate": 0.02}}, "validate_every": 30}
    spec = spec_of(prepared, steps=30, checkpoint_every=30, **rules)
    return fit(spec, run_id=None, tracking_uri=None, runs=tmp_path_factory.mktemp("first"))


@pytest.fixture
def base(first: Trained, tmp_path: Path) -> Base:
    folder = tmp_path / "version"
    shutil.copytree(first.directory, folder, ignore=shutil.ignore_patterns("MANIFEST.json"))
    digest = seal(folder, {"kind": "model"})
    return Base(name="shades.base", version=1, digest=digest, path=folder)


def tuned(prepared: Path, base: Base | None, workers: int = 0, **rules: Any) -> TrainingSpec:
    spec = spec_of(prepared, workers=workers, seed=7, **{"validate_every": 1, **rules})
    return spec.model_copy(update={"base": base})


def run(spec: TrainingSpec, runs: Path) -> Trained:
    return fit(spec, run_id=None, tracking_uri=None, runs=runs)


def test_it_begins_at_the_bases_validation_loss_and_says_where_it_comes_from(
    prepared: Path, first: Trained, base: Base, tmp_path: Path
) -> None:
    told: list[str] = []
    spec = tuned(prepared, base, steps=1, **STILL)
    found = fit(
        spec,
        run_id=None,
        tracking_uri=None,
        runs=tmp_path / "runs",
        on_progress=lambda now: told.append(now.note),
    )
    was = first.metrics["validation_loss"]
    assert found.metrics["validation_loss"] == pytest.approx(was, rel=1e-5)
    by_lot = run(tuned(prepared, None, steps=1, **STILL), tmp_path / "runs").metrics
    assert by_lot["validation_loss"] > 1.2 * was
    assert f"starts from {base.says}" in told


def test_the_best_weights_of_a_fine_tuning_are_kept(
    prepared: Path, first: Trained, base: Base, tmp_path: Path
) -> None:
    gentle = {"optimizers": {"model": {"learning_rate": 0.001}}}
    found = run(tuned(prepared, base, keep="best", **gentle), tmp_path).metrics
    assert found["validation_loss"] < first.metrics["validation_loss"]
    assert found["best_step"] > 0


def test_a_killed_one_goes_on_from_its_checkpoint_and_not_from_the_base(
    prepared: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tuned(prepared, base), tmp_path / "whole")
    monkeypatch.setenv("ATELIER_FAULT", "final.sealed:enospc")
    with pytest.raises(OSError, match="No space left"):
        run(tuned(prepared, base), tmp_path / "broken")
    monkeypatch.delenv("ATELIER_FAULT")
    again = run(tuned(prepared, base), tmp_path / "broken")
    assert (again.attempts, again.repeated_steps) == (2, 0)
    assert weights_of(again.directory) == weights_of(whole.directory)


def test_two_workers_start_from_the_same_weights(
    prepared: Path, first: Trained, base: Base, tmp_path: Path
) -> None:
    spec = tuned(prepared, base, workers=2, steps=1, **STILL)
    found = load_file(train_without_ray(spec, tmp_path) / "model.safetensors")
    was = load_file(first.directory / "model.safetensors")
    torch.testing.assert_close(found, was, rtol=0, atol=1e-6)


def test_another_base_is_other_work_and_another_name_for_it_is_not(
    prepared: Path, base: Base
) -> None:
    spec = tuned(prepared, base)
    renamed = base.model_copy(update={"name": "x", "version": 9, "path": Path("/elsewhere")})
    asked = spec.training.model_copy(update={"base": "x@production"})
    same = spec.model_copy(update={"base": renamed, "training": asked})
    other = spec.model_copy(update={"base": base.model_copy(update={"digest": "0" * 64})})
    assert spec.identity == same.identity
    assert len({spec.identity, other.identity, tuned(prepared, None).identity}) == 3
    assert TrainingSpec.model_validate_json(same.model_dump_json()) == same


def recipe_of(ref: str, family: str = "ddpm", stage: str = "base", **changes: Any) -> Recipe:
    training = {"from": ref, "steps": 1, "batch_size": 8}
    one = {"family": family, "preset": "tiny", "image_size": 8, "training": training, **changes}
    return Recipe.model_validate({"name": "own", "data": {"name": "shades"}, "stages": {stage: one}})  # fmt: skip


def spec_from(prepared: Path, recipe: Recipe) -> TrainingSpec:
    stage = next(iter(recipe.stages))
    return training_spec(recipe, stage, {"path": str(prepared), "identity": "d1"})


def test_a_stage_is_found_by_its_own_name_or_by_that_of_a_pipeline(here: Installation) -> None:
    older, newer = here.pipeline(0), here.pipeline(1)
    here.promote(older)
    here.registry.project(NAME, {"production": older.number})
    pinned = here.registry.get(f"{NAME}.base:1")
    assert version_of(f"{NAME}:{older.number}", "base") == pinned
    assert version_of(f"{NAME}@production", "base") == pinned
    assert version_of(NAME, "upscaler").ref == f"{NAME}.upscaler:{newer.number}"
    assert version_of(f"{NAME}.base:1", "whatever") == pinned
    with pytest.raises(
        RecipeError, match=r"toys:1 pins no stage 'gpt': name one of toys\.base:1, "
    ):
        version_of(f"{NAME}:1", "gpt")
    with pytest.raises(RegistryError, match=r"no model is called 'toy'; did you mean toys"):
        base_of("toy", "base")


def test_a_search_looks_at_a_base_once_for_all_its_trials(
    here: Installation, prepared: Path
) -> None:
    """A base of gigabytes takes minutes to hash, and every trial of it is of the same bytes."""
    for seed in range(2):
        here.stage("base", seed)
    space = {
        "training.optimizers.model.learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "training.from": {"choice": [f"{NAME}.base:1", f"{NAME}.base:2"]},
    }
    rules = {"space": space, "max_steps": 4, "grace_steps": 2, "validate_every": 2}
    one = recipe_of(f"{NAME}.base:1").model_copy(update={"search": Search.model_validate(rules)})
    data = {"path": str(prepared), "identity": "d1"}
    tried = [trial_recipe(one, values_of(one.search, one.seed, number)) for number in range(8)]
    wanted = [training_spec(recipe, "base", data) for recipe in tried]
    assert len({spec.base.digest for spec in wanted if spec.base}) == 2
    opened: list[str] = []
    listening = True

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if listening and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(listen)
    try:
        found = plan_of(one, data, trials=7).specs
    finally:
        listening = False
    assert found == tuple(wanted)
    placed = {str(spec.base.path / "model.safetensors") for spec in found if spec.base}
    assert {path: opened.count(path) for path in placed} == dict.fromkeys(placed, 1)


def fine_tuned(here: Installation, prepared: Path, ref: str) -> Version:
    """Train for a step from a version, and register what comes."""
    alone = {"resources": spec_of(prepared).resources}
    spec = spec_from(prepared, recipe_of(ref)).model_copy(update=alone)
    trained = run(spec, settings().runs)
    run_id = here.registry.start_run("own", spec.identity, {"atelier.identity": spec.identity})
    here.registry.end_run(run_id)
    return publish(spec, work_of(spec)["code"], trained.directory, trained.metrics, run_id)


def test_a_version_names_its_base_by_digest_which_prune_leaves(
    here: Installation, prepared: Path
) -> None:
    context.promotions.cache_clear()
    start = here.stage("base", 0)
    here.stage("base", 1)
    assert start.ref in {piece.name for piece in pieces()}
    version = fine_tuned(here, prepared, start.ref)
    assert version.tags["atelier.base"] == start.ref
    assert version.tags["atelier.base_digest"] == start.digest
    folder = here.registry.fetch(version)
    assert f"fine-tuned from {start.ref} (sha256 {start.digest[:12]})" in (folder / "card.md").read_text()  # fmt: skip
    assert json.loads((folder / "MANIFEST.json").read_text())["base_digest"] == start.digest
    training = json.loads((folder / "training.json").read_text())
    assert training["base"] == {"name": start.name, "version": 1, "digest": start.digest}
    nodes = {node["identity"]: node for node in graph_of(version.ref).as_json()["nodes"]}
    assert nodes[f"base sha256 {start.digest}"]["title"] == start.ref
    going = {(piece.kind, piece.name) for piece in pieces()}
    assert start.ref not in {name for _, name in going}
    assert ("fetched copy", start.digest[:12]) in going, "beside the runs nobody needs it any more"


def test_an_unfinished_training_keeps_what_it_started_from(
    here: Installation, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context.promotions.cache_clear()
    start = here.stage("base", 0)
    here.stage("base", 1)
    monkeypatch.setenv("ATELIER_FAULT", "final.sealed:enospc")
    with pytest.raises(OSError, match="No space left"):
        fine_tuned(here, prepared, start.ref)
    assert not {piece.name for piece in pieces()} & {start.ref, start.digest[:12]}
    monkeypatch.delenv("ATELIER_FAULT")
    version = fine_tuned(here, prepared, start.ref)
    [folder] = [path.parent for path in settings().runs.glob("*/final")]
    assert RunFolder(folder).attempt() == 2
    assert version.tags["atelier.base_digest"] == start.digest


HEADER = {
    "name": "shades", "modality": "image", "image_size": 8, "channels": 3, "attributes": {}, "held_out": [],
    "vocabulary": ["dark", "light"], "max_words": 1, "splits": {"test": {"rows": 40}}, "captions": ["dark"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"family": "edm"}, r"toys\.base:1 \(sha256 .*\) is of family ddpm, not edm"),
        ({"config": {"widths": [16, 32]}}, r"does not fit: of another shape .* there, .* here\)"),
        (
            {"config": {"text": "none"}},
            r"does not fit: it has besides network\.caption\.bias, .* and \d+ more",
        ),
        (
            {"config": {"vocabulary": ["dark"]}},
            "learned other words first: leave config.vocabulary",
        ),
        ({"family": "lda", "image_size": None}, "training.from: lda counts"),
        ({"ref": f"{NAME}.base:7"}, r"toys\.base has no version 7; it has 1"),
    ],
)
def test_what_cannot_start_from_a_version_is_told_before_anything_is_trained(
    here: Installation, prepared: Path, changes: dict[str, Any], says: str
) -> None:
    here.stage("base", 0)
    recipe = recipe_of(**{"ref": f"{NAME}.base", **changes})
    with pytest.raises(RecipeError, match=says) as refused:
        check_for(recipe, HEADER)
    assert str(refused.value).startswith("stages.base: ")
    assert "\n" not in str(refused.value)
    with pytest.raises((ValueError, RegistryError), match=says):
        check_specs([spec_from(prepared, recipe)])


def test_a_check_without_mlflow_says_what_it_could_not_look_at(
    here: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.provenance.bases import unseen

    recipe = recipe_of(f"{NAME}.base:1")
    here.stage("base", 0)
    assert unseen(recipe) == []
    monkeypatch.setenv("ATELIER_TRACKING_URI", "http://127.0.0.1:9")
    for cached in (settings, context.registry):
        cached.cache_clear()
    assert check_for(recipe, HEADER)
    [line] = unseen(recipe)
    assert line.startswith("base: training.from toys.base:1 was not looked at: MLflow does not")


@pytest.mark.parametrize("ref", ["own", "own.base", "own@candidate", "own.base@candidate"])
def test_whatever_the_recipe_made_last_is_no_base(ref: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(recipe_of(ref).model_dump_json())
    with pytest.raises(RecipeError, match=r"name one, own:1 or own@production"):
        load(path)
    path.write_text(recipe_of("own.base:1").model_dump_json())
    assert load(path).bases == {"base": "own.base:1"}
    with pytest.raises(RecipeError, match=r"stages\.base\.training\.from: .* pattern"):
        load(path, ["stages.base.training.from=own.base:0"])
    with pytest.raises(RecipeError, match=r"'frm'|no such field; did you mean 'from'"):
        load(path, ["stages.base.training.frm=own.base:1"])


def adapting(prepared: Path, base: Base, workers: int = 0, **rules: Any) -> TrainingSpec:
    """A training of an adapter."""
    asked = {"lora": {"base": base.name, "rank": 2}, **rules}
    return tuned(prepared, base, workers=workers, **asked)


def test_an_adapter_alone_is_trained_kept_and_published(
    prepared: Path, first: Trained, base: Base, tmp_path: Path
) -> None:
    told: list[str] = []
    spec = adapting(prepared, base)
    found = fit(
        spec, run_id=None, tracking_uri=None, runs=tmp_path, on_progress=lambda now: told.append(now.note),
    )  # fmt: skip
    weights = load_file(found.directory / "model.safetensors")
    assert all(".lora." in name for name in weights)
    [checkpoint, *_] = RunFolder(found.directory.parent).checkpoints()
    for name in ("model", "average"):
        kept = load_file(found.directory.parent / checkpoint / f"{name}.safetensors")
        assert kept.keys() == weights.keys()
    verify(base.path, base.digest)
    adapter = json.loads((found.directory / "config.json").read_text())["lora"]
    assert (adapter["base"], adapter["digest"]) == ("shades.base:1", base.digest)
    assert found.metrics["validation_loss"] < first.metrics["validation_loss"]
    whole = load_model(base.path, found.directory)
    learned = sum(tensor.numel() for tensor in weights.values())
    count = sum(parameter.numel() for parameter in whole.parameters())
    assert f"adapts {base.says}: {learned} of {count} weights learn" in told
    stored_base = load_file(base.path / "model.safetensors")
    state = whole.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored_base.items())
    with pytest.raises(RuntimeError, match="the tensors of its base beside its own"):
        load_model(found.directory)


def test_an_adapter_begins_at_its_bases_loss_on_two_workers(
    prepared: Path, first: Trained, base: Base, tmp_path: Path
) -> None:
    spec = adapting(prepared, base, workers=2, steps=1, **STILL)
    train_without_ray(spec, tmp_path / "two")
    found = run(adapting(prepared, base, steps=1, **STILL), tmp_path).metrics
    assert found["validation_loss"] == pytest.approx(first.metrics["validation_loss"], rel=1e-5)


def test_a_killed_adapter_goes_on_to_the_same_bits(
    prepared: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(adapting(prepared, base), tmp_path / "whole")
    monkeypatch.setenv("ATELIER_FAULT", "final.sealed:enospc")
    with pytest.raises(OSError, match="No space left"):
        run(adapting(prepared, base), tmp_path / "broken")
    monkeypatch.delenv("ATELIER_FAULT")
    again = run(adapting(prepared, base), tmp_path / "broken")
    assert (again.attempts, again.repeated_steps) == (2, 0)
    assert weights_of(again.directory) == weights_of(whole.directory)


def test_what_an_adapter_is_of_and_how_large_is_other_work(prepared: Path, base: Base) -> None:
    spec, larger = (adapting(prepared, base, lora={"base": "x", "rank": rank}) for rank in (2, 3))
    renamed = adapting(prepared, base, lora={"base": "y@production", "rank": 2})
    assert spec.identity == renamed.identity
    assert len({spec.identity, larger.identity, tuned(prepared, base).identity}) == 3


@pytest.mark.parametrize(
    ("rules", "changes", "says"),
    [
        ({"targets": ["query"]}, {}, r"training\.lora\.targets: there is no 'query'; choose from qkv,"),
        ({}, {"family": "edm"}, r"training\.lora: toys\.base:1 .* is of family ddpm, not edm|its base is"),
        ({}, {"family": "vae"}, r"training\.lora: vae has no attention for an adapter to change"),
        ({}, {"image_size": 4}, r"an adapter keeps its base's image_size, which is 8, and the data's"),
    ],
)  # fmt: skip
def test_an_adapter_that_cannot_be_is_told_before_anything_is_trained(
    here: Installation, prepared: Path, rules: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    here.stage("base", 0)
    training = {"lora": {"base": f"{NAME}.base", **rules}, "steps": 1, "batch_size": 8}
    stage = {"family": "ddpm", "image_size": 8, "training": training, **changes}
    recipe = Recipe.model_validate({"name": "own", "data": {"name": "shades"}, "stages": {"base": stage}})  # fmt: skip
    assert recipe.bases == {"base": f"{NAME}.base"}
    with pytest.raises(RecipeError, match=says):
        check_for(recipe, HEADER)
    with pytest.raises((ValueError, RegistryError), match=says):
        check_specs([spec_from(prepared, recipe)])


def test_a_recipe_says_of_an_adapter_nothing_that_its_base_has_said() -> None:
    lora = {"lora": {"base": "toys"}, "steps": 1}
    for changes, says in (
        ({"config": {"widths": [16]}}, "config: an adapter has the network of its base"),
        ({"preset": "tiny"}, "preset: an adapter has the network of its base"),
        ({"training": {**lora, "from": "toys"}}, "lora starts from toys: leave `from` out"),
    ):
        stage = {"family": "ddpm", "training": lora, **changes}
        with pytest.raises(ValueError, match=says):
            Recipe.model_validate({"name": "own", "data": {"name": "x"}, "stages": {"base": stage}})
