"""One expectation about facts: its Great Expectations class, its arguments, and why a row breaks it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]
Asked: TypeAlias = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One expectation: its Great Expectations class, arguments, and why a row breaks it."""

    name: str
    expectation: str
    arguments: Mapping[str, Any]
    reason: Callable[[Row], str]  # of a row; of no row where the table as a whole is judged


def among(column: str, value: Any, mostly: float = 1.0) -> Asked:
    """Expect the value in a column, in a share of the rows."""
    asked = {"column": column, "value_set": [value]}
    return "ExpectColumnValuesToBeInSet", asked | ({} if mostly == 1 else {"mostly": mostly})


def between(column: str, low: float | None, high: float | None) -> Asked:
    """Expect a column's values from `low` to `high`, both included; None is no bound."""
    bounds = {"column": column, "min_value": low, "max_value": high}
    return "ExpectColumnValuesToBeBetween", bounds


def contains(column: str, values: Sequence[str]) -> Asked:
    """Expect every one of the values somewhere in a column."""
    return "ExpectColumnDistinctValuesToContainSet", {"column": column, "value_set": list(values)}


def counts(rows: int) -> Asked:
    """Expect so many rows."""
    return "ExpectTableRowCountToEqual", {"value": rows}
