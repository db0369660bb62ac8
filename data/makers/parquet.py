"""A user's own captioned pictures in Parquet, as Hugging Face's `datasets` writes and its hub has them.

A column of pictures, a struct of `bytes` and `path` or the bytes alone, and one of captions. Files that begin with
train, validation or test are those splits; of others the split is by hash. The `datasets` library reads the same files,
but takes seconds to import and keeps a cache of its own: the format is kept, the reader is not (a test compares them).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data.makers import Made, MakerError, Sample
from data.makers.captions import CaptionedEntry, captioned, sample
from data.makers.files import MAX_BYTES, split_of

CAPTIONS: Final = ("text", "caption")
ROWS: Final = 256  # read at a time


class Config(CaptionedEntry):
    """The entry of params.yaml."""

    maker: Literal["parquet"]
    image: str = "image"  # the column of pictures
    caption: str | None = None  # that of captions; None: `text` or `caption`


def made(config: Config, project: Path) -> Made:
    """Return the pictures of the folder's files, in the order of their names.

    Raises:
        MakerError: no folder, no file or one that cannot be read, that has no such columns (those there are named), or
            captions that are no text.
    """
    folder = project / config.path
    files = sorted({*folder.glob("*.parquet"), *folder.glob("data/*.parquet")})
    if not files:
        raise MakerError(f"{folder} has no .parquet files: give your dataset's folder with --path")
    columns = {file: _columns(file, config) for file in files}
    captions = (text for file in files for (text,) in _rows(file, [columns[file][1]]))

    def pictures(classed: bool) -> Iterator[Sample]:
        for file in files:
            for number, (image, text) in enumerate(_rows(file, [*columns[file]])):
                name = f"{file.relative_to(folder).as_posix()}:{number}"
                said, split = text or "", split_of(file)
                yield sample(name, _picture(image), said, classed=classed, split=split)

    return captioned(config, (text or "" for text in captions), pictures)


def _columns(file: Path, config: Config) -> tuple[str, str]:
    """Return the columns of pictures and of captions."""
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise MakerError(f"cannot read {file}: {error}") from None
    known = schema.names
    wanted = (config.caption,) if config.caption else CAPTIONS
    caption = next((name for name in wanted if name in known), None)
    if config.image not in known or caption is None:
        missing = " or ".join(wanted) if config.image in known else config.image
        raise MakerError(f"{file} has no column {missing}; it has {', '.join(known)}")
    if not _is_text(kind := schema.field(caption).type):
        raise MakerError(
            f"{file}: the captions in column {caption} are of type {kind}, not text; it has {', '.join(known)}"
        )
    return config.image, caption


def _is_text(kind: pa.DataType) -> bool:
    """Return whether a column has texts, or nothing at all; of Hugging Face's class labels it has numbers."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(text or pa.types.is_string_view(kind) or pa.types.is_null(kind))


def _rows(file: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    try:
        for batch in pq.ParquetFile(file).iter_batches(ROWS, columns=columns):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    except (OSError, ValueError) as error:  # ArrowInvalid, and of a text that is no UTF-8
        raise MakerError(f"cannot read {file}: {error}") from None


def _picture(value: Any) -> tuple[bytes, str]:
    """Return a picture's bytes, or none and the reason."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes) or not content:
        return b"", "no bytes: a path outside of the file is not followed"
    large = len(content) > MAX_BYTES
    return (b"", f"{len(content)} bytes, at most {MAX_BYTES}") if large else (content, "")
