"""Facts about every sample, a row each: what the expectations judge and the shards are cut by.

`look` sees the pictures, a batch at a time, in this process or spread by Ray Data over a cluster; both give the same
rows. `relate` sees all rows at once: duplicates, splits, classes.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.pictures import PictureError, decode
from infra.settings import settings

SHARES: Final = {"train": 0.85, "validation": 0.05, "test": 0.10}
COLUMNS: Final = pa.schema(
    [
        ("index", pa.int64()),
        ("file", pa.string()),
        ("problem", pa.string()),  # why it cannot be decoded; empty if it can
        ("decodes", pa.bool_()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("bytes", pa.int64()),
        ("low", pa.int16()),  # of the levels 0 to 255, after cropping and resizing
        ("high", pa.int16()),
        ("mean", pa.float64()),
        ("std", pa.float64()),
        ("picture", pa.string()),  # sha256 of the pixels
        ("caption", pa.string()),
        ("words", pa.int32()),
        ("unknown_words", pa.string()),
        ("split", pa.string()),
    ]
)


def look(batch: pa.Table, *, image_size: int, channels: int, vocabulary: Sequence[str]) -> pa.Table:
    """Return the facts that one sample alone can give: it is decoded to its last byte."""
    known = frozenset(vocabulary)
    rows = [
        _look(row, image_size, channels) | _read(row["caption"], known) for row in batch.to_pylist()
    ]
    return pa.Table.from_pylist(rows, COLUMNS)


def _look(row: Mapping[str, Any], image_size: int, channels: int) -> dict[str, Any]:
    facts = {key: row[key] for key in ("index", "file", "problem", "split")}
    facts |= {"bytes": len(row["content"]), "decodes": False}
    if row["problem"]:
        return facts
    try:
        found = decode(row["content"], image_size, channels)
    except PictureError as error:
        return facts | {"problem": str(error)}
    x = found.pixels
    return facts | {
        "decodes": True,
        "width": found.width,
        "height": found.height,
        "mode": found.mode,
        "low": int(x.min()),
        "high": int(x.max()),
        "mean": float(x.mean()),
        "std": float(x.std()),
        "picture": hashlib.sha256(x.tobytes()).hexdigest(),
    }


def _read(caption: str, known: frozenset[str]) -> dict[str, Any]:
    words = caption.split()
    unknown = " ".join(dict.fromkeys(word for word in words if word not in known))
    return {"caption": caption, "words": len(words), "unknown_words": unknown}


def gather(parts: Sequence[Path], address: str | None, **made: Any) -> pa.Table:
    """Return `look`'s rows of all parts in their order, from Ray Data where there is a cluster."""
    if address is None:
        found = [look(pq.read_table(part), **made) for part in parts]
    else:
        found = list(_gather_by_ray(parts, address, made))
    return pa.concat_tables(found).sort_by("index")


def _gather_by_ray(
    parts: Sequence[Path], address: str, made: Mapping[str, Any]
) -> Iterator[pa.Table]:
    import ray
    from ray.data import DataContext, read_parquet

    from infra.cluster import connect

    connect(address)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    pictures = read_parquet([str(part.resolve()) for part in parts])
    looked = pictures.map_batches(
        cast("Any", look),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        fn_kwargs=dict(made),
    )
    for reference in looked.to_arrow_refs():
        yield ray.get(reference).cast(COLUMNS)


def cluster() -> str | None:
    """Return the address of the Ray cluster at hand: the one that is set, else our own local one if it runs, else none.

    Somebody else's Ray that happens to hold the local port is left alone.
    """
    now = settings()
    if now.ray_address is not None:
        return now.ray_address
    from infra.parts import environment, parts

    ours = next(part for part in parts() if part.name == "ray")
    if ours.daemon is None or not ours.probe():
        return None
    for key, value in environment().items():
        os.environ.setdefault(key, value)
    return ours.address


def relate(
    facts: pa.Table, held_out: Sequence[str], validation_rows: int | None, classed: bool
) -> pa.Table:
    """Return the facts with those that need all rows.

    `split`: the source's own, else by the hash of the pixels, so equal pictures never part; held-out captions are
    tested only. `duplicate_of`: the first file with the same pixels (and, for one file listed twice, the same caption).
    `splits`: in how many splits the picture is. `share`: its class's count over the mean count. `held_out`: never
    trained on.
    """
    rows = facts.to_pylist()
    _split(rows, frozenset(held_out), validation_rows)
    places: dict[str, set[str]] = {}
    for row in rows:
        places.setdefault(row["picture"], set()).add(row["split"])
    classes = Counter(row["caption"] for row in rows)
    first: dict[Any, str] = {}
    for row in rows:
        row["duplicate_of"] = _duplicate_of(row, first)
        row["splits"] = len(places[row["picture"]]) if row["picture"] else 1
        row["share"] = classes[row["caption"]] * len(classes) / len(rows) if classed else 1.0
        row["held_out"] = row["caption"] in held_out
    extra = [
        ("duplicate_of", pa.string()),
        ("splits", pa.int32()),
        ("share", pa.float64()),
        ("held_out", pa.bool_()),
    ]
    return pa.Table.from_pylist(rows, pa.schema([*COLUMNS, *extra]))


def _duplicate_of(row: Mapping[str, Any], first: dict[Any, str]) -> str:
    """Return the file seen first with these pixels; a file may be listed again with another caption."""
    if not row["picture"]:
        return ""
    earlier = first.setdefault(row["picture"], row["file"])
    again = first.setdefault((row["picture"], row["file"], row["caption"]), str(row["index"]))
    return earlier if earlier != row["file"] or again != str(row["index"]) else ""


def _split(
    rows: list[dict[str, Any]], held_out: frozenset[str], validation_rows: int | None
) -> None:
    own = any(row["split"] for row in rows)
    for row in rows:
        if not own:
            kept = row["caption"] in held_out or not row["picture"]
            row["split"] = "test" if kept else split_of(row["picture"])
    if validation_rows is not None:
        training = [row for row in rows if row["split"] == "train" and row["picture"]]
        for row in sorted(training, key=lambda row: row["picture"])[:validation_rows]:
            row["split"] = "validation"
    if not own:
        _fill(rows)


def split_of(picture: str) -> str:
    """Return the split of a picture by the sha256 of its pixels: stable when others come or go."""
    place = int(picture[:13], 16) / 16**13
    if place < SHARES["train"]:
        return "train"
    return "validation" if place < SHARES["train"] + SHARES["validation"] else "test"


def _fill(rows: list[dict[str, Any]]) -> None:
    """Give an empty split the training picture nearest to it, so that small folders have all three."""
    for split in ("test", "validation"):
        if any(row["split"] == split and row["picture"] for row in rows):
            continue
        training = {row["picture"] for row in rows if row["split"] == "train"}
        if len(training) < 2:
            return
        last = max(training)
        for row in rows:
            if row["picture"] == last:
                row["split"] = split


def summary(facts: pa.Table) -> dict[str, Any]:
    """Return the few numbers that a report begins with."""
    splits = Counter(facts["split"].to_pylist())
    std = np.array([value for value in facts["std"].to_pylist() if value is not None])
    return {
        "samples": len(facts),
        "captions": len(facts["caption"].unique()),
        "splits": {name: splits[name] for name in SHARES},
        "bytes": int(np.sum(facts["bytes"].to_numpy())),
        "contrast": round(float(std.mean()), 1) if std.size else 0.0,
    }
