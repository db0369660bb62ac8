"""What a dataset must be like: Great Expectations suites over the facts table, as code.

A rule is one expectation on one column and the sentence that explains a row that breaks it. The suite is made of the
rules that hold for the dataset at hand; its verdict names rules and rows.
"""

import csv
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from data.modalities import modality
from data.rules import Row, Rule, among, between, contains, counts
from data.shards import SPLITS
from infra.imports import at_rest
from infra.storage import atomic_write

MAX_WORDS: Final = 64
SHOWN: Final = 20  # rows named in a message; the quarantine file has all


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
            f"expectation {check.rule!r} is "
            + (
                f"broken by {check.broken} of {check.checked} samples"
                if check.broken
                else "not met"
            )
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
    """Return the rules for a dataset as its maker described it: those of every dataset and its modality's own."""
    kind = modality(made["modality"])
    few = partial(_too_few, noun=kind.noun)
    found = [
        Rule("every sample has facts", *counts(sum(made["rows"])), _incomplete),
        Rule("decodes fully", *among("decodes", True), lambda row: str(row["problem"])),
        *kind.rules(made),
        Rule("no duplicates", *among("duplicate_of", "", 1 - kind.repeats), _duplicate),
        Rule("no split leak", *between("splits", 1, 1), partial(_leak, noun=kind.noun)),
        Rule("held-out captions stay out of training", *among("learned", False), _learned),
        Rule("every split has samples", *contains("kept_split", SPLITS), few),
    ]
    if made["captioned"]:
        found += [
            Rule("caption present", *between("words", 1, None), lambda _: "empty caption"),
            Rule("caption short enough", *between("words", None, MAX_WORDS), _wordy),
            Rule("caption in vocabulary", *among("unknown_words", ""), _unknown),
        ]
    if made["captioned"] and made["attributes"]:
        found.append(Rule("classes in balance", *between("share", 0.1, 10), _imbalance))
    return found


def judge(name: str, facts: pa.Table, made: Mapping[str, Any]) -> Verdict:
    """Return Great Expectations' verdict on a facts table."""
    table = rules(made)
    frame = facts.to_pandas()
    frame["learned"] = frame["held_out"] & (frame["split"] == "train")
    frame["kept_split"] = frame["split"].where(~frame["left_out"])
    checks, faults = [], []
    for rule, (ok, result) in zip(table, _run(name, frame, table), strict=True):
        places = result.get("unexpected_index_list") or ()
        rows = frame.iloc[list(places)].to_dict("records")
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
    # its optional imports warn of packages that nobody needs
    with warnings.catch_warnings(), at_rest():
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


def _incomplete(_: Row) -> str:
    return "not as many rows of facts as samples were made: prepare again"


def _duplicate(row: Row) -> str:
    return f"duplicate of {row['duplicate_of']}"


def _leak(row: Row, noun: str) -> str:
    return f"split leak: the same {noun} is in {row['splits']} splits"


def _learned(row: Row) -> str:
    return f"held-out caption {row['caption']!r} is in the training split"


def _too_few(_: Row, noun: str) -> str:
    return (
        f"not every one of {', '.join(SPLITS)} has a sample: at least 3 different {noun}s are needed, and train"
        " among the splits where a source names them"
    )


def _wordy(row: Row) -> str:
    return f"{row['words']} words in the caption, at most {MAX_WORDS}"


def _unknown(row: Row) -> str:
    return f"words outside the vocabulary: {row['unknown_words']}"


def _imbalance(row: Row) -> str:
    return f"class {row['caption']!r} has {row['share']:.2g} times the mean class's samples"
