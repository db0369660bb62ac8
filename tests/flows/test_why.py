"""A version says what made it different from the one before it, part by part."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from flows import evaluation, train
from flows.cli import version_verbs
from flows.context import named
from flows.evaluating.gate import Evaluation
from flows.evaluation import pin
from flows.identity import why
from flows.identity.reach import Code
from flows.recipe import Recipe
from flows.training.spec import TrainingSpec
from infra.registry.registry import RegistryError, Version
from infra.storage import seal
from models import configure, describe, trainable
from tests.flows.training_kit import spec_of
from tests.flows.versions_kit import Installation

PARTS = {"VAE.forward": "a", "Loop._step": "b", "rate_at": "c"}
RECIPE = {
    "name": "shades",
    "data": {"name": "shades"},
    "stages": {"base": {"family": "vae", "preset": "tiny", "training": {"steps": 12}}},
}


def code(parts: Mapping[str, str] = PARTS, digest: str = "") -> Code:
    return Code(digest or "-".join(parts.values()), parts, ())


def spec(**changes: Any) -> TrainingSpec:
    found = spec_of(Path("nowhere"), family="vae", **changes.pop("training", {}))
    return found.model_copy(update=changes)


def trained(here: Installation, made: Code | None, wanted: TrainingSpec) -> Version:
    """Publish a training as `train` does; with no code, as it did before it kept any."""
    final, cls = here.home / "final", trainable("vae")
    final.mkdir()
    facts = {"channels": 3, "vocabulary": ("dark",), "max_words": 1}
    model = cls(configure("vae", "tiny", {}, facts))
    (final / "config.json").write_text(json.dumps(describe(model)))
    save_file(model.state_dict(), final / "model.safetensors")
    seal(final, {"steps": 12})
    run = here.registry.start_run("shades", wanted.identity, {})
    work = why.training_work(wanted, made or code())
    if made is None:
        work["code"] = why.OLD.model_dump()
    version = train.publish(wanted, work["code"], final, {"loss": 1.0}, run)
    here.registry.end_run(run)
    shutil.rmtree(final)
    return version


def changes(found: why.Why) -> list[tuple[str, str, str]]:
    return list(found.changes)


def test_the_first_version_of_a_name_is_told_as_the_first(here: Installation) -> None:
    found = why.why(trained(here, code(), spec()))
    assert (found.ref, found.before, found.changes) == ("shades.base:1", None, ())
    assert why.reason("other.base", why.training_work(spec(), code())) == ""


def test_settings_data_seed_world_and_code_are_told_apart(here: Installation) -> None:
    trained(here, code(), spec())
    resources = spec().resources.model_copy(update={"num_workers": 2})
    other = spec(training={"steps": 24}, seed=7, resources=resources, data_identity="1" * 32)
    parts = {"VAE.forward": "other", "Loop._step": "b", "schedule": "new"}
    second = trained(here, code(parts), other.model_copy(update={"code_identity": "2" * 12}))
    assert changes(why.why(second)) == [
        ("config.training.steps", "12", "24"),
        ("data.identity", "0" * 32, "1" * 32),
        ("seed", "0", "7"),
        ("world", "1", "2"),
        ("code.VAE.forward", "a", "other"),
        ("code.rate_at", "c", "-"),
        ("code.schedule", "-", "new"),
    ]
    assert why.reason("shades.base", why.training_work(spec(), code())) == (
        f"other than shades.base:2: training.steps 24 -> 12; data.identity {'1' * 32} -> {'0' * 32};"
        " seed 7 -> 0; world 2 -> 1; code: VAE.forward, schedule, rate_at"
    )


def test_how_many_cpus_a_training_was_lent_is_no_reason(here: Installation) -> None:
    trained(here, code(), spec())
    lent = spec().resources.model_copy(update={"cpus_per_worker": 3})
    work = why.training_work(spec(resources=lent, seed=1), code())
    assert why.reason("shades.base", work) == "other than shades.base:1: seed 0 -> 1"


def test_a_version_of_before_differs_by_the_way_of_naming_code(here: Installation) -> None:
    trained(here, None, spec())
    assert why.reason("shades.base", why.training_work(spec(), code())) == (
        "other than shades.base:1: code: the way of naming code"
    )


def test_equal_definitions_that_use_others_are_told(here: Installation) -> None:
    trained(here, code(digest="one"), spec())
    second = trained(here, code(digest="two"), spec(code_identity="3" * 12))
    assert changes(why.why(second)) == [("code.who uses whom", "one", "two")]


def test_one_line_names_a_few_of_many_changes() -> None:
    many = [(f"code.part_{number}", "a", "b") for number in range(9)]
    assert why.in_words(many).endswith("part_4, part_5, 3 more")
    long = why.in_words([("config.try_prompts", "x" * 99, "y")])
    assert long == f"try_prompts {'x' * 40} -> y"


def judged(here: Installation, stage: Version, made: Code, **recipe: Any) -> Version:
    wanted = Recipe.model_validate({**RECIPE, **recipe})
    pinned = {"base": named(stage)}
    work = why.judging_work(wanted, pinned, "0" * 32, made)
    found = Evaluation(evaluation_set="s", judge=None, metrics={}, outcomes={})
    run = here.registry.start_run("shades", evaluation.judging_identity(work), {})
    version: Version = evaluation._publish(
        wanted,
        pin(wanted, pinned, {}),
        {"identity": "0" * 32},
        found,
        {why.CODE: json.dumps(work["code"]).encode()},
        run_id=run,
        key=evaluation.judging_identity(work),
    )
    return version


def test_a_pipeline_says_which_stage_changed_and_why(
    here: Installation,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = code({"bits": "a"})
    judged(here, trained(here, code(), spec()), metrics)
    second = trained(here, code(), spec(seed=1))
    last = judged(here, second, code({"bits": "b"}), description="More")
    found = why.why(last)
    assert [name for name, _, _ in found.changes] == ["config.description", "stages.base", "code.bits"]  # fmt: skip
    assert found.stages == {"base": why.Why("shades.base:2", "shades.base:1", [("seed", "0", "1")])}
    monkeypatch.setattr(version_verbs, "use_stack", lambda: None)
    version_verbs.show(last.ref, reasons=True, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["changes"][0] == {"what": "config", "name": "description", "before": "", "now": "More"}  # fmt: skip
    seed = {"what": "seed", "name": "", "before": "0", "now": "1"}
    assert document["stages"]["base"]["changes"] == [seed]
    version_verbs.show(last.ref, reasons=True)
    shown = capsys.readouterr().out
    assert "shades:2 was made of other things than shades:1" in shown
    assert "shades.base:2 was made of other things than shades.base:1" in shown


def test_a_version_that_does_not_say_what_it_was_made_of_is_one_line(here: Installation) -> None:
    here.stage("base", 0)
    second = here.stage("base", 1)
    said = rf"what {second.name}:1 or {second.ref} was made of cannot be read \(.*no training\.json"
    with pytest.raises(RegistryError, match=said) as refused:
        why.why(second)
    assert "\n" not in str(refused.value)
    work = why.training_work(spec(), code())
    assert "cannot be read" in why.reason(second.name, work)


def test_equal_judging_has_an_equal_key_and_other_metrics_another() -> None:
    recipe = Recipe.model_validate(RECIPE)
    pins = {"base": {"name": "shades.base", "version": 1, "digest": "0" * 64}}

    def key(made: Code, **changes: Any) -> str:
        other = recipe.model_copy(update=changes)
        return evaluation.judging_identity(why.judging_work(other, pins, "d", made))

    assert key(code()) == key(code(), seed=3)  # which the stages have
    assert key(code()) != key(code({"bits": "b"}))
    assert key(code()) != key(code(), description="More")
