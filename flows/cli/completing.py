"""What the shell is offered on Tab, from files alone: no server is asked."""

import os
from collections.abc import Iterator
from pathlib import Path

from infra.settings import settings


def recipes(incomplete: str) -> list[str]:
    """Return the project's recipes, and the folders and YAML files that begin so."""
    typed = Path(incomplete + "x").parent
    beside = (path for path in typed.glob("*") if path.is_dir() or path.suffix == ".yaml")
    near = (f"{path}/" if path.is_dir() else str(path) for path in beside)
    ours = (os.path.relpath(path) for path in _recipes())
    return sorted({one for one in (*ours, *near) if one.startswith(incomplete)})


def models(incomplete: str) -> list[str]:
    """Return the models that the project's recipes make."""
    return sorted(path.stem for path in _recipes() if path.stem.startswith(incomplete))


def datasets(incomplete: str) -> list[str]:
    """Return params.yaml's datasets."""
    from data.params import CatalogError, names

    try:
        known = names(settings().project)
    except CatalogError:
        return []
    return [name for name in known if name.startswith(incomplete)]


def _recipes() -> Iterator[Path]:
    return (settings().project / "flows" / "recipes").glob("*.yaml")
