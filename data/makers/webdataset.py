"""A user's own captioned pictures in WebDataset's layout: tar files of KEY.jpg beside KEY.txt or KEY.json.

A key is a member's name up to its first dot after the last slash. The caption is the text of `.txt`, or `text` or
`caption` of `.json`. Archives that begin with train, validation or test are those splits; of others the split is by
hash. Members are read inside their archive and never unpacked; what is no file is left out. The
`webdataset` package decodes by default what may be pickled: the layout is kept, the reader is not.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from data.makers import Made, MakerError, Sample
from data.makers.captions import CaptionedEntry, captioned, sample
from data.makers.files import MAX_BYTES, split_of
from infra.documents import DocumentError, parse_json

PICTURES: Final = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
LONGEST: Final = 1 << 16  # bytes of a caption's member


class Config(CaptionedEntry):
    """The entry of params.yaml."""

    maker: Literal["webdataset"]


def made(config: Config, project: Path) -> Made:
    """Return the pictures of the folder's archives, in the order of their names.

    Raises:
        MakerError: no folder, no archive or one that cannot be read, a caption that is none, or a picture without one.
    """
    folder = project / config.path
    archives = sorted(folder.glob("*.tar"))
    if not archives:
        raise MakerError(
            f"{folder} has no .tar files: give the folder of your WebDataset with --path"
        )
    captions = [caption for archive in archives for caption in _captions(archive).values()]
    if not captions:
        raise MakerError(f"{archives[0]} has no captions: put KEY.txt or KEY.json beside KEY.jpg")

    def pictures(classed: bool) -> Iterator[Sample]:
        for archive in archives:
            told = _captions(archive)
            for name, found in _pictures(archive):
                key, _ = _parted(name)
                file = f"{archive.name}/{name}"
                said = told.get(key, "")
                yield sample(file, found, said, classed=classed, split=split_of(archive))

    return captioned(config, captions, pictures)


def _captions(archive: Path) -> dict[str, str]:
    """Return the captions of an archive by their keys."""
    found: dict[str, str] = {}
    for member, read in _members(archive):
        key, kind = _parted(member.name)
        if kind not in {"txt", "json"}:
            continue
        where = f"{archive}: {member.name}"
        if member.size > LONGEST:
            raise MakerError(f"{where} has {member.size} bytes, a caption has at most {LONGEST}")
        caption = _text(read(), where) if kind == "txt" else _document(read(), where)
        if caption is None:
            continue
        if key in found:
            raise MakerError(f"{where}: {key} has two captions")
        found[key] = caption
    return found


def _document(content: bytes, where: str) -> str | None:
    """Return what a JSON member says of its picture; None where it says something else."""
    try:
        row = parse_json(content, where)
    except DocumentError as error:
        raise MakerError(str(error)) from None
    caption = row.get("text", row.get("caption")) if isinstance(row, dict) else None
    if not isinstance(caption, str | None):
        raise MakerError(f"{where}: `text` must be text, got {caption!r:.80}")
    return caption


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MakerError(f"{where} is not UTF-8: {error}") from None


def _pictures(archive: Path) -> Iterator[tuple[str, tuple[bytes, str]]]:
    """Yield every picture's name, with its bytes or why there are none."""
    for member, read in _members(archive):
        if _parted(member.name)[1] in PICTURES:
            large = member.size > MAX_BYTES
            why = f"{member.size} bytes, at most {MAX_BYTES}" if large else ""
            content = b"" if large else read()
            yield member.name, (content, why or ("" if content else "empty file"))


def _members(archive: Path) -> "Iterator[tuple[tarfile.TarInfo, Reader]]":
    """Yield the files of an archive in their order, each with what reads it."""
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                if member.isfile():
                    yield member, Reader(archive, tar, member)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise MakerError(f"cannot read {archive}: {error}") from None


class Reader:
    """Reads one member of an archive."""

    def __init__(self, archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        self._archive, self._tar, self._member = archive, tar, member

    def __call__(self) -> bytes:
        """Return its bytes.

        Raises:
            MakerError: the archive is cut short in it.
        """
        try:
            file = self._tar.extractfile(self._member)
            return b"" if file is None else file.read()
        except (tarfile.TarError, OSError, EOFError) as error:
            raise MakerError(f"cannot read {self._archive}: {error}") from None


def _parted(name: str) -> tuple[str, str]:
    """Return a member's key and what it is of."""
    folder, slash, last = name.rpartition("/")
    key, _, kinds = last.partition(".")
    return f"{folder}{slash}{key}", kinds.rpartition(".")[2].lower()
