"""Which half-phones say a text: target and join costs, and the path of the least (Hunt & Black 1996, section 3).

A unit's target cost is how far its neighbours are from those that are asked for, and how far its duration, pitch and
energy are from what this voice mostly does there. A join costs as much as its two edges differ, and nothing where they
are one edge of a recording. Costs have no unit.

Shape letters: C candidates of a place, U half-phones, R recordings, X columns of an edge, K symbols.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from models.text_to_speech.units import (
    BEFORE,
    BEGIN,
    BEHIND,
    END,
    HALF,
    NEPERS,
    OCTAVES,
    PHONE,
    SPEAKER,
    UNITS,
    Inventory,
)

NEAR, FAR = 1.0, 0.3
"""What a wrong neighbour costs, beside the half and on the other side of the phone."""
ODD: Final = 3.0  # standard deviations from the usual, beyond which all are alike
USUAL: Final = 5  # units of the same neighbours that say what is usual there; of fewer, all do
VOICELESS: Final = 1.0  # an edge with a voice beside one without, in octaves
CONTEXT, DURATION, PITCH, ENERGY = 2.0, 0.5, 0.3, 0.3
"""What the parts of a target cost count: a wrong neighbour, and a deviation from the usual."""
JOIN, SPECTRUM, OCTAVE, LOUDNESS = 1.0, 1.0, 2.0, 0.5
"""What the parts of a join's cost count: that there is one, a deviation of all mel bands, an octave, a neper."""


@dataclass(frozen=True, slots=True)
class Place:
    """A half-phone that is to be said."""

    phone: int
    half: int
    before: int
    behind: int


def places(phones: Sequence[int]) -> list[Place]:
    """Return the half-phones of a phrase; beyond its ends is 0."""
    around = [0, *phones, 0]
    return [
        Place(phone, half, around[place], around[place + 2])
        for place, phone in enumerate(phones)
        for half in (0, 1)
    ]


class Selector:
    """An inventory that is searched."""

    def __init__(self, inventory: Inventory, far_KK: Tensor, candidates: int) -> None:
        """Look at an inventory.

        Args:
            inventory: with a recording at least.
            far_KK: how far phones are from one another, 0 to 1.
            candidates: units of a place that are tried, those of the least target costs.
        """
        self._far_KK, self._candidates = far_KK, candidates
        self.unit_UX: Tensor = inventory.unit_UX.long()
        self.recording_RX: Tensor = inventory.recording_RX
        units_R = self.recording_RX[:, UNITS]
        rows_R = torch.arange(len(units_R), device=units_R.device)
        self.row_U: Tensor = rows_R.repeat_interleave(units_R)
        self._left_U = torch.arange(len(self.row_U), device=units_R.device) + self.row_U
        self._voice_U = self.recording_RX[self.row_U, SPEAKER]
        edge_EX = inventory.edge_EX
        self._mel_EM = edge_EX[:, :OCTAVES] / edge_EX[:, :OCTAVES].std(0).clamp(min=1e-3)
        self._octave_E: Tensor = edge_EX[:, OCTAVES]
        self._energy_E: Tensor = edge_EX[:, NEPERS]
        begin_U, end_U = self.unit_UX[:, BEGIN], self.unit_UX[:, END]
        self._duration_U = (end_U - begin_U).clamp(min=1).float().log()

    @cached_property
    def _texts(self) -> dict[tuple[int, ...], list[int]]:
        """The recordings by the phones that are all they say."""
        found: dict[tuple[int, ...], list[int]] = {}
        phones = self.unit_UX[:, PHONE].tolist()
        end = 0
        for row, count in enumerate(self.recording_RX[:, UNITS].tolist()):
            said = tuple(one for one in phones[end : end + count : 2] if one)
            found.setdefault(said, []).append(row)
            end += count
        return found

    @cached_property
    def _later(self) -> Tensor:
        """Whether a unit is in the second half of what its recording says, by time, pauses left out."""
        rows, middle_U = len(self.recording_RX), self.unit_UX[:, [BEGIN, END]].sum(1)
        said_U = self.unit_UX[:, PHONE] != 0
        ends = [
            middle_U.new_zeros(rows).scatter_reduce_(
                0, self.row_U[said_U], middle_U[said_U], how, include_self=False
            )
            for how in ("amin", "amax")
        ]
        return 2 * middle_U >= (ends[0] + ends[1])[self.row_U]

    def whole(self, phones: Sequence[int]) -> list[int]:
        """Return the recordings of nothing but what is a part of these phones, or all of them."""
        cuts = [
            tuple(phones[begin:end])
            for begin in range(len(phones))
            for end in range(begin + 1, len(phones) + 1)
        ]
        return [row for cut in dict.fromkeys(cuts) for row in self._texts.get(cut, ())]

    def barred(self, phones: Sequence[int], chance_R: Tensor) -> Tensor:
        """Return which units may not be taken, (U,): one half of each recording that the phones have whole.

        Args:
            phones: what is said.
            chance_R: uniform in [0, 1): below 1/2 it is the first half of a recording that may be taken.
        """
        barred_R = torch.zeros(len(chance_R), dtype=torch.bool, device=chance_R.device)
        barred_R[self.whole(phones)] = True
        return barred_R[self.row_U] & (self._later == (chance_R < 0.5)[self.row_U])

    def pool(self, place: Place, voice: int, barred_U: Tensor) -> Tensor:
        """Return the units that may stand at a place: of the voice, else of any; of the phone, else of the nearest."""
        unit_UX = self.unit_UX
        open_U = ~barred_U & (unit_UX[:, HALF] == place.half) & (unit_UX[:, PHONE] != 0)
        for phone in self._far_KK[place.phone].argsort(stable=True).tolist():
            found_U = open_U & (unit_UX[:, PHONE] == phone)
            own_U = found_U & (self._voice_U == voice)
            taken_U = own_U if bool(own_U.any()) else found_U
            if bool(taken_U.any()):
                return torch.arange(len(taken_U), device=taken_U.device)[taken_U]
        raise ValueError("the inventory has no units that may be taken: it needs more recordings")

    def target_costs(self, place: Place, unit_C: Tensor) -> Tensor:
        """Return what it costs to let each of the units stand at a place, (C,)."""
        unit_CX = self.unit_UX[unit_C]
        near, other = (BEFORE, BEHIND) if place.half == 0 else (BEHIND, BEFORE)
        asked = {BEFORE: place.before, BEHIND: place.behind}
        context_C = NEAR * self._far_KK[asked[near], unit_CX[:, near]]
        context_C = context_C + FAR * self._far_KK[asked[other], unit_CX[:, other]]
        same_C = context_C == context_C.min()
        if int(same_C.sum()) < USUAL:
            same_C = torch.ones_like(same_C)
        octave_C = self._octave_E[self._left_U[unit_C] + 1 - place.half]  # at the phone's middle
        energy_C = self._energy_E[self._left_U[unit_C] + 1 - place.half]
        cost_C: Tensor = CONTEXT * context_C
        for weight, value_C in (
            (DURATION, self._duration_U[unit_C]),
            (PITCH, octave_C),
            (ENERGY, energy_C),
        ):
            usual, spread = value_C[same_C].median(), value_C[same_C].std(correction=0)
            odd_C = (value_C - usual).abs() / spread.clamp(min=0.05)
            cost_C = cost_C + weight * odd_C.clamp(max=ODD)
        return cost_C

    def join_costs(self, before_C: Tensor, behind_C: Tensor) -> Tensor:
        """Return what it costs to put each of the second units behind each of the first, (C, C)."""
        right_C, left_C = self._left_U[before_C] + 1, self._left_U[behind_C]
        mel_CC = torch.cdist(self._mel_EM[right_C], self._mel_EM[left_C])
        mel_CC = mel_CC / self._mel_EM.shape[1] ** 0.5
        one_C, other_C = self._octave_E[right_C][:, None], self._octave_E[left_C]
        octave_CC = (one_C - other_C).abs()
        octave_CC = torch.where((one_C > 0) & (other_C > 0), octave_CC, VOICELESS)
        octave_CC = octave_CC.masked_fill((one_C == 0) & (other_C == 0), 0)
        energy_CC = (self._energy_E[right_C][:, None] - self._energy_E[left_C]).abs()
        cost_CC: Tensor = JOIN + SPECTRUM * mel_CC + OCTAVE * octave_CC + LOUDNESS * energy_CC
        return cost_CC.masked_fill(right_C[:, None] == left_C, 0)

    def path(
        self, phones: Sequence[int], voice: int, barred_U: Tensor, tie_U: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the units of the least cost that say a phrase, in their order, and what each join costs.

        Args:
            phones: of the phrase.
            voice: whose units are taken where there are any.
            barred_U: which may not be taken.
            tie_U: added to target costs, so that a seed chooses among equals.
        """
        before_C, total_C = tie_U.new_zeros(0).long(), tie_U.new_zeros(0)
        steps: list[tuple[Tensor, Tensor]] = []
        for place in places(phones):
            unit_C = self.pool(place, voice, barred_U)
            cost_C = self.target_costs(place, unit_C) + tie_U[unit_C]
            kept_C = torch.zeros_like(unit_C, dtype=torch.bool)
            kept_C[cost_C.topk(min(self._candidates, len(cost_C)), largest=False).indices] = True
            kept_C |= torch.isin(unit_C, before_C + 1)  # what follows in a recording
            unit_C, cost_C = unit_C[kept_C], cost_C[kept_C]
            back_C = torch.zeros_like(unit_C)
            if steps:
                least_C, back_C = (total_C[:, None] + self.join_costs(before_C, unit_C)).min(0)
                cost_C = least_C + cost_C
            steps.append((unit_C, back_C))
            before_C, total_C = unit_C, cost_C
        best, chosen = int(total_C.argmin()), list[int]()
        for unit_C, back_C in reversed(steps):
            chosen.append(int(unit_C[best]))
            best = int(back_C[best])
        return self._joined(torch.tensor(chosen[::-1], device=tie_U.device))

    def random_path(self, lot_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return units by lot, uniform in [0, 1), one a number, and what each join costs."""
        return self._joined((lot_N * len(self.row_U)).long())

    def usual_path(self, phones: Sequence[int], voice: int, lot_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return units by lot of those that may stand at each place of a phrase, and what each join costs."""
        nobody_U = torch.zeros_like(self.row_U, dtype=torch.bool)
        pools = [self.pool(place, voice, nobody_U) for place in places(phones)]
        drawn = zip(pools, lot_N.tolist(), strict=True)
        return self._joined(torch.stack([unit_C[int(lot * len(unit_C))] for unit_C, lot in drawn]))

    def _joined(self, path_N: Tensor) -> tuple[Tensor, Tensor]:
        return path_N, self.join_costs(path_N[:-1], path_N[1:]).diagonal()
