"""A user's own captioned clips, in a folder: MP4, MOV, WebM, MKV, AVI, GIF or WebP files, listed as pictures are.

Each file is brought to the frame rate and the size of the dataset and cut into clips of as many frames as asked, one
behind the other; what is left at its end is shorter and left out. Clips of one file stay in one split, so that none is
tested whose neighbour was learned, unless there are too few files for that. What is wrong with a file becomes a fact
about it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field

from data.makers import ClipEntry, Made, Sample, Split, clips_made
from data.makers.captions import told_by
from data.makers.files import check_there, in_folders, read_file
from data.makers.folder import read_captions
from data.makers.words import normal
from data.modalities.clip import Found, clip_bytes
from infra.media.clips import Clip, ClipError, decode

LEAST_FILES: Final = 3  # before files are split whole
SLACK: Final = 1e-3  # frames: a tick that is so near counts


class Config(ClipEntry):
    """The entry of params.yaml."""

    maker: Literal["clips"]
    frame_rate: Annotated[float, Field(gt=0, le=120)] = 8
    pieces: Annotated[int, Field(ge=32, le=65_536)] | None = None  # as of captioned pictures


def made(config: Config, project: Path) -> Made:
    """Return the clips of the files that the folder's list names.

    Raises:
        MakerError: no folder, no list, a line of it that cannot be used, or a file that is not there (named).
    """
    folder = project / config.path
    captions = read_captions(folder)
    check_there(folder, (file for file, _ in captions))
    classes, vocabulary = told_by((caption for _, caption in captions), config.pieces)

    def clips() -> Iterator[Sample]:
        root = folder.resolve()
        splits = splits_of(root, [file for file, _ in captions])
        for file, caption in captions:
            said = normal(caption)
            attributes = (said,) if classes else ()
            for name, content, problem in _cut(file, read_file(root, file), config):
                yield Sample(name, content, said, splits.get(file), problem, attributes)

    attributes = {"caption": classes} if classes else {}
    return clips_made(clips(), config, channels=3, attributes=attributes, vocabulary=vocabulary)


def splits_of(root: Path, files: Sequence[str]) -> Mapping[str, Split]:
    """Return the split of each file: its folder's, or by the hash of its bytes where there are three different ones."""
    from data.facts import give_splits

    digests = [hashlib.sha256(read_file(root, file)[0]).hexdigest() for file in files]
    rows: list[dict[str, Any]] = [
        {"digest": digest, "caption": "", "split": split}
        for digest, split in zip(digests, in_folders(files), strict=True)
    ]
    if len(set(digests)) >= LEAST_FILES:
        give_splits(rows)
    return {file: row["split"] for file, row in zip(files, rows, strict=True) if row["split"]}


def _cut(file: str, found: tuple[bytes, str], config: Config) -> Iterator[tuple[str, bytes, str]]:
    """Yield the clips of a file: what they are called, their bytes, or why there are none."""
    content, problem = found
    try:
        if problem:
            raise ClipError(problem)
        clip = decode(content, image_size=config.image_size)
        if clip.uneven:
            raise ClipError("its frames stand at uneven times: write it anew at a constant rate")
        if clip.turned:
            raise ClipError(
                f"to be turned by {clip.turned} degrees, says its header: write it anew, upright"
            )
    except ClipError as error:
        yield file, b"", str(error)
        return
    frames = _at_rate(clip, config.frame_rate)
    count = max(1, len(frames) // config.frames)
    for number in range(count):
        part = frames[number * config.frames : (number + 1) * config.frames]
        one = Found(clip.frames[part], clip.width, clip.height, clip.frame_rate)
        yield f"{file}#{number}" if count > 1 else file, clip_bytes(one), ""


def _at_rate(clip: Clip, rate: float) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return which frame is shown at each tick of a rate; all of them where the file has fewer."""
    step = max(1.0, clip.frame_rate / rate)
    count = int(len(clip.frames) / step + SLACK)
    return (np.arange(max(1, count)) * step + SLACK).astype(np.int64).clip(0, len(clip.frames) - 1)
