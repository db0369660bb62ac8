"""Makers bring pictures and captions in, as encoded files; MAKERS is the table of contents.

A maker is a module with `Config`, its entry in params.yaml, and `made(config, project)`, which checks what can be
checked before a picture is read and returns a `Made`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

MAKERS: Final[Mapping[str, str]] = {
    "shapes": "data.makers.shapes",
    "digits": "data.makers.digits",
    "mnist": "data.makers.mnist",
    "folder": "data.makers.folder",
}
DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Split: TypeAlias = Literal["train", "validation", "test"]


class MakerError(ValueError):
    """Files that a dataset cannot be made from, in one line that names file and folder."""


class Entry(BaseModel):
    """A dataset of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    maker: str
    path: Path  # what it is made from: files, or the program that draws it


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture as found: its encoded bytes (empty: could not be read) and what it shows."""

    file: str
    content: bytes
    caption: str
    split: Split | None = None  # where the source has splits of its own
    problem: str = ""  # why there is no content


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A dataset before anyone has looked at its pictures."""

    pictures: Iterable[Picture]
    image_size: int
    channels: Literal[1, 3]
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    vocabulary: Sequence[str] = ()
    held_out: Sequence[str] = ()  # captions that training never sees
    captioned: bool = True
    validation_rows: int | None = None  # taken by hash from a source's own training split


def maker(name: str) -> Any:
    """Return the module of a maker.

    Raises:
        MakerError: the name is unknown; the message lists the known ones.
    """
    if name not in MAKERS:
        raise MakerError(f"unknown maker {name!r}; choose one of {', '.join(MAKERS)}")
    return import_module(MAKERS[name])
