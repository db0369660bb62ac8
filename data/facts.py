"""Facts about every sample, a row each: what the expectations judge and the shards are cut by.

`look` sees the samples, a batch at a time, in this process or spread by Ray Data over a cluster; both give the same
rows. `relate` sees all rows at once: duplicates, splits, classes. What is particular to pictures, text or sound is in
modalities/.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.makers.words import cut
from data.modalities import Modality, SampleError, modality
from data.modalities.image import told_of_sizes
from infra.settings import settings

SHARES: Final = {"train": 0.85, "validation": 0.05, "test": 0.10}
MEANS: Final = {
    "mean contrast (of 255)": ("std", ""),
    "mean motion (of 255)": ("motion", ""),
    "mean length": ("seconds", " s"),
    "mean loudness (of full scale)": ("rms", ""),
    "mean characters": ("characters", ""),
}
"""Means on the report, where the modality has the column: what it is called, the column, its unit."""
PROTECTED: Final = ("test", "validation", "train")
"""Of repeated samples that are left out, the one in the first of these splits is kept."""
LITTLE: Final = 8 << 20  # bytes of samples


def columns(kind: Modality) -> pa.Schema:
    """Return the columns of `look`: a modality's own facts among those that every sample has."""
    return pa.schema(
        [
            ("index", pa.int64()),
            ("file", pa.string()),
            ("problem", pa.string()),  # why it cannot be decoded; empty if it can
            ("decodes", pa.bool_()),
            ("bytes", pa.int64()),
            ("digest", pa.string()),  # sha256 of what is learned from: pixels, samples or text
            *kind.facts,
            ("caption", pa.string()),
            ("words", pa.int32()),
            ("unknown_words", pa.string()),
            ("split", pa.string()),
        ]
    )


def look(batch: pa.Table, made: Mapping[str, Any]) -> pa.Table:
    """Return the facts that one sample alone can give: it is decoded to its last byte."""
    kind, known = modality(made["modality"]), dict.fromkeys(made["vocabulary"])
    rows = [_look(row, kind, made) | _read(row["caption"], known) for row in batch.to_pylist()]
    return pa.Table.from_pylist(rows, columns(kind))


def _look(row: Mapping[str, Any], kind: Modality, made: Mapping[str, Any]) -> dict[str, Any]:
    facts = {key: row[key] for key in ("index", "file", "problem", "split")}
    facts |= {"bytes": len(row["content"]), "decodes": False}
    if row["problem"]:
        return facts
    try:
        return facts | {"decodes": True, **kind.look(row["content"], made)}
    except SampleError as error:
        return facts | {"problem": str(error)}


def _read(caption: str, known: Mapping[str, None]) -> dict[str, Any]:
    words = cut(caption, known)
    unknown = " ".join(dict.fromkeys(word for word in words if word not in known))
    return {"caption": caption, "words": len(words), "unknown_words": unknown}


def gather(parts: Sequence[Path], address: str | None, made: Mapping[str, Any]) -> pa.Table:
    """Return `look`'s rows of all parts in their order, from Ray Data where there is a cluster."""
    if address is None:
        found = [look(pq.read_table(part), made) for part in parts]
    else:
        found = list(_gather_by_ray(parts, address, made))
    return pa.concat_tables(found).sort_by("index")


def _gather_by_ray(
    parts: Sequence[Path], address: str, made: Mapping[str, Any]
) -> Iterator[pa.Table]:
    import ray
    from ray.data import DataContext, read_parquet

    from infra.stack.cluster import connect

    connect(address)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    samples = read_parquet([str(part.resolve()) for part in parts])
    looked = samples.map_batches(
        cast("Any", look),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        fn_kwargs={"made": dict(made)},
    )
    for reference in looked.to_arrow_refs():
        yield ray.get(reference).cast(columns(modality(made["modality"])))


def cluster(parts: Sequence[Path]) -> str | None:
    """Return the address of the Ray cluster at hand: the one that is set, else our own local one if it runs, else none.

    None, too, where the parts are so small that they are looked at here before Ray's workers had started. Somebody
    else's Ray that happens to hold the local port is left alone.
    """
    if sum(part.stat().st_size for part in parts) <= LITTLE:
        return None
    now = settings()
    if now.ray_address is not None:
        return now.ray_address
    from infra.stack import spec

    ours = next(part for part in spec.parts() if part.name == "ray")
    if ours.daemon is None or not ours.probe():
        return None
    for key, value in spec.environment().items():
        os.environ.setdefault(key, value)
    return ours.address


def relate(
    facts: pa.Table,
    held_out: Sequence[str],
    validation_rows: int | None,
    *,
    classed: bool,
    tolerant: bool = False,
    groups: Sequence[str] | None = None,
) -> pa.Table:
    """Return the facts with those that need all rows.

    `split`: the source's own, else by the hash of what is learned from, so equal samples never part; held-out captions
    are tested only. `duplicate_of`: the first file with the same content (and, for one file listed twice, the same
    caption). `left_out`: a repeated sample that is not learned from, where the modality is tolerant of some. `splits`:
    in how many splits the sample is. `share`: its class's count over the mean count. `held_out`: never trained on.
    `groups`: as of `give_splits`.
    """
    rows = facts.to_pylist()
    give_splits(rows, frozenset(held_out), validation_rows, groups)
    places: dict[str, set[str]] = {}
    classes = Counter(row["caption"] for row in rows)
    first: dict[Any, str] = {}
    kept = _kept(rows) if tolerant else {}
    for row in rows:
        row["left_out"] = kept.get(row["digest"], row) is not row
        row["duplicate_of"] = (
            kept[row["digest"]]["file"] if row["left_out"] else _duplicate_of(row, first, kept)
        )
        if not row["left_out"]:
            places.setdefault(row["digest"], set()).add(row["split"])
    for row in rows:
        row["splits"] = len(places[row["digest"]]) if row["digest"] else 1
        row["share"] = classes[row["caption"]] * len(classes) / len(rows) if classed else 1.0
        row["held_out"] = row["caption"] in held_out
    extra = [
        pa.field("duplicate_of", pa.string()),
        pa.field("left_out", pa.bool_()),
        pa.field("splits", pa.int32()),
        pa.field("share", pa.float64()),
        pa.field("held_out", pa.bool_()),
    ]
    return pa.Table.from_pylist(rows, pa.schema([*facts.schema, *extra]))


def _kept(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return which of equal samples is kept, by what they show."""
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (PROTECTED.index(row["split"]), row["index"])):
        if row["digest"]:
            found.setdefault(row["digest"], row)
    return found


def _duplicate_of(row: Mapping[str, Any], first: dict[Any, str], kept: Mapping[str, Any]) -> str:
    """Return the file seen first with this content; a file may be listed again with another caption."""
    if not row["digest"] or kept:
        return ""
    earlier = first.setdefault(row["digest"], row["file"])
    again = first.setdefault((row["digest"], row["file"], row["caption"]), str(row["index"]))
    return earlier if earlier != row["file"] or again != str(row["index"]) else ""


def give_splits(
    rows: Sequence[dict[str, Any]],
    held_out: frozenset[str] = frozenset(),
    validation_rows: int | None = None,
    groups: Sequence[str] | None = None,
) -> None:
    """Give every row a split, by its own digest alone where the source leaves that to us.

    A source that calls all rows train names no splits. Of one that names train and one more, the third is a share of
    the training rows: those with digests in the first part of their range, which is as large as the share. Other rows
    have a say only where there would be nothing in a split, or nothing to learn of one of the `groups`, a name a row.
    """
    named = {row["split"] for row in rows}
    ours = [row for row in rows if row["split"] in {None, "train"}]
    fixed = {row["digest"] for row in rows if row["split"] in {"validation", "test"}}
    fixed |= {row["digest"] for row in ours if row["caption"] in held_out}
    for row in ours:
        if row["split"] is None or named == {"train"}:
            kept = row["caption"] in held_out or not row["digest"]
            row["split"] = "test" if kept else split_of(row["digest"])
    training = [row for row in rows if row["split"] == "train" and row["digest"]]
    missing = [split for split in SHARES if split not in named]
    if validation_rows is not None:
        for row in sorted(training, key=lambda row: row["digest"])[:validation_rows]:
            row["split"] = "validation"
    elif len(missing) == 1:
        for row in training:
            if _place(row["digest"]) < SHARES[missing[0]]:
                row["split"] = missing[0]
    movable = {row["digest"] for row in ours if row["digest"]} - fixed
    _fill(rows, movable - _learned(rows, movable, groups or [""] * len(rows)))


def split_of(digest: str) -> str:
    """Return the split of a sample by the sha256 of what it shows: stable when others come or go."""
    place = _place(digest)
    if place < SHARES["train"]:
        return "train"
    return "validation" if place < SHARES["train"] + SHARES["validation"] else "test"


def _place(digest: str) -> float:
    """Return where in the range of all a digest is, in [0, 1)."""
    return int(digest[:13], 16) / 16**13


def _learned(rows: Sequence[dict[str, Any]], movable: set[str], groups: Sequence[str]) -> set[str]:
    """Have a row of each group in the training split, its least; returns the digests of these rows."""
    least: dict[str, tuple[bool, str]] = {}
    for row, group in zip(rows, groups, strict=True):
        learned = row["split"] == "train"
        if row["digest"] and (learned or row["digest"] in movable):
            found = (not learned, row["digest"])
            least[group] = min(found, least.get(group, found))
    digests = {digest for _, digest in least.values()}
    moved = digests & movable
    for row in rows:
        if row["digest"] in moved:
            row["split"] = "train"
    return digests


def _fill(rows: Sequence[dict[str, Any]], movable: set[str]) -> None:
    """Give an empty split a sample of another that has several, so that small sources have all three."""
    places: dict[str, set[str]] = {split: set() for split in SHARES}
    for row in rows:
        if row["digest"]:
            places[row["split"]].add(row["digest"])
    for split in ("test", "validation"):
        several = [there for there in places.values() if len(there) > 1 and there & movable]
        if places[split] or not several:
            continue
        last = max(several[0] & movable)
        several[0].remove(last)
        places[split].add(last)
        for row in rows:
            if row["digest"] == last:
                row["split"] = split


def summary(facts: pa.Table) -> dict[str, Any]:
    """Return the few numbers that a report begins with, by what they are called."""
    splits = Counter(facts["split"].to_pylist())
    megabytes = int(np.sum(facts["bytes"].to_numpy())) / 2**20
    found: dict[str, Any] = {
        "samples": f"{len(facts):,}",
        **{name: f"{splits[name]:,}" for name in SHARES},
        "encoded": f"{megabytes:.1f} MiB",
    }
    if any(facts["caption"].to_pylist()):
        found["different captions"] = f"{len(facts['caption'].unique()):,}"
    if left_out := sum(facts["left_out"].to_pylist()):
        found["repeated, left out"] = f"{left_out:,}"
    if "cropped" in facts.column_names:
        found["pictures by size"] = told_of_sizes(facts)
    for name, (column, unit) in MEANS.items():
        if column in facts.column_names:
            values = [value for value in facts[column].to_pylist() if value is not None]
            found[name] = f"{float(np.mean(values)) if values else 0:,.2f}{unit}"
    return found
