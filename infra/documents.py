"""JSON and YAML from outside: bounded in bytes, depth and what aliases unfold to, before anything walks through it.

Nobody else parses either (tests/test_layout.py): 3 MB of `[` would end in a RecursionError, and ten lines of YAML
aliases in a document of billions. Of a name said twice in one object others keep the last and say nothing: it is
refused, since one of the two would be ignored, and two readers might keep another each.
"""

import json
import re
from array import array
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import yaml

MOST_BYTES: Final = 2**26  # of JSON
MOST_OF_OURS: Final = 2**30  # of a document that we wrote: a dataset's header has all its captions
MOST_YAML_BYTES: Final = 2**22
MOST_NODES: Final = 100_000  # of YAML, aliases unfolded
DEEPEST: Final = 100
_ESCAPED: Final = re.compile(rb"\\.", re.DOTALL)
_STRING: Final = re.compile(rb'"[^"]*+"?')
_AS_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_NO_MARKS: Final = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS: Final = bytes.maketrans(b"[]", b"\x01\xff")
"""Brackets as signed bytes: a level down, and up."""


class DocumentError(ValueError):
    """Not JSON or YAML, or more of it than is read; one line that begins with what it is."""


def read_json(path: Path, *, most: int = MOST_BYTES) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: it cannot be read.
        DocumentError: as `parse_json`.
    """
    return parse_json(_bytes(path, most), str(path), most=most)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        OSError: it cannot be read.
        DocumentError: as `parse_yaml`.
    """
    return parse_yaml(_bytes(path, MOST_YAML_BYTES), str(path))


def parse_json(
    content: bytes | str,
    what: str,
    *,
    most: int = MOST_BYTES,
    number: Callable[[str], Any] = float,
) -> Any:
    """Return a JSON document; `number` makes one of what has a point or an exponent.

    Raises:
        DocumentError: no JSON, above `most` bytes, nested more than 100 deep, or with a name said twice in one object;
            `what` names it.

    Example:
        >>> parse_json('{"seed": 1, "seed": 2}', "the body")
        Traceback (most recent call last):
        infra.documents.DocumentError: the body says 'seed' twice
    """
    given = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    _check_size(len(given), most, what)
    _check_depth(given, what)
    try:
        return json.loads(content, object_pairs_hook=_once, parse_float=number)
    except RecursionError:
        raise _too_deep(what) from None
    except _Twice as error:
        raise DocumentError(f"{what} says {error} twice") from None
    except ValueError as error:
        raise DocumentError(f"{what} is not JSON: {error}") from None


def parse_yaml(content: bytes | str, what: str) -> Any:
    """Return a YAML document in UTF-8, without tags for Python's own types.

    Raises:
        DocumentError: no YAML, above 4 MiB, nested more than 100 deep, unfolding to more than 100,000 nodes, or with a
            name said twice in one mapping.
    """
    _check_size(len(content), MOST_YAML_BYTES, what)
    try:
        text = content.decode() if isinstance(content, bytes) else content
        _check_unfolded(text, what)
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except DocumentError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DocumentError(f"{what} is not YAML: {' '.join(str(error).split())}") from None


def _bytes(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most + 1)


def _check_size(size: int, most: int, what: str) -> None:
    if size > most:
        raise DocumentError(f"{what} has more than {most} bytes, the most that are read")


def _too_deep(what: str) -> DocumentError:
    return DocumentError(f"{what} is nested more than {DEEPEST} deep: refused")


def _check_depth(content: bytes, what: str) -> None:
    """Take away all but quotes and brackets, then the strings, and count; what is closed too often is no JSON."""
    marks = _ESCAPED.sub(b"", content).translate(_AS_SQUARE, _NO_MARKS)
    brackets = _STRING.sub(b"", marks.replace(b'""', b""))
    if max(accumulate(array("b", brackets.translate(_STEPS))), default=0) > DEEPEST:
        raise _too_deep(what)


class _Twice(ValueError):
    """A name that an object has more than once."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object from its members."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Twice(repr(name[:80]))
        found[name] = value
    return found


class _Open:
    """A node that is not at its end: its own nodes and levels, aliases unfolded, and of a mapping the names so far."""

    def __init__(self, event: yaml.NodeEvent | None = None) -> None:
        self.anchor = event and event.anchor
        self.nodes = self.levels = 1
        self.names: set[str] | None = set() if isinstance(event, yaml.MappingStartEvent) else None
        self.named = False

    def check_once(self, event: yaml.NodeEvent, what: str) -> None:
        """Refuse a node that begins in this one where it is a name which this has."""
        if self.names is None:
            return
        self.named = not self.named  # names and values take turns
        if not self.named or not isinstance(event, yaml.ScalarEvent):
            return
        if event.value in self.names:
            line = event.start_mark.line + 1 if event.start_mark else "?"
            name = repr(event.value[:80])
            raise DocumentError(f"{what} says {name} twice, the second time in line {line}")
        self.names.add(event.value)

    def take(self, nodes: int, levels: int) -> None:
        self.nodes += nodes
        self.levels = max(self.levels, 1 + levels)


def _check_unfolded(text: str, what: str) -> None:
    """Go through the events, which no alias makes longer, and count what they would unfold to."""
    anchors: dict[str, tuple[int, int]] = {}
    open_ = [_Open()]
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.NodeEvent):
            open_[-1].check_once(event, what)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise DocumentError(f"{what} has an alias {event.anchor!r} of nothing before it")
            open_[-1].take(*anchors[event.anchor])
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor:
                anchors[event.anchor] = (1, 1)
            open_[-1].take(1, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append(_Open(event))
        elif isinstance(event, yaml.CollectionEndEvent):
            done = open_.pop()
            if done.anchor:
                anchors[done.anchor] = (done.nodes, done.levels)
            open_[-1].take(done.nodes, done.levels)
        if len(open_) + open_[-1].levels > DEEPEST + 3:
            raise _too_deep(what)
        if sum(one.nodes for one in open_) > MOST_NODES:
            raise DocumentError(f"{what} unfolds to more than {MOST_NODES} nodes: refused")
