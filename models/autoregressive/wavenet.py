"""WaveNet (van den Oord et al. 2016, arXiv:1609.03499), sampled by queues (Paine et al. 2016, arXiv:1611.09482).

A sample of sound is a softmax over K companded levels (section 2.2) given all samples before it: the input, shifted by
one, goes through gated layers (eq. 2) of dilated causal convolutions whose sums of skip connections make the logits
(figure 4). The words of a caption, such as a digit or a speaker, bias every gate (eq. 3, global conditioning).

Shape letters: B sounds, T samples (of tokens: words), K levels, R residual and S skip features, G = 2 R of the gate, L
layers, Q samples in the queues. Sound is in [-1, 1]; likelihoods are exact sums over a sound's
samples up to its length, in nats a sound; the loss is in nats a sample.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Family, Losses, Request, Rows
from models.parts import words
from models.parts.levels import drawn, levels_of, sound_of
from models.parts.noise import uniforms

LONGEST_S: Final = 60.0  # of a drawn sound
PIECE: Final = 16  # samples of a step at most: some 10 ms, so that others' steps come soon
PART: Final = 2**12  # samples that are rated at once: their logits take K times as many numbers
DILATIONS: Final = tuple(2**n for n in range(10))  # of a stack in the paper, in samples


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveNetConfig:
    """What is learned and the network's sizes."""

    sample_rate: int = 8000  # Hz
    seconds: float = 0.5  # of a drawn sound where the request does not say
    levels: int = 256  # of a sample
    vocabulary: tuple[str, ...] = ()  # lower-case words; empty: unconditional
    max_words: int = 8
    text: Literal["caption", "none"] = "caption"  # none: the vocabulary is not used
    dilations: tuple[int, ...] = DILATIONS[:8]  # of one stack, in samples
    stacks: int = 2
    residual: int = 32  # features between the layers
    skip: int = 64  # features of the sum of all layers
    window: int = 2000  # samples of a training row
    block: int = PIECE  # samples of one step of the sampler; of more, PIECE at a time
    shift: bool = True  # of the input by one sample; False is the broken control: it sees itself

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        if not 2 <= self.levels <= 65536:
            raise ValueError(f"levels must be between 2 and 65536, got {self.levels}")
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"dilations must be at least 1, and at least one: {self.dilations}")
        for name in ("sample_rate", "max_words", "stacks", "residual", "skip", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.seconds <= LONGEST_S:
            raise ValueError(f"seconds must be above 0, at most {LONGEST_S}, got {self.seconds}")
        if self.window <= self.field:
            raise ValueError(
                f"window must be more than the field of {self.field}, got {self.window}"
            )

    @property
    def reads_text(self) -> bool:
        """Whether captions condition the sounds."""
        return self.text == "caption" and bool(self.vocabulary)

    @property
    def step(self) -> int:
        """How many samples a step of the sampler draws."""
        return min(self.block, PIECE)

    @property
    def field(self) -> int:
        """How many samples before it a sample is predicted from."""
        return self.stacks * sum(self.dilations) + 1


class DilatedLayer(nn.Module):
    """One layer of figure 4: it hears of a sample and of one `dilation` before."""

    def __init__(self, config: WaveNetConfig, dilation: int, known_words: int) -> None:
        super().__init__()
        self.dilation, self.size = dilation, config.residual
        self.gate = nn.Linear(2 * config.residual, 2 * config.residual)
        self.out = nn.Linear(config.residual, config.residual + config.skip)
        wide, known = 2 * config.residual, known_words + 1
        self.caption = nn.Embedding(known, wide, padding_idx=0) if known_words else None

    def forward(self, x_BTR: Tensor, heard: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next layer's input (B, T, R) and the skip connection (B, T, S); `heard` as `conditions`."""
        past_BTR = F.pad(x_BTR, (0, 0, self.dilation, 0))[:, : x_BTR.shape[1]]
        out_BTX = self.out(gated(self.gate(torch.cat([past_BTR, x_BTR], 2)) + heard))
        return x_BTR + out_BTX[..., : self.size], out_BTX[..., self.size :]

    def conditions(self, tokens: Tensor | None) -> Tensor:
        """Return what words add to the gate, (B or 1, 1, G)."""
        if self.caption is None or tokens is None:
            return self.gate.weight.new_zeros(1, 1, 2 * self.size)
        heard: Tensor = self.caption(tokens).sum(1, keepdim=True)
        return heard


def gated(x: Tensor) -> Tensor:
    """Return tanh of the first half of the features times sigmoid of the second (eq. 2)."""
    a, b = x.chunk(2, -1)
    return a.tanh() * b.sigmoid()


class WaveNet(Family):
    """Samples one after another, each a softmax over its levels given all before it."""

    Config = WaveNetConfig
    presets: ClassVar[Mapping[str, WaveNetConfig]] = {
        "tiny": WaveNetConfig(
            dilations=(1, 2, 4), residual=16, skip=16, window=200, block=50, seconds=0.05
        ),
        "small": WaveNetConfig(),
        "base": WaveNetConfig(
            sample_rate=16000, dilations=DILATIONS, stacks=3, residual=128, skip=256, window=16000
        ),
    }
    measures: ClassVar[tuple[str, ...]] = ("bits_per_sample",)
    gone: ClassVar[tuple[str, ...]] = ("features", "hop")
    config: WaveNetConfig

    def __init__(self, config: WaveNetConfig) -> None:
        super().__init__()
        self.config = config
        known = len(config.vocabulary) if config.reads_text else 0
        self.one_hot = nn.Embedding(config.levels + 1, config.residual)
        self.first = nn.Linear(2, config.residual)
        self.layers = nn.ModuleList(
            DilatedLayer(config, dilation, known) for dilation in config.dilations * config.stacks
        )
        self.head1 = nn.Linear(config.skip, config.skip)
        self.head2 = nn.Linear(config.skip, config.levels)

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        text = self.config.reads_text
        return Capabilities(
            modality="audio", condition="text" if text else "none", likelihood=True, stepwise=True
        )

    def encode(self, captions: Sequence[str]) -> Tensor | None:
        """Return tokens (B, T) int64, 0 after the last word; None for a model without text.

        Raises:
            ValueError: a caption is empty, longer than max_words or has a word never learned.
        """
        c = self.config
        return words.encode(captions, c.vocabulary, c.max_words) if c.reads_text else None

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean nats of a sample, over a random window of each row, inside its length.

        A window may begin before the sound does, so that its first samples are learned as often as others; the first
        samples of one that begins later only serve to predict the others from.
        """
        level_BT, length_B = self._levels(batch)
        window = min(self.config.window, level_BT.shape[1])
        field, place_T = self.config.field, torch.arange(window, device=level_BT.device)
        room_B = (length_B - window).clamp(min=0) + field
        start_B = (torch.rand_like(room_B.float()) * (room_B + 1)).long().sub(field).clamp(min=0)
        index_BT = start_B[:, None] + place_T
        nats_BT = self._nats(level_BT.gather(1, index_BT), self.tokens_of(batch))
        counted_BT = ((start_B == 0)[:, None] | (place_T >= field)) & (index_BT < length_B[:, None])
        count = counted_BT.sum()
        return Losses((nats_BT * counted_BT).sum() / count.clamp(min=1), count)

    @torch.no_grad()
    def log_prob(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return log p(levels of the sound up to its length), given its caption, in nats (B,); exact.

        Raises:
            ValueError: the model learned captions and the batch has no `tokens`.
        """
        *_, found = self.rating(batch, generator)
        assert found is not None
        return found

    @torch.no_grad()
    def rating(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,  # noqa: ARG002 - draws nothing
    ) -> Iterator[Tensor | None]:
        """Rate PART samples after another up to the longest length, and yield after each part."""
        level_BT, length_B = self._levels(batch)
        tokens, samples = self.tokens_of(batch), int(length_B.max())
        level_BT = level_BT[:, :samples]
        parts = []
        for start in range(0, samples, PART):  # the field before a part is all that it depends on
            seen = slice(max(0, start - self.config.field), start + PART)
            parts.append(self._nats(level_BT[:, seen], tokens)[:, start - seen.start :])
            if start + PART < samples:
                yield None
        place_T = torch.arange(samples, device=level_BT.device)
        yield -(torch.cat(parts, 1) * (place_T < length_B[:, None])).sum(1)

    def _nats(self, level_BT: Tensor, tokens: Tensor | None) -> Tensor:
        logits_BTK = self.logits(level_BT, tokens)
        return F.cross_entropy(logits_BTK.mT.float(), level_BT, reduction="none")

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return `bits_per_sample` (N,), the mean over a sound's length; uniform levels have log2 K."""
        _, length_B = self._levels(batch)
        bits_B = -self.log_prob(batch) / math.log(2)
        return {"bits_per_sample": bits_B / length_B.clamp(min=1)}

    def logits(self, level_BT: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return every sample's logits (B, T, K) given the levels before it, all at once."""
        told_BT = F.pad(level_BT + 1, (1, 0))[:, :-1] if self.config.shift else level_BT + 1
        x_BTR = self._entered(told_BT)
        total_BTS: Tensor | float = 0.0
        for layer in self._layers():
            x_BTR, skip_BTS = layer(x_BTR, layer.conditions(tokens))
            total_BTS = total_BTS + skip_BTS
        assert isinstance(total_BTS, Tensor)
        return self._head(total_BTS)

    def _layers(self) -> Iterator[DilatedLayer]:
        for layer in self.layers:
            assert isinstance(layer, DilatedLayer)
            yield layer

    def _head(self, skips: Tensor) -> Tensor:
        logits: Tensor = self.head2(self.head1(skips.relu()).relu())
        return logits

    def _entered(self, told: Tensor) -> Tensor:
        """Return the first features (..., R) of levels 1..K, 0 where the sound has not begun.

        One-hot as in the paper, and the companded value beside it, so that near levels are near from the first step on.
        """
        begun = (told > 0).float()
        companded = (2 * (told - 1) / (self.config.levels - 1) - 1) * begun
        entered: Tensor = self.one_hot(told) + self.first(torch.stack([companded, begun], -1))
        return entered

    def _levels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return levels (B, T) and the lengths (B,)."""
        sound_BT = batch["sound"]
        whole_B = torch.full((len(sound_BT),), sound_BT.shape[1], device=sound_BT.device)
        length_B = batch.get("length", whole_B)
        return levels_of(sound_BT, self.config.levels), length_B

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Draw sample after sample; returns (B, T) in [-1, 1] at `sample_rate`, of `request.seconds`.

        Raises:
            ValueError: prompts are missing or not understood, seconds out of range; see `check`.
        """
        rows = self.begin(request)
        while not self.done(rows).all():
            rows = self.step(rows)
        return self.finish(rows)

    @torch.no_grad()
    def begin(self, request: Request) -> Rows:
        """Return rows before their first sample; a step draws `config.step` samples.

        Raises:
            ValueError: prompts are missing or not understood, seconds out of range; see `check`.
        """
        config, count = self.config, len(request.seeds)
        self.check(request)
        seconds = config.seconds if request.seconds is None else request.seconds
        if not 0 < seconds <= LONGEST_S:
            raise ValueError(f"seconds must be above 0 and at most {LONGEST_S}, got {seconds}")
        samples, size = self._samples(request), config.step
        steps, device = -(-samples // size), self.head2.weight.device
        tokens = self.encode(request.prompts)
        tokens = None if tokens is None else tokens.to(device)
        heard = [layer.conditions(tokens)[:, 0] for layer in self._layers()]
        return {
            "u": uniforms(request.seeds, (steps * size,), device),
            "level": torch.zeros(count, steps * size, dtype=torch.long, device=device),
            "told": torch.zeros(count, dtype=torch.long, device=device),
            "queue": torch.zeros(count, config.field - 1, config.residual, device=device),
            "heard": torch.stack(heard, 1).expand(count, -1, -1),
            "index": torch.zeros(count, dtype=torch.long),
            "count": torch.full((count,), steps),
            "samples": torch.full((count,), samples),
        }

    def _samples(self, request: Request) -> int:
        seconds = self.config.seconds if request.seconds is None else request.seconds
        return max(1, round(seconds * self.config.sample_rate))

    def steps_of(self, request: Request) -> int:
        """Return how many pieces the samples are."""
        return -(-self._samples(request) // self.config.step)

    def done(self, rows: Rows) -> Tensor:
        """Return (B,) bool: the rows whose samples are all drawn."""
        return rows["index"] >= rows["count"]

    @torch.no_grad()
    def step(self, rows: Rows) -> Rows:
        """Return the rows one piece later; finished rows stay as they are."""
        size, device = self.config.step, rows["u"].device
        going_B = ~self.done(rows)
        going = going_B.to(device)
        place_BT = (rows["index"].minimum(rows["count"] - 1) * size).to(device)[:, None]
        place_BT = place_BT + torch.arange(size, device=device)
        walk = Walk(self, rows, place_BT)
        u_BT = rows["u"].gather(1, place_BT)
        told, levels = rows["told"], []
        for t in range(size):
            levels.append(drawn(self._head(walk.sample(t, told)), u_BT[:, t]).long())
            told = levels[-1] + 1
        kept_BT = rows["level"].gather(1, place_BT)
        told_BT = torch.where(going[:, None], torch.stack(levels, 1), kept_BT)
        return {
            **rows,
            "level": rows["level"].scatter(1, place_BT, told_BT),
            "told": torch.where(going, told, rows["told"]),
            "queue": torch.where(going[:, None, None], walk.queue(), rows["queue"]),
            "index": rows["index"] + going_B.long(),
        }

    def preview(self, rows: Rows) -> Tensor:
        """Return the sounds as far as they are drawn, and silence after, (B, T) in [-1, 1]."""
        return self.finish(rows)

    def finish(self, rows: Rows) -> Tensor:
        """Return the sounds (B, T) in [-1, 1]; after its own end, each is silent."""
        ended_B = (rows["index"] * self.config.step).minimum(rows["samples"])
        longest = int(rows["samples"].max())
        sound_BT = sound_of(rows["level"][:, :longest], self.config.levels)
        inside_BT = torch.arange(longest) < ended_B[:, None]
        return sound_BT * inside_BT.to(sound_BT.device)


class Walk:
    """The layers that are told sample after sample, each feature computed once; what a layer hears of is queued."""

    def __init__(self, model: WaveNet, rows: Rows, place_BT: Tensor) -> None:
        layers, size = list(model._layers()), place_BT.shape[1]
        self.dilations, self.width = [layer.dilation for layer in layers], model.config.residual
        known_K = torch.arange(model.config.levels + 1, device=place_BT.device)
        self.table_KR = model._entered(known_K)
        self.told: list[Tensor] = []  # (Q + T, B, R) a layer: its queue, then the block
        self.heard: list[Tensor] = []  # (B, G) a layer, the bias with it
        queues = torch.split(rows["queue"], self.dilations, 1)
        for number, (layer, queue_BQR) in enumerate(zip(layers, queues, strict=True)):
            self.told.append(F.pad(queue_BQR, (0, 0, 0, size)).transpose(0, 1).contiguous())
            self.heard.append(rows["heard"][:, number] + layer.gate.bias)
        self.gates = [layer.gate.weight.T.contiguous() for layer in layers]
        self.outs = [layer.out.weight[: self.width].T.contiguous() for layer in layers]
        self.biases = [layer.out.bias[: self.width] for layer in layers]
        self.skip = torch.cat([layer.out.weight[self.width :] for layer in layers], 1).T
        self.skip_bias = torch.stack([layer.out.bias[self.width :] for layer in layers]).sum(0)

    def sample(self, t: int, told_B: Tensor) -> Tensor:
        """Take the sample before the block's sample t; return the sum of skip connections (B, S) there."""
        x_BR, parts = self.table_KR[told_B], []
        for number, dilation in enumerate(self.dilations):
            told, heard = self.told[number], self.heard[number]
            told[dilation + t] = x_BR
            both = torch.cat([told[t], x_BR], 1)
            parts.append(gated(torch.addmm(heard, both, self.gates[number])))
            x_BR = x_BR + torch.addmm(self.biases[number], parts[-1], self.outs[number])
        return torch.addmm(self.skip_bias, torch.cat(parts, 1), self.skip)

    def queue(self) -> Tensor:
        """Return the queues after the block, (B, Q, R)."""
        ends = [told[-dilation:] for told, dilation in zip(self.told, self.dilations, strict=True)]
        return torch.cat(ends).transpose(0, 1).contiguous()
