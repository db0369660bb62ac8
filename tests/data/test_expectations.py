import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data import report
from data.expectations import Verdict, judge, rules, write_quarantine
from data.facts import columns, relate, summary
from data.modalities import modality

COLUMNS = columns(modality("image"))

MADE: dict[str, Any] = {
    "modality": "image",
    "rows": [25, 15],
    "image_size": 8,
    "captioned": True,
    "attributes": [["digit", ["zero", "one"]]],
}


def good(index: int) -> dict[str, Any]:
    return {
        "index": index,
        "file": f"pictures/{index:03d}.png",
        "problem": "",
        "decodes": True,
        "width": 8,
        "height": 8,
        "mode": "L",
        "bytes": 100,
        "low": 0,
        "high": 255,
        "mean": 100.0,
        "std": 50.0,
        "digest": f"{index * 0x1234567 % 2**32:08x}" * 8,
        "caption": ("zero", "one")[index % 2],
        "words": 1,
        "unknown_words": "",
        "split": None,
    }


def verdict(*changes: tuple[int, dict[str, Any]], related: bool = True, **made: Any) -> Verdict:
    """Judge 40 good rows after the changes: before duplicates and splits are found, or after."""
    rows = [good(index) for index in range(40)]
    if related:
        for index, change in changes:
            rows[index] |= change
    facts = relate(pa.Table.from_pylist(rows, COLUMNS), ["three"], None, classed=True)
    if not related:
        after = facts.to_pylist()
        for index, change in changes:
            after[index] |= change
        facts = pa.Table.from_pylist(after, facts.schema)
    return judge("digits", facts, {**MADE, **made})


BLIND = {"decodes": False, "width": None, "height": None, "low": None, "high": None, "std": None}


@pytest.mark.parametrize(
    ("rule", "related", "change", "reason"),
    [
        (
            "decodes fully",
            True,
            {**BLIND, "digest": None, "problem": "truncated JPEG (cannot be decoded fully)"},
            "truncated JPEG (cannot be decoded fully)",
        ),
        ("wide enough", True, {"width": 7}, "7x8 pixels, between 8 and 4096 a side are needed"),
        ("high enough", True, {"height": 7}, "8x7 pixels, between 8 and 4096 a side are needed"),
        (
            "not flat",
            True,
            {"std": 0.0, "low": 9, "high": 9},
            "flat picture: all levels between 9 and 9",
        ),
        (
            "not flat",
            True,
            {"std": 0.2, "low": 9, "high": 90},
            "flat picture: no channel's levels spread by more than 0.20 of 255",
        ),
        ("levels in range", True, {"high": 0}, "flat picture: all levels between 0 and 0"),
        (
            "no duplicates",
            True,
            {"digest": good(3)["digest"]},
            "duplicate of pictures/003.png",
        ),
        (
            "no split leak",
            False,
            {"splits": 2},
            "split leak: the same picture is in 2 splits",
        ),
        (
            "held-out captions stay out of training",
            False,
            {"caption": "three", "held_out": True, "split": "train"},
            "held-out caption 'three' is in the training split",
        ),
        ("caption present", True, {"caption": "", "words": 0}, "empty caption"),
        ("caption short enough", True, {"words": 65}, "65 words in the caption, at most 64"),
        (
            "caption in vocabulary",
            True,
            {"unknown_words": "thre"},
            "words outside the vocabulary: thre",
        ),
        (
            "classes in balance",
            False,
            {"share": 0.05},
            "class 'one' has 0.05 times the mean class's samples",
        ),
    ],
)
def test_every_expectation_can_be_broken_and_names_the_row(
    rule: str, related: bool, change: dict[str, Any], reason: str
) -> None:
    found = verdict((7, change), related=related)
    assert not found.ok
    assert rule in {check.rule for check in found.checks if not check.ok}
    assert f"pictures/007.png: {reason}" in found.lines()
    assert any(line.startswith(f"expectation {rule!r} is broken by 1 of") for line in found.lines())


def test_a_split_without_samples_is_refused() -> None:
    facts = relate(pa.Table.from_pylist([good(0), good(1)], COLUMNS), ["three"], None, classed=True)
    found = judge("few", facts, MADE)
    assert "expectation 'every split has samples' is not met" in found.lines()  # no -1 samples
    assert any("at least 3 different pictures are needed" in line for line in found.lines())


def test_facts_of_only_some_samples_are_refused() -> None:
    found = verdict(rows=[25, 16])
    assert not found.ok
    assert any("not as many rows of facts as samples" in line for line in found.lines())


def test_good_pictures_are_accepted_by_every_rule() -> None:
    found = verdict()
    assert found.ok
    assert [check.rule for check in found.checks] == [rule.name for rule in rules(MADE)]
    assert found.faults == ()


def test_pictures_without_captions_are_not_asked_for_any() -> None:
    change = {"caption": "", "words": 0}
    assert verdict(*((i, change) for i in range(40)), captioned=False, attributes=[]).ok


def test_long_lists_are_cut_in_the_message_and_whole_in_the_quarantine(tmp_path: Path) -> None:
    found = verdict(*((i, {"unknown_words": "<b>x</b>"}) for i in range(30)))
    assert found.lines()[-1] == "... and 10 more"
    path = tmp_path / "quarantine" / "digits.csv"
    write_quarantine(path, found)
    rows = list(csv.reader(path.read_text().splitlines()))
    assert rows[0] == ["file", "rule", "reason"]
    assert rows[1][:2] == ["pictures/000.png", "caption in vocabulary"]
    assert len(rows) == 31
    write_quarantine(path, verdict())
    assert not path.exists()


def test_the_report_is_a_page_that_escapes_what_users_wrote(tmp_path: Path) -> None:
    found = verdict((5, {"unknown_words": "<script>alert(1)</script>"}))
    table = relate(
        pa.Table.from_pylist([good(i) for i in range(40)], COLUMNS), [], None, classed=True
    )
    path = tmp_path / "reports" / "digits.html"
    pictures = [{"picture": b"\x89PNG", "caption": "<i>one</i>"}]
    report.write(path, found, summary(table), pictures, "data/quarantine/digits.csv")
    page = path.read_text()
    assert "refused" in page
    assert "pictures/005.png" in page
    assert "ExpectColumnValuesToBeInSet(unknown_words)" in page
    assert "<script>" not in page
    assert "<i>one" not in page
