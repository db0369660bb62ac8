"""A prepared dataset on disk: few large Parquet files, a manifest with a hash per sample, dataset.json last.

A shard's columns: `id` (sha256 of content and caption), the modality's own (`pixels`, raw uint8, H*W*C in row-major
order; `sound`, 16-bit samples; `record`, JSON), `caption`, `attributes` (one place a named attribute). Rows stand in
the order of their hashes, so a shard is a random sample; text keeps the order of its source.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.modalities import Modality, modality
from infra.storage import atomic_write, sha256_of

SPLITS: Final = ("train", "validation", "test")
SHARD_BYTES: Final = 64 << 20  # of content, before zstd


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What dataset.json says of all samples together."""

    name: str
    maker: str
    settings: Mapping[
        str, Any
    ]  # of the modality: image_size and channels; sample_rate and clip_samples
    vocabulary: Sequence[str] = ()
    max_words: int = 1
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    held_out: Sequence[str] = ()
    modality: str = "image"

    def document(self) -> dict[str, Any]:
        """Return it for JSON, the settings in their place among the rest."""
        rest = asdict(self)
        settings = rest.pop("settings")
        return {"name": self.name, "maker": self.maker, **settings, **rest}


def sample_id(content: bytes, caption: str) -> str:
    """Return the sha256, in hex, that names a sample."""
    return hashlib.sha256(content + b"\0" + caption.encode()).hexdigest()


def samples(
    contents: Sequence[bytes],
    captions: Sequence[str],
    values: Sequence[Sequence[str]],
    attributes: Mapping[str, Sequence[str]],
    sources: Sequence[str] | None = None,
    kind: Modality | None = None,
) -> pa.Table:
    """Return the rows that `write` takes, pictures if nothing else; `values` are the attributes of each sample.

    Raises:
        ValueError: a sample has no value of an attribute, or one that the attribute has not.
    """
    kind = kind or modality("image")
    known = {tuple(one): _places_of(one, attributes) for one in values}
    return pa.table(
        {
            "id": [sample_id(*pair) for pair in zip(contents, captions, strict=True)],
            kind.column: pa.array(contents, kind.kind),
            "caption": pa.array(captions, pa.string()),
            "attributes": pa.array([known[tuple(one)] for one in values], pa.list_(pa.int16())),
            "source": pa.array(sources or [""] * len(contents), pa.string()),
        }
    )


def _places_of(values: Sequence[str], attributes: Mapping[str, Sequence[str]]) -> list[int]:
    """Return, attribute by attribute, the place of a sample's value."""
    found = []
    for (name, known), value in zip(attributes.items(), values, strict=True):
        if value not in known:
            raise ValueError(f"{value!r} is no {name}; the values are {', '.join(known)}")
        found.append(list(known).index(value))
    return found


def write(
    folder: Path,
    header: Header,
    splits: Mapping[str, pa.Table],
    made: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Replace `folder` by the dataset; whoever finds its dataset.json finds all of it.

    `made` has the modality's settings, where they are more than the header repeats.
    """
    kind = modality(header.modality)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entries: dict[str, Any] = {}
    manifest = []
    for split in SPLITS:
        shards = []
        rows = splits.get(split)
        for number, (said, part) in enumerate(_by_size(rows, kind, shard_bytes)):
            path = folder / f"{split}-{number:05d}.parquet"
            write_table(path, part.drop_columns("source"))
            entry = {"file": path.name, "rows": len(part), "sha256": sha256_of(path)}
            shards.append(entry | said)
            manifest.append(_placed(part, split, path.name))
        entries[split] = {"rows": 0 if rows is None else len(rows), "shards": shards}
    write_table(folder / "manifest.parquet", pa.concat_tables(manifest))
    captions = sorted(
        {text for rows in splits.values() for text in rows["caption"].unique().to_pylist()}
    )
    document = {"format": 1, **header.document(), "captions": captions, "splits": entries}
    document |= kind.summary(splits["train"], header.settings if made is None else made)
    with atomic_write(folder / "dataset.json") as file:  # unsorted: attributes keep their order
        text = json.dumps(document, indent=1, allow_nan=False)
        file.write(text.encode() + b"\n")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file, atomically."""
    with atomic_write(path) as file:
        pq.write_table(table, file, compression="zstd")


def _by_size(
    rows: pa.Table | None, kind: Modality, limit: int
) -> Iterator[tuple[dict[str, str], pa.Table]]:
    """Yield shards with what is said of them: those of pictures of several sizes have one size each."""
    if rows is None or "size" not in rows.column_names:
        yield from (({}, part) for part in _parts(rows, kind, limit))
        return
    for size in sorted(rows["size"].unique().to_pylist()):
        own = rows.filter(pc.field("size") == size).drop_columns("size")
        yield from (({"size": size}, part) for part in _parts(own, kind, limit))


def _parts(rows: pa.Table | None, kind: Modality, limit: int) -> Iterator[pa.Table]:
    """Yield parts of as many rows as have `limit` bytes where all are as large as the largest."""
    if rows is None or not len(rows):
        return
    size = max(1, limit // max(1, pc.max(pc.binary_length(rows[kind.column])).as_py()))
    for first in range(0, len(rows), size):
        yield rows.slice(first, size)


def _placed(rows: pa.Table, split: str, shard: str) -> pa.Table:
    size = len(rows)
    return pa.table(
        {
            "id": rows["id"],
            "split": pa.array([split] * size, pa.string()),
            "shard": pa.array([shard] * size, pa.string()),
            "row": pa.array(range(size), pa.int32()),
            "source": rows["source"],
        }
    )
