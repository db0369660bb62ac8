"""WaveNet (van den Oord et al. 2016, arXiv:1609.03499), with the cached generation of Paine et al. 2016.

A sample of sound is a softmax over K companded levels (section 2.2) given all samples before it: the input, shifted by
one, goes through gated layers (eq. 2) of dilated causal convolutions whose sums of skip connections make the logits
(figure 4). The words of a caption, such as a digit or a speaker, bias every gate (eq. 3, global conditioning), and so
do the frames of a mel spectrogram where there is one, each for the samples of its hop (section 2.5, local
conditioning). Generation computes each layer's output once a sample, from a queue of its inputs (arXiv:1611.09482).

Shape letters: B sounds, T samples (of tokens: words), F frames, M mels, K levels, R residual and S skip features, G = 2
R of the gate, L layers, Q samples in the caches of all layers. Sound is in [-1, 1]; likelihoods are exact sums over a
sound's samples up to its length, in nats a sound, given its mels where it is told them; the loss is in nats a sample.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Family, Losses, Rows
from models.parts import bounds
from models.parts.levels import drawn, levels_of, sound_of
from models.parts.mel import PRESETS, Mel
from models.parts.noise import uniforms
from models.parts.rows import to_end
from models.parts.words import Captioned
from models.ports import Port
from models.request import Request, SoundOptions

LONGEST_S: Final = 60.0  # of a drawn sound
STEP: Final = 16  # samples of a step at most: some 10 ms, so that others' steps come soon
CHUNK: Final = 2**12  # samples that are scored at once: their logits take K times as many numbers
DILATIONS: Final = tuple(2**n for n in range(10))  # of a stack in the paper, in samples


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveNetConfig(Captioned):
    """What is learned and the network's sizes."""

    sample_rate: int = 8000  # Hz
    seconds: float = 0.5  # of a drawn sound where the request does not say
    levels: int = 256  # of a sample
    vocabulary: tuple[str, ...] = ()  # lower-case words; empty: unconditional
    max_words: int = 8
    text: Literal["caption", "none"] = "caption"  # none: the vocabulary is not used
    mel: Mel | None = None  # of what it says; None: it is told none
    dilations: tuple[int, ...] = DILATIONS[:8]  # of one stack, in samples
    stacks: int = 2
    residual: int = 32  # features between the layers
    skip: int = 64  # features of the sum of all layers
    window: int = 2000  # samples of a training row
    block: int = STEP  # samples of one step of the sampler; of more, STEP at a time
    shift: bool = True  # of the input by one sample; False is the broken control: it sees itself

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.within("levels", self.levels, (2, 65536))
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"dilations must be at least 1, and at least one: {self.dilations}")
        sizes = ("sample_rate", "max_words", "stacks", "residual", "skip", "block")
        bounds.check(self, dict.fromkeys(sizes, bounds.SIZE))
        if self.mel is not None:
            object.__setattr__(self, "mel", Mel.of(self.mel))
            self.mel.must_hear(self.sample_rate)
        if not 0 < self.seconds <= LONGEST_S:
            raise ValueError(f"seconds must be above 0, at most {LONGEST_S}, got {self.seconds}")
        if self.window <= self.receptive_field:
            raise ValueError(
                f"window must be more than the receptive field of {self.receptive_field},"
                f" got {self.window}"
            )

    @property
    def step(self) -> int:
        """How many samples a step of the sampler draws."""
        return min(self.block, STEP)

    @property
    def receptive_field(self) -> int:
        """How many samples before it a sample is predicted from."""
        return self.stacks * sum(self.dilations) + 1


@dataclass(frozen=True, slots=True)
class Heard:
    """Mels that samples are told of."""

    mel_BFM: Tensor
    place_BT: Tensor  # the frame of each sample


class DilatedLayer(nn.Module):
    """One layer of figure 4: a causal convolution of width 2, of a sample and of the one `dilation` before it."""

    def __init__(self, config: WaveNetConfig, dilation: int, known_words: int) -> None:
        super().__init__()
        self.dilation, self.size = dilation, config.residual
        self.gate = nn.Linear(2 * config.residual, 2 * config.residual)
        self.out = nn.Linear(config.residual, config.residual + config.skip)
        wide, known = 2 * config.residual, known_words + 1
        self.caption = nn.Embedding(known, wide, padding_idx=0) if known_words else None
        mels = config.mel.mels if config.mel else 0
        self.told = nn.Linear(mels, wide, bias=False) if mels else None

    def forward(
        self, x_BTR: Tensor, tokens: Tensor | None, heard: Heard | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the next layer's input (B, T, R) and the skip connection (B, T, S)."""
        past_BTR = F.pad(x_BTR, (0, 0, self.dilation, 0))[:, : x_BTR.shape[1]]
        gate_BTG = self.gate(torch.cat([past_BTR, x_BTR], 2)) + self.conditioning(tokens)
        if self.told is not None and heard is not None:
            told_BFG = self.told(heard.mel_BFM)
            place_BT1 = heard.place_BT[..., None].expand(-1, -1, told_BFG.shape[2])
            gate_BTG = gate_BTG + told_BFG.gather(1, place_BT1)
        out_BTX = self.out(gated(gate_BTG))
        return x_BTR + out_BTX[..., : self.size], out_BTX[..., self.size :]

    def conditioning(self, tokens: Tensor | None) -> Tensor:
        """Return what the words add to the gate, V h of eq. 3, (B or 1, 1, G)."""
        if self.caption is None or tokens is None:
            return self.gate.weight.new_zeros(1, 1, 2 * self.size)
        cond_B1G: Tensor = self.caption(tokens).sum(1, keepdim=True)
        return cond_B1G


def gated(x: Tensor) -> Tensor:
    """Return tanh of the first half of the features times sigmoid of the second (eq. 2)."""
    a, b = x.chunk(2, -1)
    return a.tanh() * b.sigmoid()


class WaveNet(Family):
    """Samples one after another, each a softmax over its levels given all before it."""

    Config = WaveNetConfig
    Options = SoundOptions
    presets: ClassVar[Mapping[str, WaveNetConfig]] = {
        "tiny": WaveNetConfig(
            dilations=(1, 2, 4), residual=16, skip=16, window=200, block=50, seconds=0.05
        ),
        "small": WaveNetConfig(),
        "base": WaveNetConfig(
            sample_rate=16000, dilations=DILATIONS, stacks=3, residual=128, skip=256, window=16000
        ),
        "vocoder": WaveNetConfig(text="none", mel=PRESETS["8khz"]),
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

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what it draws from: a text where it reads any, and mels where it is told them."""
        mel = self.config.mel
        return {**super().inputs, **({"mel": mel.port} if mel else {})}

    @property
    def takes(self) -> tuple[str, ...]:
        """Return the names of its options: mels say how long they are."""
        return () if self.config.mel else super().takes

    def given_of(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mels of real sounds, where it is told any."""
        mel = self.config.mel
        return {"mel": mel.log_mel(batch["sound"], batch.get("length"))} if mel else {}

    def _heard(self, mel_BMF: Tensor | None, index_BT: Tensor) -> Heard | None:
        """Return what samples at these places are told; behind the last frame that goes on."""
        mel = self.config.mel
        if mel is None or mel_BMF is None:
            return None
        place_BT = (index_BT // mel.hop).clamp(max=mel_BMF.shape[2] - 1)
        return Heard(mel_BMF.mT / 4 + 1, place_BT)  # near 0

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean nats of a sample, over a random window of each row, inside its length.

        A window that would begin before the sound, by a receptive field at most, begins with it, so that its first
        samples are learned often, too; the first ones of a later window only serve to predict the others from.
        """
        level_BT, length_B = self._levels(batch)
        window = min(self.config.window, level_BT.shape[1])
        field, time_T = self.config.receptive_field, torch.arange(window, device=level_BT.device)
        last_B = (length_B - window).clamp(min=0) + field
        start_B = (torch.rand_like(last_B.float()) * (last_B + 1)).long().sub(field).clamp(min=0)
        index_BT = start_B[:, None] + time_T
        heard = self._heard(self.given_of(batch).get("mel"), index_BT)
        nats_BT = self._nats(level_BT.gather(1, index_BT), self.tokens_of(batch), heard)
        counted_BT = ((start_B == 0)[:, None] | (time_T >= field)) & (index_BT < length_B[:, None])
        count = counted_BT.sum()
        return Losses((nats_BT * counted_BT).sum() / count.clamp(min=1), count)

    @torch.no_grad()
    def log_prob(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return log p(levels of the sound up to its length), given its caption, in nats (B,); exact.

        Raises:
            ValueError: the model learned captions and the batch has no `tokens`.
        """
        *_, log_p_B = self.rating(batch, generator)
        assert log_p_B is not None
        return log_p_B

    @torch.no_grad()
    def rating(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,  # noqa: ARG002 - draws nothing
    ) -> Iterator[Tensor | None]:
        """Score CHUNK samples after another up to the longest length, and yield after each chunk."""
        level_BT, length_B = self._levels(batch)
        tokens, samples = self.tokens_of(batch), int(length_B.max())
        mel_BMF = self.given_of(batch).get("mel")
        level_BT = level_BT[:, :samples]
        chunks = []
        for start in range(
            0, samples, CHUNK
        ):  # with the receptive field before it, all it depends on
            first = max(0, start - self.config.receptive_field)
            level_BC = level_BT[:, first : start + CHUNK]
            place_BC = first + torch.arange(level_BC.shape[1], device=level_BC.device)
            heard = self._heard(mel_BMF, place_BC.expand(len(level_BC), -1))
            nats_BT = self._nats(level_BC, tokens, heard)
            chunks.append(nats_BT[:, start - first :])
            if start + CHUNK < samples:
                yield None
        time_T = torch.arange(samples, device=level_BT.device)
        yield -(torch.cat(chunks, 1) * (time_T < length_B[:, None])).sum(1)

    def _nats(self, level_BT: Tensor, tokens: Tensor | None, heard: Heard | None) -> Tensor:
        logits_BTK = self.logits(level_BT, tokens, heard)
        return F.cross_entropy(logits_BTK.mT.float(), level_BT, reduction="none")

    @torch.no_grad()
    def measure(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return `bits_per_sample` (N,), the mean over a sound's length; uniform levels have log2 K."""
        _, length_B = self._levels(batch)
        bits_B = -self.log_prob(batch) / math.log(2)
        return {"bits_per_sample": bits_B / length_B.clamp(min=1)}

    def logits(
        self, level_BT: Tensor, tokens: Tensor | None = None, heard: Heard | None = None
    ) -> Tensor:
        """Return every sample's logits (B, T, K) given the levels before it, all at once."""
        # level 0 is a level: the 0 that is shifted in says that no sample came before
        input_BT = F.pad(level_BT + 1, (1, 0))[:, :-1] if self.config.shift else level_BT + 1
        x_BTR = self.embedded(input_BT)
        total_BTS: Tensor | float = 0.0
        for layer in self.dilated_layers():
            x_BTR, skip_BTS = layer(x_BTR, tokens, heard)
            total_BTS = total_BTS + skip_BTS
        assert isinstance(total_BTS, Tensor)
        return self._head(total_BTS)

    def dilated_layers(self) -> Iterator[DilatedLayer]:
        """Yield the layers, from the input on."""
        for layer in self.layers:
            assert isinstance(layer, DilatedLayer)
            yield layer

    def _head(self, skips: Tensor) -> Tensor:
        logits: Tensor = self.head2(self.head1(skips.relu()).relu())
        return logits

    def embedded(self, previous: Tensor) -> Tensor:
        """Return the first layer's input (..., R) after samples of levels 1..K, 0 where the sound has not begun.

        One-hot as in the paper, and the companded value beside it, so that near levels are near from the first step on.
        """
        begun = (previous > 0).float()
        companded = (2 * (previous - 1) / (self.config.levels - 1) - 1) * begun
        x: Tensor = self.one_hot(previous) + self.first(torch.stack([companded, begun], -1))
        return x

    def _levels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return levels (B, T) and the lengths (B,)."""
        sound_BT = batch["sound"]
        whole_B = torch.full((len(sound_BT),), sound_BT.shape[1], device=sound_BT.device)
        length_B = batch.get("length", whole_B)
        return levels_of(sound_BT, self.config.levels), length_B

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Draw sample after sample; returns (B, T) in [-1, 1] at `sample_rate`, of the request's `seconds`.

        Raises:
            ValueError: prompts are missing or not understood, seconds out of range; see `check`.
        """
        return to_end(self, self.begin(request))

    @torch.no_grad()
    def begin(self, request: Request) -> Rows:
        """Return rows before their first sample; a step draws `config.step` samples.

        Raises:
            ValueError: prompts are missing or not understood, seconds out of range; see `check`.
        """
        config, count = self.config, len(request.seeds)
        self.check(request)
        seconds = request.options.get("seconds", config.seconds)
        if not 0 < seconds <= LONGEST_S:
            raise ValueError(f"seconds must be above 0 and at most {LONGEST_S}, got {seconds}")
        size, device = config.step, self.head2.weight.device
        samples_B = self._samples(request)
        steps_B = (samples_B + size - 1) // size
        steps = int(steps_B.max())
        tokens = self.encode(request.prompts)
        tokens = None if tokens is None else tokens.to(device)
        cond = [layer.conditioning(tokens)[:, 0] for layer in self.dilated_layers()]
        cached = config.receptive_field - 1
        told = {}
        if config.mel:  # of all layers, once a frame
            mel_BMF = config.mel.padded(request.given["mel"].to(device).float(), 1)
            heard = self._heard(mel_BMF, torch.zeros(count, 1, dtype=torch.long, device=device))
            assert heard is not None
            layers = [layer.told for layer in self.dilated_layers()]
            told = {"told": torch.stack([one(heard.mel_BFM) for one in layers if one], 2)}
        return {
            **told,
            "u": uniforms(request.seeds, (steps * size,), device),
            "level": torch.zeros(count, steps * size, dtype=torch.long, device=device),
            "input": torch.zeros(count, dtype=torch.long, device=device),
            "cache": torch.zeros(count, cached, config.residual, device=device),
            "cond": torch.stack(cond, 1).expand(count, -1, -1),
            "index": torch.zeros(count, dtype=torch.long),
            "count": steps_B,
            "samples": samples_B,
        }

    def _samples(self, request: Request) -> Tensor:
        """Return how many samples (B,) each row has: those of its mels, or of the seconds asked for."""
        mel, count = self.config.mel, len(request.seeds)
        if mel:
            return (mel.lengths(request.given["mel"]) * mel.hop).clamp(min=1).cpu()
        seconds: float = request.options.get("seconds", self.config.seconds)
        return torch.full((count,), max(1, round(seconds * self.config.sample_rate)))

    def steps_of(self, request: Request) -> int:
        """Return how many steps of `config.step` samples the sound takes."""
        return -(-int(self._samples(request).max()) // self.config.step)

    def done(self, rows: Rows) -> Tensor:
        """Return (B,) bool: the rows whose samples are all drawn."""
        return rows["index"] >= rows["count"]

    @torch.no_grad()
    def step(self, rows: Rows) -> Rows:
        """Return the rows `config.step` samples further; finished rows stay as they are."""
        size, device = self.config.step, rows["u"].device
        active_B = ~self.done(rows)
        active = active_B.to(device)
        index_BT = (rows["index"].minimum(rows["count"] - 1) * size).to(device)[:, None]
        index_BT = index_BT + torch.arange(size, device=device)
        layers = CachedLayers(self, rows, size, index_BT)
        u_BT = rows["u"].gather(1, index_BT)
        input_B, levels = rows["input"], []
        for t in range(size):
            logits_BK = self._head(layers.skips(t, input_B))
            levels.append(drawn(logits_BK, u_BT[:, t]).long())
            input_B = levels[-1] + 1
        before_BT = rows["level"].gather(1, index_BT)
        level_BT = torch.where(active[:, None], torch.stack(levels, 1), before_BT)
        return {
            **rows,
            "level": rows["level"].scatter(1, index_BT, level_BT),
            "input": torch.where(active, input_B, rows["input"]),
            "cache": torch.where(active[:, None, None], layers.cache(), rows["cache"]),
            "index": rows["index"] + active_B.long(),
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


class CachedLayers:
    """All layers, a sample at a time: each one's inputs are kept for as long as a dilation may look back.

    The same numbers as `DilatedLayer.forward`, as few kernels as they take: weights transposed once a block of T
    samples, and one product for the skip connections of all layers.
    """

    def __init__(self, model: WaveNet, rows: Rows, size: int, index_BT: Tensor) -> None:
        layers, device = list(model.dilated_layers()), rows["cache"].device
        self.dilations, self.width = [layer.dilation for layer in layers], model.config.residual
        self.embedding_KR = model.embedded(torch.arange(model.config.levels + 1, device=device))
        self.inputs: list[Tensor] = []  # (Q + T, B, R) a layer: its cache, then the block
        self.cond: list[Tensor] = []  # (B, G) a layer, the bias with it
        caches = torch.split(rows["cache"], self.dilations, 1)
        for depth, (layer, cache_BQR) in enumerate(zip(layers, caches, strict=True)):
            self.inputs.append(F.pad(cache_BQR, (0, 0, 0, size)).transpose(0, 1).contiguous())
            self.cond.append(rows["cond"][:, depth] + layer.gate.bias)
        self.told_BTLG: Tensor | None = None
        if model.config.mel:
            last = rows["told"].shape[1] - 1
            place_BT = (index_BT // model.config.mel.hop).clamp(max=last)
            row_B1 = torch.arange(len(place_BT), device=device)[:, None]
            self.told_BTLG = rows["told"][row_B1, place_BT]
        self.gates = [layer.gate.weight.T.contiguous() for layer in layers]
        self.outs = [layer.out.weight[: self.width].T.contiguous() for layer in layers]
        self.biases = [layer.out.bias[: self.width] for layer in layers]
        self.skip = torch.cat([layer.out.weight[self.width :] for layer in layers], 1).T
        self.skip_bias = torch.stack([layer.out.bias[self.width :] for layer in layers]).sum(0)

    def skips(self, t: int, input_B: Tensor) -> Tensor:
        """Return the sum of skip connections (B, S) at the block's sample t, whose input is the sample before."""
        x_BR, gates = self.embedding_KR[input_B], []
        for depth, dilation in enumerate(self.dilations):
            inputs = self.inputs[depth]
            inputs[dilation + t] = x_BR
            both = torch.cat([inputs[t], x_BR], 1)  # what came a dilation before, and now
            bias = self.cond[depth]
            if self.told_BTLG is not None:
                bias = bias + self.told_BTLG[:, t, depth]
            gates.append(gated(torch.addmm(bias, both, self.gates[depth])))
            x_BR = x_BR + torch.addmm(self.biases[depth], gates[-1], self.outs[depth])
        return torch.addmm(self.skip_bias, torch.cat(gates, 1), self.skip)

    def cache(self) -> Tensor:
        """Return what the next block needs of this one and those before, (B, Q, R)."""
        pairs = zip(self.inputs, self.dilations, strict=True)
        return (
            torch.cat([inputs[-dilation:] for inputs, dilation in pairs])
            .transpose(0, 1)
            .contiguous()
        )
