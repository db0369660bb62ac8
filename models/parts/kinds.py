"""What kind of value each setting of a Config has, as its annotations say, refused in one sentence.

A dataclass checks no annotation: a word that is none of a `Literal`'s would be taken for the last of them.
"""

import math
import re
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

CALLED: Final[Mapping[Any, str]] = {
    **{int: "a whole number", float: "a number", bool: "true or false"},
    **{str: "a text", NoneType: "null"},
}
SHOWN: Final = 60  # signs of a value


def check(config: type, values: Mapping[str, Any]) -> None:
    """Refuse settings of another kind than the fields of a dataclass; sections of their own look after themselves.

    Raises:
        ValueError: names the setting, its kind and its value.

    Example:
        >>> from models.autoregressive.made import MADEConfig
        >>> check(MADEConfig, {"mask": "C"})
        Traceback (most recent call last):
        ValueError: mask must be one of A, B, got 'C'
    """
    hints = get_type_hints(config)
    for name, value in values.items():
        if _is(value, hints[name]):
            continue
        wanted, shown = _called(hints[name]), repr(value)
        dotless = isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value)
        hint = " as a text: YAML's numbers have a dot, as 1.0e-3" if dotless else ""
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
        raise ValueError(
            f"{name} must be {wanted}, got {shown}{hint if 'number' in wanted else ''}"
        )


def _is(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in {Union, UnionType}:
        return any(_is(value, one) for one in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(each) == len(value) and all(map(_is, value, each))
    if kind is float:
        return type(value) in {int, float} and math.isfinite(value)
    return kind not in CALLED or type(value) is kind  # true is no whole number


def _called(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin in {Union, UnionType}:
        return " or ".join(map(_called, inner))
    if origin is tuple:
        many = "a list" if inner[-1] is ... else f"a list of {len(inner)}"
        return f"{many}, each {_called(inner[0])}"
    return CALLED.get(kind, kind.__name__)
