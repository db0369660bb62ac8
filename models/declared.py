"""What a family's class says of itself, read from its source: importing it takes torch, and torch takes seconds."""

import ast
from dataclasses import dataclass, fields
from functools import cache
from importlib.abc import InspectLoader
from importlib.util import find_spec
from typing import TYPE_CHECKING

from models import FAMILIES, target

if TYPE_CHECKING:
    from models.family import Trainable


@dataclass(frozen=True, slots=True)
class Declared:
    """The names that a recipe may use of a family."""

    presets: tuple[str, ...]
    settings: tuple[str, ...]  # fields of Config
    players: tuple[str, ...] = ("model",)
    counts: bool = False
    measures: tuple[str, ...] = ()
    adapts: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    ranks: bool = False


@cache
def declared(name: str) -> Declared:
    """Return what a family or judge declares.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.

    Example:
        >>> declared("gan").players
        ('critic', 'generator')
    """
    module, _, attribute = target(name).partition(":")
    values = _values(module, attribute)
    config, presets = values["Config"], values["presets"]
    assert isinstance(config, ast.Name)
    assert isinstance(presets, ast.Dict)
    plain = {
        key: ast.literal_eval(values[key])
        for key in ("players", "counts", "measures", "adapts", "needs", "ranks")
        if key in values
    }
    return Declared(
        presets=tuple(ast.literal_eval(key) for key in presets.keys if key),
        settings=_settings(module, config.id),
        **plain,
    )


def ranks(name: str) -> bool:
    """Return whether there is a family of this name that may stand beside what draws, and say how well it does."""
    return name in FAMILIES and declared(name).ranks


def of(cls: "type[Trainable]") -> Declared:
    """Return what an imported class declares."""
    return Declared(
        presets=tuple(cls.presets),
        settings=tuple(field.name for field in fields(cls.Config)),
        players=cls.players,
        counts=cls.counts,
        measures=cls.measures,
        adapts=cls.adapts,
        needs=cls.needs,
        ranks=cls.ranks,
    )


@cache
def _tree(module: str) -> ast.Module:
    spec = find_spec(module)
    assert spec is not None
    assert isinstance(spec.loader, InspectLoader)
    return ast.parse(spec.loader.get_source(module) or "")


def _class(module: str, name: str) -> tuple[str, ast.ClassDef]:
    """Return a class by the name that it has in a module, behind the one that it is defined in."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and name in {one.name for one in node.names}:
            return _class(node.module or "", name)
    raise LookupError(f"{module} has no class {name}")


def _settings(module: str, name: str) -> tuple[str, ...]:
    """Return the fields of a dataclass in their order: those of a dataclass that it extends come first."""
    found = dict[str, None]()
    module, node = _class(module, name)
    if not any(isinstance(one, ast.Call) for one in node.decorator_list):  # it is no dataclass
        return ()
    for base in reversed(node.bases):  # as dataclasses do: the first one's come last
        if isinstance(base, ast.Name):  # no `words.Captioned`, which has no fields of its own
            found |= dict.fromkeys(_settings(module, base.id))
    lines = (line for line in node.body if isinstance(line, ast.AnnAssign))
    named = [
        line.target for line in lines if not ast.unparse(line.annotation).startswith("ClassVar")
    ]
    found |= dict.fromkeys(one.id for one in named if isinstance(one, ast.Name))
    return tuple(found)


def _values(module: str, name: str) -> dict[str, ast.expr]:
    """Return what a family's class gives values to, or has from a family that it extends."""
    found: dict[str, ast.expr] = {}
    module, node = _class(module, name)
    for base in reversed(node.bases):  # the first one has the last word
        if isinstance(base, ast.Name) and base.id not in {"Family", "Trainable"}:
            found |= _values(module, base.id)
    return found | dict(_assigned(node))


def _assigned(node: ast.ClassDef) -> list[tuple[str, ast.expr]]:
    """Return the names that a class body gives values to."""
    found: list[tuple[str, ast.expr]] = []
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and line.value and isinstance(line.target, ast.Name):
            found.append((line.target.id, line.value))
        elif isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            found.append((line.targets[0].id, line.value))
    return found
