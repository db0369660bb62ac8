"""Batches of a prepared dataset for one rank: a pure function of the arguments and the step, so resumable anywhere.

Shape letters: N rows of a split, B rows of a batch, C channels, H and W pixels, T words or samples, A attributes.
A seeded order of every epoch (`data.reading.order`) is laid end to end; step s of a global batch G takes the places s*G
to (s+1)*G - 1, and rank r the r-th B of them. So ranks are disjoint, an epoch holds every row once, and the union is
any world's. Where pictures have several sizes, each size has such an order of its own, and a step is one size's turn.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from data.modalities.text import Record
from data.reading.captioned import Captioned
from data.reading.examples import Examples
from data.reading.mapped import DatasetError
from data.reading.order import Order
from data.reading.readers import open_split
from data.reading.sources import Encode, Learner, Options
from data.reading.splits import Split, read_header, sizes_in
from data.reading.utterances import Utterances

__all__ = [
    "DatasetError",
    "Encode",
    "Learner",
    "Loader",
    "Record",
    "by_size",
    "clips",
    "everything",
    "facts_of",
    "modality_of",
    "read_header",
    "records",
    "rows_in",
    "sounds",
    "utterances",
]

WINDOW_BYTES: Final = 1 << 30  # of rows shuffled together; a larger split is read window by window


class Loader:
    """This rank's batches of one split.

    Args:
        prepared: the folder with dataset.json.
        split: train, validation or test.
        batch_size: this rank's rows a step.
        rank: which of `world` this is.
        world: how many ranks share a step's rows.
        seed: fixes the order of every epoch.
        image_size: pixels a side, by the mean over areas; None for the dataset's own. Pictures only.
        encode: gives `tokens` for captions; None or a None result for no tokens. Pictures and sounds.
        learner: the family that makes rows of a text split's records; None where only facts are asked.
        beside: folders of `data.reading.outputs`, by the name that a batch has each row's output under. No texts.
        stills: of clips, a row a frame, as pictures; each is learned once an epoch.
        shuffle_captions: give every sample another one's caption and attributes, every pair another's target (a
            broken control).
        window_bytes: bytes of rows shuffled together; where a split has more, some shards come after the other.

    Raises:
        DatasetError: no such folder, split or size, or nothing in the split.
        IntegrityError: a shard is not the one that was prepared.
    """

    def __init__(
        self,
        prepared: Path,
        split: str,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        image_size: int | None = None,
        encode: Encode | None = None,
        learner: Learner | None = None,
        beside: Mapping[str, Path] | None = None,
        stills: bool = False,
        shuffle_captions: bool = False,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world:
            raise DatasetError(f"no rows for batch size {batch_size}, rank {rank} of {world}")
        options = Options(
            image_size=image_size,
            encode=encode,
            learner=learner,
            beside=beside or {},
            stills=stills,
            shuffle_seed=seed if shuffle_captions else None,
        )
        self._orders = [
            Order(
                open_split(prepared, split, replace(options, size=size)),
                batch_size * world,
                seed,
                window_bytes,
            )
            for size in sizes_in(prepared, split)
        ]
        self._batch_size, self._rank, self._world = batch_size, rank, world

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a network must know.

        image: image_size, channels, vocabulary, max_words, attributes. audio: sample_rate, clip_samples instead of the
        first two. text: tokenizer. clip: those of image, frames, frame_rate. speech: sample_rate, most_seconds,
        speakers, attributes. Of pictures of several sizes: `sizes`, too.
        """
        return self._orders[0].source.facts

    @property
    def rows(self) -> int:
        """How many rows the split has: of text, as many as the family made of it."""
        return sum(order.rows for order in self._orders)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return step's batch.

        image, and the frames of clips: `pixels` (B, C, H, W) float32 in [0, 1], of one size. clip: `frames` (B, F, C,
        H, W) in the same units. audio: `sound` (B, T) float32 in [-1, 1] and `length` (B,) int64. All: `tokens` (B, T)
        int64 where `encode` gave some; `attributes` (B, A) int64 where the dataset has any; what `beside` names. text:
        rows of what `examples` gave. speech: as audio, T samples and symbols of the longest row, and `token_length`
        (B,) and `speaker` (B,) int64; rows of a batch have similar lengths.
        """
        number, turn = turn_of(step, [order.rows for order in self._orders])
        places = self.places(turn)
        return self._orders[number].batch(places.start, places.stop)

    def places(self, step: int) -> range:
        """Return the numbers of the rows of step's batch, counted over all steps: the same, whatever the world is."""
        first = (step * self._world + self._rank) * self._batch_size
        return range(first, first + self._batch_size)

    def once(self) -> Iterator[dict[str, Tensor]]:
        """Yield this rank's share of the first epoch, batch by batch: all ranks together see every row exactly once.

        The last batches may be smaller, and a rank may have one batch less than another.
        """
        parts = (
            (order, first)
            for order in self._orders
            for first in range(0, order.rows, self._batch_size)
        )
        for order, first in islice(parts, self._rank, None, self._world):
            yield order.batch(first, min(first + self._batch_size, order.rows))


def turn_of(step: int, rows: Sequence[int]) -> tuple[int, int]:
    """Return which of several orders has a step, and which of that order's own batches it is.

    Each has so many steps as it has a share of all rows, and has them evenly: of N rows in all, n of them its own, its
    k-th stands at (k + 1/2) N / n.

    Example:
        >>> [turn_of(step, [2, 1]) for step in range(6)]
        [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]
    """
    whole, before = sum(rows), max(0, step - len(rows))
    turns = [(2 * before * own + whole) // (2 * whole) for own in rows]  # that are over by then
    while True:
        places = [Fraction(2 * turn + 1, own) for turn, own in zip(turns, rows, strict=True)]
        number = places.index(min(places))
        if sum(turns) == step:
            return number, turns[number]
        turns[number] += 1


def rows_in(batch: Mapping[str, Tensor]) -> int:
    """Return how many rows a batch has, whatever it is of."""
    return len(next(iter(batch.values())))


def facts_of(
    prepared: Path, image_size: int | None = None, *, stills: bool = False
) -> dict[str, Any]:
    """Return what a network that learns the dataset at a size must know, as `Loader.facts`.

    Raises:
        DatasetError: no such folder or size.
    """
    return Split(prepared, "train", stills=stills).facts(image_size)


def modality_of(prepared: Path) -> str:
    """Return image, text, audio, clip or speech.

    Raises:
        DatasetError: never prepared, or written by a newer version.
    """
    found: str = read_header(prepared)["modality"]
    return found


def everything(
    prepared: Path, split: str, image_size: int | None = None
) -> tuple[Tensor, list[str], Tensor]:
    """Return a whole split of pictures, or of the frames of clips: pixels (N, C, H, W), N captions, attributes (N, A).

    Raises:
        DatasetError: no such folder, split or size, no pictures, or pictures of several sizes.
        IntegrityError: a shard is not the one that was prepared.
    """
    found = by_size(prepared, split, image_size)
    if len(found) > 1:
        raise DatasetError(f"{prepared} has pictures of {len(found)} sizes: read them by size")
    return found[0]


def by_size(
    prepared: Path, split: str, image_size: int | None = None
) -> list[tuple[Tensor, list[str], Tensor]]:
    """Return, as `everything`, the pictures of one size after the other.

    Raises:
        DatasetError: no such folder, split or size, or no pictures.
        IntegrityError: a shard is not the one that was prepared.
    """
    found = []
    for size in sizes_in(prepared, split):
        rows, captions = _captioned(prepared, split, "image", image_size, size)
        found.append((rows["pixels"], captions, rows["attributes"]))
    return found


def clips(
    prepared: Path, split: str, image_size: int | None = None
) -> tuple[Tensor, list[str], Tensor]:
    """Return a whole split of clips as stored: frames (N, F, C, H, W) in [0, 1], N captions, attributes (N, A).

    Raises:
        DatasetError: no such folder, split or size, or no clips.
        IntegrityError: a shard is not the one that was prepared.
    """
    rows, captions = _captioned(prepared, split, "clip", image_size)
    return rows["frames"], captions, rows["attributes"]


def sounds(prepared: Path, split: str) -> tuple[Tensor, Tensor, list[str], Tensor]:
    """Return a whole split of sounds as stored: sound (N, T) in [-1, 1], length (N,), N captions, attributes (N, A).

    Raises:
        DatasetError: no such folder or split, or no sounds.
        IntegrityError: a shard is not the one that was prepared.
    """
    rows, captions = _captioned(prepared, split, "audio", None)
    return rows["sound"], rows["length"], captions, rows["attributes"]


def utterances(prepared: Path, split: str) -> Iterator[tuple[Tensor, str, str]]:
    """Yield a whole split of speech as stored: sound (T,) in [-1, 1], what is said, and the speaker.

    Raises:
        DatasetError: no such folder or split, or no speech.
        IntegrityError: a shard is not the one that was prepared.
    """
    found = _split_of(prepared, split, "speech")
    source = Utterances(found, Options())
    speakers = source.facts["speakers"]
    for place in range(found.rows):
        rows = source.rows(np.array([place]))
        learned = source.learned(rows)
        speaker = speakers[int(learned["speaker"])]
        yield learned["sound"][0], source.captions[int(rows["codes"])], speaker


def records(prepared: Path, split: str) -> list[Record]:
    """Return a whole split of text, record by record in the order of the source.

    Raises:
        DatasetError: no such folder or split, or no text.
        IntegrityError: a shard is not the one that was prepared.
    """
    found = _split_of(prepared, split, "text")
    return list(Examples(found, Options()).records())


def _split_of(prepared: Path, split: str, kind: str, size: str | None = None) -> Split:
    found = Split(prepared, split, stills=kind == "image", size=size)
    if found.modality.name != kind:
        raise DatasetError(f"{prepared} has modality {found.modality.name}, not {kind}")
    return found


def _captioned(
    prepared: Path, split: str, kind: str, image_size: int | None, size: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    found = _split_of(prepared, split, kind, size)
    source = Captioned(found, Options(image_size=image_size, size=size))
    rows = source.rows(np.arange(sum(source.sizes)))
    captions = [source.captions[code] for code in rows["codes"].tolist()]
    return source.learned(rows) | {"attributes": rows["attributes"]}, captions
