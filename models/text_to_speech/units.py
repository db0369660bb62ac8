"""An inventory of half-phones: recordings, cut where they were aligned, and what each edge sounds like.

A phone is cut in its middle, where it changes least. So two halves of one phone may be joined there, which makes
diphones, or at its ends. Neighbours in a recording share their edge: nothing tells them apart there.

An inventory is a set of recordings, those first in the order of their digests up to a limit: a set made of parts is the
same however rows were shared and in whatever order they came.

Shape letters: R recordings, T samples of all of them, U half-phones, E = U + R edges, X columns, M mel bands.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

TABLES: Final = ("sound_T", "recording_RX", "unit_UX", "edge_EX")
FULL: Final = 32768  # of a sample
DIGEST, SPEAKER, SAMPLES, UNITS = range(4)
"""Columns of recordings: 63 bits of what was recorded, who spoke, how many samples and half-phones it has."""
PHONE, HALF, BEFORE, BEHIND, BEGIN, END = range(6)
"""Columns of half-phones: the phone, 0 or 1, the phones around it, and its first sample and end in the recording."""

OCTAVES, NEPERS = -2, -1
"""What a frame or an edge sounds like, in columns behind the mel bands: log2 of Hertz, 0 without a voice; energy."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording as it was aligned."""

    sound_T: Tensor
    speaker: int
    phones: Sequence[int]  # as they were said, pauses left out that were not made
    bounds: Sequence[int]  # where they begin, in frames, and the last one's end
    seen_FX: Tensor  # each frame: the mel bands, the octave, the energy


class Inventory(nn.Module):
    """Half-phones in tables whose lengths are the data's; a model that reads them takes their lengths over."""

    sound_T: Tensor
    recording_RX: Tensor
    unit_UX: Tensor
    edge_EX: Tensor

    def __init__(self, columns: int, limit: int) -> None:
        """Begin without a recording.

        Args:
            columns: of what an edge sounds like.
            limit: samples that are kept at most.
        """
        super().__init__()
        self.limit = limit
        self.register_buffer("sound_T", torch.zeros(0, dtype=torch.int16))
        self.register_buffer("recording_RX", torch.zeros(0, 4, dtype=torch.int64))
        self.register_buffer("unit_UX", torch.zeros(0, 6, dtype=torch.int32))
        self.register_buffer("edge_EX", torch.zeros(0, columns, dtype=torch.float32))
        self.register_load_state_dict_pre_hook(_sized)  # type: ignore[no-untyped-call]

    def add(self, recordings: Sequence[Recording], hop: int) -> None:
        """Take recordings in, as far as there is room."""
        found = [self._tables(one, hop) for one in recordings]
        for name, *parts in zip(TABLES, *found, strict=True):
            setattr(self, name, torch.cat([getattr(self, name), *parts]))
        self.order()

    @torch.no_grad()
    def order(self) -> None:
        """Put recordings in the order of their digests, each once, and drop those behind the limit."""
        digest_R = self.recording_RX[:, DIGEST]
        order_R = digest_R.argsort(stable=True)
        new_R = torch.ones_like(order_R, dtype=torch.bool)
        new_R[1:] = digest_R[order_R].diff() != 0
        order_R = order_R[new_R]
        order_R = order_R[self.recording_RX[order_R, SAMPLES].cumsum(0) <= self.limit]
        samples_R, units_R = self.recording_RX[:, SAMPLES], self.recording_RX[:, UNITS]
        self.sound_T = self.sound_T[_places(samples_R, order_R)]
        self.unit_UX = self.unit_UX[_places(units_R, order_R)]
        self.edge_EX = self.edge_EX[_places(units_R + 1, order_R)]
        self.recording_RX = self.recording_RX[order_R]

    def _tables(self, one: Recording, hop: int) -> tuple[Tensor, ...]:
        """Return a recording's rows of each of the tables."""
        device = one.sound_T.device
        pcm_T = (one.sound_T * FULL).round().clamp(-FULL, FULL - 1).to(torch.int16)
        said = torch.tensor([one.speaker, *one.phones], dtype=torch.int32).numpy().tobytes()
        digest = hashlib.blake2b(pcm_T.cpu().numpy().tobytes() + said, digest_size=8).digest()
        units, edges = [], [one.bounds[0]]
        around = [0, *one.phones, 0]
        for place, phone in enumerate(one.phones):
            begin, end = one.bounds[place], one.bounds[place + 1]
            for half, edge in enumerate(((begin + end) // 2, end)):
                before, behind = around[place], around[place + 2]
                units.append([phone, half, before, behind, edges[-1] * hop, edge * hop])
                edges.append(edge)
        about = (int.from_bytes(digest) >> 1, one.speaker, len(pcm_T), len(units))
        edge_E = torch.tensor(edges, device=device)
        last = len(one.seen_FX) - 1
        left_EX, right_EX = (
            one.seen_FX[(edge_E - 1).clamp(min=0)],
            one.seen_FX[edge_E.clamp(max=last)],
        )
        return (
            pcm_T,
            torch.tensor([about], device=device),
            torch.tensor(units, dtype=torch.int32, device=device),
            _between(left_EX, right_EX).float(),
        )


def _between(left_EX: Tensor, right_EX: Tensor) -> Tensor:
    """Return the mean of both sides of an edge; of octaves, of those sides that have a voice."""
    edge_EX = (left_EX + right_EX) / 2
    voices_E = (left_EX[:, OCTAVES] > 0).float() + (right_EX[:, OCTAVES] > 0)
    edge_EX[:, OCTAVES] *= 2 / voices_E.clamp(min=1)
    return edge_EX


def _places(counts_R: Tensor, order_R: Tensor) -> Tensor:
    """Return the places of the rows of chosen parts, in their order, of a table that has all parts' rows."""
    first_R = counts_R.cumsum(0) - counts_R
    chosen_R = counts_R[order_R]
    moved_R = first_R[order_R] - (chosen_R.cumsum(0) - chosen_R)
    total = int(chosen_R.sum())
    return torch.arange(total, device=counts_R.device) + moved_R.repeat_interleave(chosen_R)


def _sized(inventory: Inventory, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Give tables the lengths of those that are about to be read."""
    for name in TABLES:
        if (found := state.get(prefix + name)) is not None:
            own = getattr(inventory, name)
            setattr(inventory, name, own.new_zeros((len(found), *own.shape[1:])))
