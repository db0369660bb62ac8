"""A prepared dataset on disk: few large Parquet files, a manifest with a hash per sample, dataset.json last.

A shard's columns: `id` (sha256 of pixels and caption), `pixels` (raw uint8, H*W*C in row-major order), `caption`,
`attributes` (one place a named attribute). Rows stand in the order of their hashes, so a shard is a random sample.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import atomic_write, sha256_of

SPLITS: Final = ("train", "validation", "test")
SHARD_BYTES: Final = 64 << 20  # of pixels, before zstd


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What dataset.json says of all samples together."""

    name: str
    maker: str
    image_size: int
    channels: int
    vocabulary: Sequence[str] = ()
    max_words: int = 1
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    held_out: Sequence[str] = ()
    modality: str = "image"


def sample_id(pixels: bytes, caption: str) -> str:
    """Return the sha256, in hex, that names a sample."""
    return hashlib.sha256(pixels + b"\0" + caption.encode()).hexdigest()


def samples(
    pixels: Sequence[bytes],
    captions: Sequence[str],
    attributes: Mapping[str, Sequence[str]],
    sources: Sequence[str] | None = None,
) -> pa.Table:
    """Return the rows that `write` takes; a caption's attributes are read off its words.

    Raises:
        ValueError: a caption has no value of an attribute.
    """
    places = {caption: places_of(caption, attributes) for caption in dict.fromkeys(captions)}
    return pa.table(
        {
            "id": [sample_id(*pair) for pair in zip(pixels, captions, strict=True)],
            "pixels": pa.array(pixels, pa.binary()),
            "caption": pa.array(captions, pa.string()),
            "attributes": pa.array([places[caption] for caption in captions], pa.list_(pa.int16())),
            "source": pa.array(sources or [""] * len(pixels), pa.string()),
        }
    )


def places_of(caption: str, attributes: Mapping[str, Sequence[str]]) -> list[int]:
    """Return, for each attribute, the place of the value that is the caption or one of its words."""
    known = {caption, *caption.split()}
    found = []
    for name, values in attributes.items():
        place = next((place for place, value in enumerate(values) if value in known), None)
        if place is None:
            raise ValueError(
                f"caption {caption!r} has no {name}; the values are {', '.join(values)}"
            )
        found.append(place)
    return found


def write(
    folder: Path, header: Header, splits: Mapping[str, pa.Table], shard_bytes: int = SHARD_BYTES
) -> None:
    """Replace `folder` by the dataset; whoever finds its dataset.json finds all of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entries: dict[str, Any] = {}
    manifest = []
    for split in SPLITS:
        shards = []
        rows = splits.get(split)
        for number, part in enumerate(_parts(rows, header, shard_bytes)):
            path = folder / f"{split}-{number:05d}.parquet"
            write_table(path, part.drop_columns("source"))
            shards.append({"file": path.name, "rows": len(part), "sha256": sha256_of(path)})
            manifest.append(_places(part, split, path.name))
        entries[split] = {"rows": 0 if rows is None else len(rows), "shards": shards}
    write_table(folder / "manifest.parquet", pa.concat_tables(manifest))
    captions = sorted(
        {text for rows in splits.values() for text in rows["caption"].unique().to_pylist()}
    )
    document = {"format": 1, **asdict(header), "captions": captions, "splits": entries}
    document |= moments(splits["train"], header)
    with atomic_write(folder / "dataset.json") as file:  # unsorted: attributes keep their order
        file.write(json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file, atomically."""
    with atomic_write(path) as file:
        pq.write_table(table, file, compression="zstd")


def moments(rows: pa.Table, header: Header) -> dict[str, list[float]]:
    """Return {"mean", "std"}, in [0, 1], a number a channel, over the rows' pixels."""
    count, sums = 0, np.zeros((2, header.channels))
    for part in _parts(rows, header, SHARD_BYTES // 8):
        x = pixels_of(part).reshape(-1, header.channels).astype(np.float32) / 255
        count += len(x)
        sums += x.sum(0, dtype=np.float64), np.square(x).sum(0, dtype=np.float64)
    mean, square = sums / max(1, count)
    std = np.sqrt(np.maximum(square - np.square(mean), 0))
    return {"mean": mean.round(6).tolist(), "std": std.round(6).tolist()}


def pixels_of(rows: pa.Table) -> npt.NDArray[np.uint8]:
    """Return the rows' bytes one after the other, without a copy."""
    column = rows["pixels"].combine_chunks()
    _, offsets, content = column.buffers()
    if not len(column):
        return np.zeros(0, np.uint8)
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(content, np.uint8)[ends[0] : ends[-1]]


def _parts(rows: pa.Table | None, header: Header, limit: int) -> Iterator[pa.Table]:
    size = max(1, limit // (header.image_size**2 * header.channels))
    if rows is not None:
        for first in range(0, len(rows), size):
            yield rows.slice(first, size)


def _places(rows: pa.Table, split: str, shard: str) -> pa.Table:
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
