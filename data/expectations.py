"""What a dataset must be like: Great Expectations suites over the facts table, as code.

A rule is one expectation on one column and the sentence that explains a row that breaks it. The suite is made of the
rules that hold for the dataset at hand; its verdict names rules and rows.
"""

import csv
import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from data.pictures import MAX_SIDE
from data.shards import SPLITS
from infra.storage import atomic_write

MAX_WORDS: Final = 64
SHOWN: Final = 20  # rows named in a message; the quarantine file has all
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """One expectation: its Great Expectations class, arguments, and why a row breaks it."""

    name: str
    expectation: str
    arguments: Mapping[str, Any]
    reason: Callable[[Row], str]  # of a row; of no row where the table as a whole is judged


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that breaks a rule."""

    file: str
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Check:
    """A rule's outcome: how many rows were judged and how many break it."""

    rule: str
    expectation: str
    column: str  # empty: the table
    checked: int
    broken: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """All rules' outcomes; `ok` when no row breaks any."""

    name: str
    rows: int
    checks: tuple[Check, ...]
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Whether every expectation is met."""
        return all(check.ok for check in self.checks)

    def lines(self) -> list[str]:
        """Return the broken expectations and their rows, as they are said to the user."""
        found = [
            f"expectation {check.rule!r} is broken by {check.broken} of {check.checked} samples"
            for check in self.checks
            if not check.ok
        ]
        found += [f"{fault.file}: {fault.reason}" for fault in self.faults[:SHOWN]]
        if len(self.faults) > SHOWN:
            found.append(f"... and {len(self.faults) - SHOWN} more")
        return found

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"ok": self.ok, **asdict(self)}


def rules(made: Mapping[str, Any]) -> list[Rule]:
    """Return the rules for a dataset as its maker described it."""
    side = made["image_size"]
    found = [
        Rule("every sample has facts", *_counts(sum(made["rows"])), _incomplete),
        Rule("decodes fully", *_among("decodes", True), lambda row: str(row["problem"])),
        Rule("wide enough", *_between("width", side, MAX_SIDE), lambda row: _size(row, side)),
        Rule("high enough", *_between("height", side, MAX_SIDE), lambda row: _size(row, side)),
        Rule("not flat", *_between("std", 1, 128), _flat),
        Rule("levels in range", *_between("high", 1, 255), _flat),
        Rule("no duplicates", *_among("duplicate_of", ""), _duplicate),
        Rule("no split leak", *_between("splits", 1, 1), _leak),
        Rule("held-out captions stay out of training", *_among("learned", False), _learned),
        Rule("every split has samples", *_contains("split", SPLITS), _too_few),
    ]
    if made["captioned"]:
        found += [
            Rule("caption present", *_between("words", 1, None), lambda _: "empty caption"),
            Rule("caption short enough", *_between("words", None, MAX_WORDS), _wordy),
            Rule("caption in vocabulary", *_among("unknown_words", ""), _unknown),
        ]
    if made["attributes"]:
        found.append(Rule("classes in balance", *_between("share", 0.1, 10), _imbalance))
    return found


def judge(name: str, facts: pa.Table, made: Mapping[str, Any]) -> Verdict:
    """Return Great Expectations' verdict on a facts table."""
    table = rules(made)
    frame = facts.to_pandas()
    frame["learned"] = frame["held_out"] & (frame["split"] == "train")
    checks, faults = [], []
    for rule, (ok, result) in zip(table, _run(name, frame, table), strict=True):
        places = result.get("unexpected_index_list") or ()
        rows = [frame.iloc[place].to_dict() for place in places]
        column = str(rule.arguments.get("column", ""))
        checked = result.get("element_count", len(frame)) - result.get("missing_count", 0)
        checks.append(Check(rule.name, rule.expectation, column, checked, len(rows), ok))
        faults += [Fault(row["file"], rule.name, rule.reason(row)) for row in rows]
        if not ok and not rows:
            faults.append(Fault(name, rule.name, rule.reason({})))
    once = {(fault.file, fault.reason): fault for fault in faults}
    order = {file: place for place, file in enumerate(frame["file"])}
    told = sorted(once.values(), key=lambda fault: order.get(fault.file, -1))
    return Verdict(name, len(facts), tuple(checks), tuple(told))


def write_quarantine(path: Path, verdict: Verdict) -> None:
    """Write every broken row, file, rule and reason, as CSV; no file where nothing is broken."""
    if not verdict.faults:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("file", "rule", "reason"))
    writer.writerows((fault.file, fault.rule, fault.reason) for fault in verdict.faults)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def _run(name: str, frame: Any, table: Sequence[Rule]) -> list[tuple[bool, dict[str, Any]]]:
    """Return whether each rule is met and its result, failing rows by position."""
    with warnings.catch_warnings():  # its optional imports warn of packages that nobody needs
        warnings.simplefilter("ignore")
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("facts").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite(name))
    for rule in table:
        kind = getattr(gx.expectations, rule.expectation)
        suite.add_expectation(kind(**rule.arguments, meta={"rule": rule.name}))
    outcome = gx.ValidationDefinition(name=name, data=batch, suite=suite).run(
        batch_parameters={"dataframe": frame}, result_format={"result_format": "COMPLETE"}
    )
    found = {}
    for result in outcome.results:
        assert result.expectation_config is not None
        assert result.expectation_config.meta is not None
        rule_name = result.expectation_config.meta["rule"]
        if result.exception_info.get("raised_exception"):
            raise RuntimeError(f"rule {rule_name!r}: {result.exception_info['exception_message']}")
        found[rule_name] = (bool(result.success), dict(result.result))
    return [found[rule.name] for rule in table]


def _among(column: str, value: Any) -> tuple[str, dict[str, Any]]:
    return "ExpectColumnValuesToBeInSet", {"column": column, "value_set": [value]}


def _between(column: str, low: float | None, high: float | None) -> tuple[str, dict[str, Any]]:
    bounds = {"column": column, "min_value": low, "max_value": high}
    return "ExpectColumnValuesToBeBetween", bounds


def _contains(column: str, values: Sequence[str]) -> tuple[str, dict[str, Any]]:
    return "ExpectColumnDistinctValuesToContainSet", {"column": column, "value_set": list(values)}


def _counts(rows: int) -> tuple[str, dict[str, Any]]:
    return "ExpectTableRowCountToEqual", {"value": rows}


def _incomplete(_: Row) -> str:
    return "not as many rows of facts as samples were made: prepare again"


def _size(row: Row, side: int) -> str:
    width, height = int(row["width"]), int(row["height"])
    return f"{width}x{height} pixels, between {side} and {MAX_SIDE} a side are needed"


def _flat(row: Row) -> str:
    return f"flat picture: all levels between {int(row['low'])} and {int(row['high'])}"


def _duplicate(row: Row) -> str:
    return f"duplicate of {row['duplicate_of']}"


def _leak(row: Row) -> str:
    return f"split leak: the same picture is in {row['splits']} splits"


def _learned(row: Row) -> str:
    return f"held-out caption {row['caption']!r} is in the training split"


def _too_few(_: Row) -> str:
    return f"not every one of {', '.join(SPLITS)} has a sample: at least 3 different pictures are needed"


def _wordy(row: Row) -> str:
    return f"{row['words']} words in the caption, at most {MAX_WORDS}"


def _unknown(row: Row) -> str:
    return f"words outside the vocabulary: {row['unknown_words']}"


def _imbalance(row: Row) -> str:
    return f"class {row['caption']!r} has {row['share']:.2g} times the mean class's samples"
