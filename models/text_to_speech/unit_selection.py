"""Unit selection (Hunt & Black 1996): a text is said by pieces of recordings, found by target and join costs.

Training counts: recordings are aligned with their phones from a flat start (`alignment`), cut into half-phones
(`units`), and kept. A text's half-phones are looked up in the voice that is asked for, and the cheapest path through
them is taken (`selection`); pieces are joined where their waves fit (`parts.wsola`). A sample tells what it is made of.

Shape letters: B rows, T samples, S tokens, F frames, M mel bands, X columns of an edge, K symbols, R recordings, U
half-phones. Sound is in [-1, 1].
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds, pitch, wsola
from models.parts.mel import PRESETS, Mel
from models.parts.noise import uniforms
from models.ports import Source
from models.request import RANGES, Request, SpeechOptions
from models.text_to_speech.alignment import CEPSTRA, FlatStart, cepstra
from models.text_to_speech.front_end import MARKS, SYMBOLS, Spoken
from models.text_to_speech.phones import distance
from models.text_to_speech.pronunciation import PHONES
from models.text_to_speech.selection import Selector
from models.text_to_speech.units import (
    BEGIN,
    DIGEST,
    END,
    FULL,
    SAMPLES,
    TABLES,
    Inventory,
    Recording,
)

PAUSES: Final = tuple(place for place, symbol in enumerate(SYMBOLS) if symbol not in PHONES)
PAUSE_S: Final = {",": 0.2, **dict.fromkeys(".?!", 0.4)}  # of silence at a mark within a text
TIE: Final = 0.1  # target costs that differ by less are alike: the seed chooses
OVERLAP_S: Final = 0.01  # of two pieces
EDGE_S: Final = 0.005  # in which a phrase begins and ends
LOTS: Final = 8  # paths that say what joins cost by lot


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitSelectionConfig(Spoken):
    """How recordings are cut, how many are kept, and how a path is found."""

    sample_rate: int = 8000  # Hz
    mel: Mel = PRESETS["8khz"]
    passes: int = 6  # of the alignment
    minutes: float = 60.0  # of recordings that are kept, at most
    candidates: int = 30  # units of a place that are tried
    exclude_same_text: bool = True  # of a recording of nothing but what is said, half is left out
    costs: Literal["target-join", "random"] = (
        "target-join"  # random: units by lot, the broken control
    )

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        object.__setattr__(self, "mel", Mel.of(self.mel))
        self.check_spoken()
        bounds.check(self, {"passes": (2, 100), "minutes": (0.01, 1e5), "candidates": bounds.SIZE})
        if self.mel.sample_rate != self.sample_rate:
            raise ValueError(
                f"mel.sample_rate must be {self.sample_rate}, the sounds', got {self.mel.sample_rate}"
            )
        if self.costs not in {"target-join", "random"}:
            raise ValueError(f"costs must be 'target-join' or 'random', got {self.costs!r}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a recording, in samples of it; of no recording: silence."""

    recording: int | None
    begin: int
    end: int


class UnitSelection(Family):
    """Recordings, cut and put together anew."""

    Config = UnitSelectionConfig
    Options = SpeechOptions
    presets: ClassVar[Mapping[str, UnitSelectionConfig]] = {
        "tiny": UnitSelectionConfig(
            mel=Mel(n_fft=32, hop=8, window=32, mels=8), passes=3, minutes=0.1, candidates=8
        ),
        "base": UnitSelectionConfig(),
        "16khz": UnitSelectionConfig(sample_rate=16000, mel=PRESETS["16khz"]),
        "22khz": UnitSelectionConfig(sample_rate=22050, mel=PRESETS["22khz"]),
    }
    counts = True
    measures: ClassVar[tuple[str, ...]] = ("relative_join_cost",)
    config: UnitSelectionConfig

    def __init__(self, config: UnitSelectionConfig) -> None:
        super().__init__()
        self.config = config
        self.aligner = FlatStart(len(SYMBOLS), 2 * CEPSTRA, PAUSES)
        limit = round(60 * config.minutes * config.sample_rate)
        self.inventory = Inventory(config.mel.mels + 2, limit)
        self._selector: tuple[Tensor, Selector] | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return Capabilities(modality="audio", condition="text")

    @property
    def sums(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the sums: of each pass of the alignment, and none of the pass that cuts."""
        aligning = tuple(f"aligner.{name}" for name in self.aligner.sums)
        return (aligning,) * self.config.passes + ((),)

    @property
    def gathers(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the inventory's tables, for the last pass."""
        tables = tuple(f"inventory.{name}" for name in TABLES)
        return ((),) * self.config.passes + (tables,)

    @torch.no_grad()
    def absorb(self, batch: Batch, number: int = 0) -> None:
        """Add the frames to the Gaussians that they are of; in the last pass, keep the recordings in pieces."""
        mel_BMF, frames_B = self._frames(batch)
        tokens_BS, length_B = _phrased(batch["tokens"])
        x_BXF = cepstra(mel_BMF, frames_B)
        if number < self.config.passes:
            self.aligner.absorb(x_BXF, frames_B, tokens_BS, length_B, flat=number == 0)
            return
        bounds_BS = self.aligner.bounds(x_BXF, frames_B, tokens_BS, length_B)
        found = self._recordings(batch, mel_BMF, tokens_BS, bounds_BS)
        self.inventory.add(list(found), self.config.mel.hop)

    @torch.no_grad()
    def settle(self, number: int = 0) -> None:
        """Turn the sums into Gaussians; after the last pass, put what was kept in order.

        Raises:
            ValueError: no recording has the frames that its tokens need.
        """
        if number < self.config.passes:
            self.aligner.settle()
            return
        self.inventory.order()
        if not len(self.inventory.recording_RX):
            raise ValueError(f"no recording is within {self.config.minutes} minutes: raise minutes")

    def _frames(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return log mels (B, M, F) and how many frames each row has."""
        mel, sound_BT = self.config.mel, batch["sound"]
        whole_B = torch.full((len(sound_BT),), sound_BT.shape[1], device=sound_BT.device)
        length_B = batch.get("length", whole_B)
        return mel.log_mel(sound_BT, length_B), mel.frames_of(length_B).clamp(min=1)

    def _recordings(
        self, batch: Batch, mel_BMF: Tensor, tokens_BS: Tensor, bounds_BS: Tensor
    ) -> Iterator[Recording]:
        """Yield the rows that could be aligned."""
        mel, sound_BT = self.config.mel, batch["sound"]
        frames, none = mel_BMF.shape[2], torch.zeros(len(sound_BT), dtype=torch.long)
        hertz_BF = pitch.f0(sound_BT, mel.sample_rate, mel.hop, frames)
        octave_BF = torch.where(hertz_BF > 0, hertz_BF.clamp(min=1).log2(), 0)
        energy_BF = pitch.energy(sound_BT, mel.window, mel.hop, frames)
        seen_BFX = torch.cat([mel_BMF.mT, octave_BF[..., None], energy_BF[..., None]], 2)
        speakers, found = batch.get("speaker", none).tolist(), bounds_BS.tolist()
        for row, (tokens, edges) in enumerate(zip(tokens_BS.tolist(), found, strict=True)):
            if edges[0] < 0:
                continue
            said = [place for place in range(len(tokens)) if edges[place + 1] > edges[place]]
            yield Recording(
                sound_BT[row, : int(batch["length"][row]) if "length" in batch else None],
                speakers[row],
                [0 if tokens[place] in PAUSES else tokens[place] for place in said],
                [edges[0], *(edges[place + 1] for place in said)],
                seen_BFX[row, : edges[-1]],
            )

    @torch.no_grad()
    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean of -log p of a frame's cepstra on the likeliest way through its text, in nats."""
        mel_BMF, frames_B = self._frames(batch)
        tokens_BS, length_B = _phrased(batch["tokens"])
        nats_B = self.aligner.nats(cepstra(mel_BMF, frames_B), frames_B, tokens_BS, length_B)
        fits_B = nats_B.isfinite()
        count = (frames_B * fits_B).sum()
        total = torch.where(fits_B, nats_B, 0).sum() / count.clamp(min=1)
        return Losses(total.float(), count)

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Return sound (B, T) in [-1, 1] at `sample_rate`, silent after each row's end.

        Raises:
            ValueError: a prompt, voice or speed that it cannot speak; see `check`.
        """
        speed = request.options.get("speed", 1.0)
        bounds.within("speed", speed, RANGES["speed"])
        sounds = [self._put_together(pieces, speed) for pieces in self._chosen(request)]
        return torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True).clamp(-1, 1)

    @torch.no_grad()
    def sources(self, request: Request) -> list[list[Source]]:
        """Return the recordings that each sample of a request is made of, and from when to when, in seconds."""
        rate, digest_R = self.config.sample_rate, self.inventory.recording_RX[:, DIGEST]
        return [
            [
                (f"{int(digest_R[row]):016x}", round(begin / rate, 4), round(end / rate, 4))
                for row, begin, end in map(dataclasses.astuple, pieces)
                if row is not None
            ]
            for pieces in self._chosen(request)
        ]

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return `relative_join_cost` (B,): what the joins of a path cost, as a share of those of units by lot."""
        selector, device = self._search(), batch["tokens"].device
        speaker_B = batch.get("speaker", torch.zeros(len(batch["tokens"]), dtype=torch.long))
        found = []
        for row, (tokens, voice) in enumerate(
            zip(batch["tokens"].tolist(), speaker_B.tolist(), strict=True)
        ):
            phones = [token for token in tokens if token not in PAUSES]
            _, cost_N = self._path(selector, phones, voice, row)
            lots_LP = uniforms((row,), (LOTS, 2 * len(phones)), device, stage=2)[0]
            paths = [selector.usual_path(phones, voice, lot_P) for lot_P in lots_LP]
            random_L = torch.stack([random_N.mean() for _, random_N in paths])
            found.append(cost_N.mean() / random_L.mean().clamp(min=1e-6))
        return {"relative_join_cost": torch.stack(found)}

    def _search(self) -> Selector:
        """Return what searches the inventory; made anew where that is another one."""
        table = self.inventory.edge_EX
        if not len(table):
            raise ValueError("this model has no recordings: train it first")
        if self._selector is None or self._selector[0] is not table:
            far_KK = torch.tensor([[distance(a, b) for b in SYMBOLS] for a in SYMBOLS])
            found = Selector(self.inventory, far_KK.to(table.device), self.config.candidates)
            self._selector = (table, found)
        return self._selector[1]

    def _path(
        self, selector: Selector, phones: Sequence[int], voice: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return the units that say a phrase, and what each join costs."""
        device, units = self.inventory.edge_EX.device, len(selector.row_U)
        if self.config.costs == "random":
            return selector.random_path(uniforms((seed,), (2 * len(phones),), device)[0])
        chance_R = uniforms((seed,), (len(selector.recording_RX),), device)[0]
        barred_U = torch.zeros(units, dtype=torch.bool, device=device)
        if self.config.exclude_same_text:
            barred_U = selector.barred(phones, chance_R)
        tie_U = TIE * uniforms((seed,), (units,), device, stage=1)[0]
        return selector.path(phones, voice, barred_U, tie_U)

    def _chosen(self, request: Request) -> Iterator[list[Piece]]:
        """Yield the pieces of each row: of recordings, and silence at marks."""
        self.check(request)
        selector = self._search()
        voice = int(self.config.encode_voices([request.options.get("voice", "")])[0])
        for seed, text in zip(request.seeds, request.prompts, strict=True):
            pieces: list[Piece] = []
            for phones, pause_s in phrases(self.config.encode([text])[0].tolist()):
                path_N, _ = self._path(selector, phones, voice, seed)
                pieces += _runs(selector, path_N)
                pieces.append(Piece(None, 0, round(pause_s * self.config.sample_rate)))
            yield pieces[:-1]

    def _put_together(self, pieces: Sequence[Piece], speed: float) -> Tensor:
        rate, samples_R = self.config.sample_rate, self.inventory.recording_RX[:, SAMPLES]
        end_R = samples_R.cumsum(0)
        out, run = [], list[tuple[Tensor, int, int]]()
        for piece in (*pieces, Piece(None, 0, 0)):
            if (row := piece.recording) is not None:
                pcm_T = self.inventory.sound_T[int(end_R[row] - samples_R[row]) : int(end_R[row])]
                run.append((pcm_T.float() / FULL, piece.begin, piece.end))
                continue
            overlap, reach = 2 * round(OVERLAP_S * rate / 2), round(wsola.REACH_S * rate)
            out += [_eased(wsola.spliced(run, overlap, reach), round(EDGE_S * rate))]
            out += [out[-1].new_zeros(piece.end)]
            run = []
        sound_T = torch.cat(out)
        return sound_T if speed == 1 else wsola.stretched(sound_T, speed, rate)


def _phrased(tokens_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens with one pause where there are several in a row, and how many each row has."""
    pause_BS = torch.isin(tokens_BS, torch.tensor(PAUSES, device=tokens_BS.device))
    again_BS = pause_BS & F.pad(pause_BS, (1, 0))[:, :-1]
    kept_BS = ~again_BS & (tokens_BS > 0)
    order_BS = (~kept_BS).long().argsort(dim=1, stable=True)
    length_B = kept_BS.sum(1)
    return (tokens_BS * kept_BS).gather(1, order_BS), length_B


def phrases(tokens: Sequence[int]) -> list[tuple[list[int], float]]:
    """Return the phones between marks, and how many seconds are silent behind each."""
    found: list[tuple[list[int], float]] = []
    phones: list[int] = []
    for token in tokens:
        symbol = SYMBOLS[token]
        if symbol in PHONES:
            phones.append(token)
        elif symbol in MARKS and phones:
            found.append((phones, PAUSE_S[symbol]))
            phones = []
    return [*found, (phones, 0.0)] if phones else found


def _runs(selector: Selector, path_N: Tensor) -> list[Piece]:
    """Return the units as pieces of recordings: neighbours in one are one piece."""
    pieces: list[Piece] = []
    before = -2
    for unit in path_N.tolist():
        row = int(selector.row_U[unit])
        begin, end = (int(selector.unit_UX[unit, column]) for column in (BEGIN, END))
        if unit == before + 1 and pieces[-1].recording == row:
            pieces[-1] = dataclasses.replace(pieces[-1], end=end)
        else:
            pieces.append(Piece(row, begin, end))
        before = unit
    return pieces


def _eased(sound_T: Tensor, samples: int) -> Tensor:
    """Return the sound with its ends faded."""
    rising_L = wsola.rising(min(samples, len(sound_T) // 2), sound_T)
    eased_T = sound_T.clone()
    eased_T[: len(rising_L)] *= rising_L
    eased_T[len(eased_T) - len(rising_L) :] *= rising_L.flip(0)
    return eased_T
