"""The contract between a generative family and everything that trains, judges or serves it.

Shape letters: B rows of a batch, C channels, H and W pixels. Pixels are in [0, 1] at every public edge.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

Batch: TypeAlias = Mapping[str, Tensor]
"""`pixels` (B, C, H, W) in [0, 1]; `tokens` (B, T) int64 where captions are learned;
`attributes` (B, A) int64, one column an attribute of the caption, where the dataset names any."""

Rows: TypeAlias = dict[str, Tensor]
"""Samples under way: every tensor has one row a sample, so rows join and part by `cat` and index."""


@dataclass(frozen=True, slots=True)
class Losses:
    """The scalar to minimise and the named scalars to log beside it."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks a sampler for: one row a seed, each row drawn from its own seed alone."""

    seeds: tuple[int, ...]
    prompts: tuple[str, ...] = ()  # one a seed; empty for an unconditional sampler
    steps: int | None = None  # None: the family's own default
    guidance: float | None = None  # classifier-free guidance scale; 1 is none
    low_BCHW: Tensor | None = None  # in [0, 1], for a family that upscales

    def __post_init__(self) -> None:
        for name, value in (("prompts", self.prompts), ("low_BCHW", self.low_BCHW)):
            if value is not None and len(value) not in {0, len(self.seeds)}:
                raise ValueError(
                    f"{len(self.seeds)} seeds but {len(value)} {name}: give one a seed"
                )


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a model can do; endpoints, metrics, gates and contract tests are derived from it."""

    modality: Literal["image"] = "image"
    condition: Literal["none", "text"] = "none"
    likelihood: bool = False  # has log_prob
    upscales: bool = False  # wants Request.low_BCHW
    stepwise: bool = False  # has begin, step, done, preview, finish


class Trainable(nn.Module, ABC):
    """A network that the training loop can fit; `forward` is the loss, so that DDP hooks surround it.

    A model with several optimisers (a GAN) names them in `players`: the loop calls `forward` once a
    player and steps the optimiser over `player_parameters(player)`. One that has several `turns` at each
    step does so on one part of the batch after the other.

    A family that `counts` has no parameters: the loop shows every training row to `absorb` once a pass, adds up
    `sums` over the workers and calls `settle`; `forward` only measures.
    """

    Config: ClassVar[type[Any]]  # a frozen dataclass that round-trips through JSON
    presets: ClassVar[Mapping[str, Any]]  # named Configs; always has "tiny"
    players: ClassVar[tuple[str, ...]] = ("model",)
    counts: ClassVar[bool] = False  # has sums, absorb, settle
    config: Any

    @abstractmethod
    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """Return `player`'s losses on one batch; randomness comes from torch's global generator."""

    def player_parameters(self, player: str) -> list[nn.Parameter]:  # noqa: ARG002 - one player
        """Return the parameters that `player`'s optimiser owns."""
        return list(self.parameters())

    def turns(self, player: str) -> int:  # noqa: ARG002 - every player has one
        """Return how many optimiser steps `player` takes at each step."""
        return 1

    @property
    def sums(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the buffers that `absorb` adds to, one tuple a pass over the rows."""
        return ()

    def absorb(self, batch: Batch, number: int = 0) -> None:
        """Add a batch's sufficient statistics to the sums of pass 0, 1, ..."""
        raise NotImplementedError(f"{type(self).__name__} does not count")

    def settle(self, number: int = 0) -> None:
        """Turn the sums, complete up to pass `number`, into what the model is made of."""
        raise NotImplementedError(f"{type(self).__name__} does not count")

    def encode(self, captions: Sequence[str]) -> Tensor | None:  # noqa: ARG002 - no text
        """Return the captions as `tokens` (B, T), or None for a model that learns no text.

        Raises:
            ValueError: a caption is too long or has a word outside the vocabulary.
        """
        return None


class Family(Trainable):
    """A trainable sampler."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Return what this model, with this config, can do."""

    @abstractmethod
    def sample(self, request: Request) -> Tensor:
        """Return samples (B, C, H, W) in [0, 1]; a seed gives its picture alone or in a batch."""

    def log_prob(self, batch: Batch) -> Tensor:
        """Return log p(x), or its lower bound, in nats a sample (B,); where `likelihood` is declared."""
        raise NotImplementedError(f"{type(self).__name__} declares no likelihood")

    def measure(self, batch: Batch) -> Mapping[str, Tensor]:  # noqa: ARG002 - nothing of its own
        """Return what the model itself can tell of pictures that it never learned, beside the judge's metrics.

        Values (N,) by name; evaluation reports their mean as STAGE_NAME, and a gate may ask for it.
        """
        return {}


def seeded_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Tensor:
    """Return (len(seeds), *shape) standard normal noise, each row from its own CPU generator and all of its seed.

    torch's CPU generator uses only the low 32 bits of a seed, so it is mixed first.
    """
    rows = [
        torch.randn(*shape, generator=torch.Generator().manual_seed(mixed(seed))) for seed in seeds
    ]
    return torch.stack(rows).to(device)


def mixed(value: int) -> int:
    """Return a 63-bit hash of an integer: the finaliser of splitmix64 (Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return (value ^ (value >> 31)) >> 1
