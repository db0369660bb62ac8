"""What made one version's work different from another's: settings, data, seed, world, stages and code, part by part."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from flows.context import registry
from flows.identity.reach import SCHEME, Code
from infra.pipelines import PIPELINE, SAMPLING, Pipeline
from infra.registry.mlflow_client import RegistryError

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from flows.training.spec import TrainingSpec
    from infra.registry.registry import Version

CODE: Final = "code.json"
JUDGED: Final = (
    "name", "description", "evaluation", "gate", "drift", "try_prompts", "found_by",
)  # fmt: skip
"""Of a recipe, what the judging of its stages depends on."""
APART: Final = {
    *("name", "prepared", "dataset", "data_identity", "code_identity"),
    *("base", "inherits", "needs", "seed", "resources"),
}
"""Of a TrainingSpec, what is no setting of the network or its training, or is told beside them."""
TOLD: Final = 6  # in one line, at most
UNREADABLE: Final = (ValueError, LookupError, TypeError, AttributeError)  # documents of others


class Kept(BaseModel):
    """What a version keeps of the code that made it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: Annotated[str, Field(max_length=100)]
    digest: Annotated[str, Field(max_length=64)]
    parts: Annotated[dict[str, str], Field(max_length=10_000)]  # a digest a definition


OLD: Final = Kept(scheme="by the bytes of files", digest="", parts={})
"""Of versions that keep no such document."""


@dataclass(frozen=True, slots=True)
class Why:
    """What is different in a version."""

    ref: str
    before: str | None  # the version that it is compared with; None: it is the first
    changes: Sequence[tuple[str, str, str]] = ()  # what, before, after: "config.training.steps"
    stages: Mapping[str, "Why"] = field(default_factory=dict)  # of those that a pipeline changed

    def as_json(self) -> dict[str, Any]:
        """Return it as a document."""
        rows = []
        for name, before, now in self.changes:
            what, _, rest = name.partition(".")
            rows.append({"what": what, "name": rest, "before": before, "now": now})
        stages = {name: why.as_json() for name, why in self.stages.items()}
        return {"ref": self.ref, "before": self.before, "changes": rows, "stages": stages}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the fields that differ between two documents, by dotted name; "-" where one has none."""
    ours, theirs = dict(_flat(a)), dict(_flat(b))
    return [
        (name, ours.get(name, "-"), theirs.get(name, "-"))
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    ]


def _flat(document: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in document.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append(
                (f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value))
            )
    return found


def _kept(code: Code) -> Kept:
    return Kept(scheme=f"by meaning, {SCHEME}", digest=code.digest, parts=dict(code.parts))


def training_work(spec: "TrainingSpec", code: Code) -> dict[str, Any]:
    """Return what a training is made of, part by part."""
    return _trained(spec.model_dump(mode="json"), _kept(code))


def judging_work(
    recipe: "Recipe", trained: Mapping[str, Any], data_identity: str, code: Code
) -> dict[str, Any]:
    """Return what a judging is made of, part by part."""
    pins = {
        stage: (f"{one['name']}:{one['version']}", one["digest"]) for stage, one in trained.items()
    }
    return _judged(recipe.model_dump(mode="json"), pins, data_identity, _kept(code))


def reason(name: str, work: Mapping[str, Any]) -> str:
    """Return in one line why this is not what the newest version of a name was made of; "" where there is none."""
    try:
        newest = registry().get(name)
    except RegistryError:
        return ""
    try:
        changes = _changes(_work_of(newest), work)
    except (RegistryError, *UNREADABLE) as error:
        return f"what {newest.ref} was made of cannot be read ({_line(error)})"
    return f"other than {newest.ref}: {in_words(changes)}"


def why(version: "Version") -> Why:
    """Return what made a version different from the one before it.

    Raises:
        RegistryError: a version that does not say what it was made of, or not as it was published.
    """
    earlier = [one for one in registry().versions(version.name) if one.number < version.number]
    if not earlier:
        return Why(version.ref, None)
    try:
        return _between(earlier[-1], version)
    except UNREADABLE as error:
        both = f"{earlier[-1].ref} or {version.ref}"
        raise RegistryError(f"what {both} was made of cannot be read ({_line(error)})") from None


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def in_words(changes: Sequence[tuple[str, str, str]]) -> str:
    """Return changes in one line: settings with their values, code by its names."""
    code = [name.removeprefix("code.") for name, _, _ in changes if name.startswith("code.")]
    said = [
        f"{name.removeprefix('config.')} {a[:40]} -> {b[:40]}"
        for name, a, b in changes
        if not name.startswith("code.")
    ]
    told = [*_some(said), *([f"code: {', '.join(_some(code))}"] if code else [])]
    return "; ".join(told) or "by nothing that is kept"


def _some(lines: Sequence[str]) -> list[str]:
    left = len(lines) - TOLD
    return [*lines[:TOLD], *([f"{left} more"] if left > 0 else [])]


def _between(before: "Version", after: "Version") -> Why:
    ours, theirs = _pins(before), _pins(after)
    stages = {}
    for stage in sorted(ours.keys() & theirs.keys()):
        first, second = (registry().by_digest(*pin) for pin in (ours[stage], theirs[stage]))
        if first and second and first.digest != second.digest:
            stages[stage] = _between(first, second)
    return Why(after.ref, before.ref, _changes(_work_of(before), _work_of(after)), stages)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return what differs; of code that was named in another way only that."""
    ours, theirs = before["code"], after["code"]
    if ours["scheme"] != theirs["scheme"]:
        named = [{"the way of naming code": one["scheme"]} for one in (ours, theirs)]
    elif ours["parts"] == theirs["parts"]:
        named = [{"who uses whom": one["digest"]} for one in (ours, theirs)]
    else:
        named = [ours["parts"], theirs["parts"]]
    return differences({**before, "code": named[0]}, {**after, "code": named[1]})


def _work_of(version: "Version") -> dict[str, Any]:
    """Return what a version was made of, as its documents say."""
    name = "recipe.json" if version.kind == "pipeline" else "training.json"
    found = registry().documents(version, (name, CODE))
    if name not in found:
        raise LookupError(f"{version.ref} has no {name}")
    code = Kept.model_validate(found[CODE]) if CODE in found else OLD
    if version.kind != "pipeline":
        return _trained(found[name], code)
    data = version.tags.get("atelier.data_identity", "")
    return _judged(found[name], _pins(version), data, code)


def _pins(version: "Version") -> dict[str, tuple[str, str]]:
    """Return a pipeline's stages and judge: by which reference it knows them, and their digests."""
    if version.kind != "pipeline":
        return {}
    found = registry().documents(version, (PIPELINE, "evaluation.json"))
    stages = Pipeline.model_validate(found[PIPELINE]).stages
    pins = {one.stage: (one.pin.ref, one.sha256) for one in stages}
    if judge := found["evaluation.json"]["judge"]:
        pins["judge"] = (judge["version"], judge["sha256"])
    return pins


def _trained(spec: Mapping[str, Any], code: Kept) -> dict[str, Any]:
    config = {name: value for name, value in spec.items() if name not in APART}
    config["training"] = {k: v for k, v in spec["training"].items() if k != "base"}
    base = spec.get("base")
    return {
        "config": config,
        "base": base and f"{base['name']}:{base['version']} {base['digest']}",
        "needs": {
            name: f"{one['name']}:{one['version']}/{one['entry']} {one['digest']}"
            for name, one in spec.get("needs", {}).items()
        },
        "data": {"name": spec["dataset"], "identity": spec["data_identity"]},
        "seed": spec["seed"],
        "world": max(1, spec["resources"]["num_workers"]),
        "code": code.model_dump(),
    }


def _judged(
    recipe: Mapping[str, Any],
    pins: Mapping[str, tuple[str, str]],
    data_identity: str,
    code: Kept,
) -> dict[str, Any]:
    sampling = {
        name: {key: stage.get(key) for key in (*SAMPLING, "options")}
        for name, stage in recipe["stages"].items()
    }
    return {
        "config": {**{name: recipe.get(name) for name in JUDGED}, "stages": sampling},
        "data": {"name": recipe["data"]["name"], "identity": data_identity},
        "stages": {stage: f"{ref} {digest}" for stage, (ref, digest) in pins.items()},
        "code": code.model_dump(),
    }
