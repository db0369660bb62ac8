"""Batches of a prepared dataset for one rank: a pure function of the arguments and the step, so resumable anywhere.

Shape letters: N rows of a split, B rows of a batch, C channels, H and W pixels, T words or samples, A attributes.
A seeded order of every epoch is laid end to end; step s of a global batch G takes the places s*G to (s+1)*G - 1, and
rank r the r-th B of them. So ranks are disjoint, an epoch holds every row once, and the union is any world's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from data.modalities.text import Record
from data.reading.captioned import Captioned
from data.reading.examples import Examples
from data.reading.mapped import Array, DatasetError
from data.reading.readers import open_split
from data.reading.sources import Encode, Learner, Options
from data.reading.splits import Split, read_header
from data.reading.utterances import Utterances

__all__ = [
    "DatasetError",
    "Encode",
    "Learner",
    "Loader",
    "Record",
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

POOL: Final = 16  # batches whose rows are shared out by their lengths
WINDOW_BYTES: Final = 1 << 30  # of rows shuffled together; a larger split is read window by window


@dataclass(frozen=True, slots=True)
class Window:
    """Shards whose rows are shuffled together: what of a large split is read often at a time."""

    shards: tuple[int, ...]
    rows: int
    state: Mapping[str, Any]  # of the generator that draws their order


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
        self._source = open_split(prepared, split, options)
        self._batch_size, self._rank, self._world, self._seed = batch_size, rank, world, seed
        self._limit = window_bytes
        self._windows = lru_cache(maxsize=2)(
            self._windows_of
        )  # the one before may end in this batch
        self._order = lru_cache(maxsize=2)(self._order_of)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a network must know.

        image: image_size, channels, vocabulary, max_words, attributes. audio: sample_rate, clip_samples instead of the
        first two. text: tokenizer. clip: those of image, frames, frame_rate. speech: sample_rate, most_seconds,
        speakers, attributes.
        """
        return self._source.facts

    @property
    def rows(self) -> int:
        """How many rows the split has: of text, as many as the family made of it."""
        return sum(self._source.sizes)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return step's batch.

        image, and the frames of clips: `pixels` (B, C, H, W) float32 in [0, 1]. clip: `frames` (B, F, C, H, W) in the
        same units. audio: `sound` (B, T) float32 in [-1, 1] and `length` (B,) int64. All: `tokens` (B, T) int64 where
        `encode` gave some; `attributes` (B, A) int64 where the dataset has any; what `beside` names. text: rows of what
        `examples` gave. speech: as audio, T samples and symbols of the longest row, and `token_length` (B,) and
        `speaker` (B,) int64; rows of a batch have similar lengths.
        """
        places = self.places(step)
        return self._rows(places.start, places.stop)

    def places(self, step: int) -> range:
        """Return where the rows of step's batch are in the order of all epochs, whatever the world is."""
        first = (step * self._world + self._rank) * self._batch_size
        return range(first, first + self._batch_size)

    def once(self) -> Iterator[dict[str, Tensor]]:
        """Yield this rank's share of the first epoch, batch by batch: all ranks together see every row exactly once.

        The last batches may be smaller, and a rank may have one batch less than another.
        """
        stride = self._world * self._batch_size
        for first in range(self._rank * self._batch_size, self.rows, stride):
            yield self._rows(first, min(first + self._batch_size, self.rows))

    def _rows(self, first: int, last: int) -> dict[str, Tensor]:
        """Return the rows at the places first to last - 1."""
        found = []
        while first < last:
            epoch, place = divmod(first, self.rows)
            window = 0
            while place >= self._windows(epoch)[window].rows:
                place -= self._windows(epoch)[window].rows
                window += 1
            found.append(self._order(epoch, window)[place : place + last - first].astype(np.int64))
            first += len(found[-1])
        return self._source.batch(np.concatenate(found))

    def _windows_of(self, epoch: int) -> list[Window]:
        """Return the epoch's shards in random order, as many together as there is room for.

        One generator draws that order, and then the order of every window's rows. Only its states are kept.
        """
        sizes, generator = self._source.sizes, np.random.default_rng((self._seed, epoch))
        windows: list[list[int]] = []
        space = 0
        for shard in generator.permutation(len(sizes)).tolist():
            size = self._source.bytes_of(shard)
            if not windows or size > space:
                windows.append([])
                space = self._limit
            windows[-1].append(shard)
            space -= size
        found = list[Window]()
        for shards in windows:
            if found:
                generator.permutation(found[-1].rows)  # the next window's begins after it
            rows = sum(sizes[shard] for shard in shards)
            found.append(Window(tuple(sorted(shards)), rows, generator.bit_generator.state))
        return found

    def _order_of(self, epoch: int, window: int) -> Array:
        """Return a window's rows in the epoch's order, by their numbers in the split."""
        found, generator = self._windows(epoch)[window], np.random.default_rng()
        generator.bit_generator.state = found.state
        ends = np.cumsum(self._source.sizes)
        kind = np.min_scalar_type(ends[-1])  # a large split has many
        rows = [
            np.arange(ends[shard] - self._source.sizes[shard], ends[shard], dtype=kind)
            for shard in found.shards
        ]
        order = np.concatenate(rows)[generator.permutation(found.rows)]
        if (lengths := self._source.lengths) is None:
            return order
        before = sum(one.rows for one in self._windows(epoch)[:window])
        size = self._batch_size * self._world
        return bucketed(order, lengths[order], size, epoch * self.rows + before, generator)


def bucketed(
    order: Array, lengths: Array, size: int, first: int, generator: np.random.Generator
) -> Array:
    """Return rows in an order in which those of a batch are of similar lengths.

    Of so many rows as POOL batches have, drawn at random, the shortest make a batch, the next ones another, and so on;
    the batches come in random order. Rows that share a batch with another epoch's or window's stay as they are.

    Args:
        order: the rows, at random.
        lengths: of these.
        size: rows of a batch, of all ranks.
        first: the place of the first row in the order of all epochs, in which batches begin at multiples of `size`.
        generator: draws the order of the batches.
    """
    head = min(-first % size, len(order))
    whole = (len(order) - head) // size
    pools = [
        range(head + start * size, head + min(start + POOL, whole) * size)
        for start in range(0, whole, POOL)
    ]
    places = [pool.start + lengths[pool.start : pool.stop].argsort(kind="stable") for pool in pools]
    batches = [part.reshape(-1, size) for part in places]
    if batches:
        inner = np.concatenate(batches)[generator.permutation(whole)].reshape(-1)
        order[head : head + whole * size] = order[inner]
    return order


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
        DatasetError: no such folder, split or size, or no pictures.
        IntegrityError: a shard is not the one that was prepared.
    """
    rows, captions = _captioned(prepared, split, "image", image_size)
    return rows["pixels"], captions, rows["attributes"]


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


def _split_of(prepared: Path, split: str, kind: str) -> Split:
    found = Split(prepared, split, stills=kind == "image")
    if found.modality.name != kind:
        raise DatasetError(f"{prepared} has modality {found.modality.name}, not {kind}")
    return found


def _captioned(
    prepared: Path, split: str, kind: str, image_size: int | None
) -> tuple[dict[str, Tensor], list[str]]:
    found = _split_of(prepared, split, kind)
    source = Captioned(found, Options(image_size=image_size))
    rows = source.rows(np.arange(sum(source.sizes)))
    captions = [source.captions[code] for code in rows["codes"].tolist()]
    return source.learned(rows) | {"attributes": rows["attributes"]}, captions
