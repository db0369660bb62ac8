"""Encoders and decoders of pictures: around one flat code, dense or strided convolutions, or around a grid of codes.

Shape letters: B pictures, C channels, H and W pixels, Z latent width.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import nn

Network: TypeAlias = Literal["mlp", "conv"]


def check_halving(side: int, hidden: Sequence[int], what: str = "image_size") -> None:
    """Refuse a side that the convolutions cannot halve; errors call it `what`.

    Raises:
        ValueError: names it and what it must be a multiple of.
    """
    unit = 2 ** len(hidden)
    if side % unit:
        raise ValueError(
            f"{what} must be a multiple of {unit} for {len(hidden)} convolutions, got {side}"
        )


def autoencoder(
    network: Network,
    shape: tuple[int, int, int],
    hidden: Sequence[int],
    encoded: int,
    latent: int,
) -> tuple[nn.Module, nn.Module]:
    """Return encoder (B, C, H, W) -> (B, encoded) and decoder (B, Z) -> (B, C, H, W), which ends without a squashing.

    Args:
        network: dense layers, or convolutions of which each halves the side.
        shape: (C, H, W) with H equal to W.
        hidden: the widths of the dense layers, or the convolutions' channels, from the picture inwards.
        encoded: numbers that the encoder gives: Z, or 2 Z for a mean and a variance.
        latent: Z, numbers that the decoder takes.
    """
    make = _mlp if network == "mlp" else _conv
    return make(shape, tuple(hidden), encoded, latent)


def grid_encoder(channels: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Return (B, C, H, W) -> (B, outputs, h, w), h and w the sides after one halving for each of `hidden`."""
    return nn.Sequential(*halving((channels, *hidden)), nn.Conv2d(hidden[-1], outputs, 1))


def grid_decoder(inputs: int, hidden: Sequence[int], channels: int) -> nn.Sequential:
    """Return (B, inputs, h, w) -> (B, channels, H, W), the way back, without a squashing at its end."""
    stem = nn.Conv2d(inputs, hidden[-1], 3, padding=1)
    return nn.Sequential(stem, *doubling((*reversed(hidden), channels)))


def halving(channels: Sequence[int]) -> list[nn.Module]:
    """Return a convolution from each number of channels to the next, which halves the side, and a SiLU behind it."""
    return [
        layer
        for wide_in, wide_out in itertools.pairwise(channels)
        for layer in (nn.Conv2d(wide_in, wide_out, 4, stride=2, padding=1), nn.SiLU())
    ]


def doubling(channels: Sequence[int]) -> list[nn.Module]:
    """Return a SiLU and a transposed convolution, which doubles the side, from each number of channels to the next."""
    return [
        layer
        for wide_in, wide_out in itertools.pairwise(channels)
        for layer in (nn.SiLU(), nn.ConvTranspose2d(wide_in, wide_out, 4, stride=2, padding=1))
    ]


def dense(widths: Sequence[int]) -> list[nn.Module]:
    """Return linear layers from each width to the next, each with a SiLU behind it."""
    return [
        layer
        for wide_in, wide_out in itertools.pairwise(widths)
        for layer in (nn.Linear(wide_in, wide_out), nn.SiLU())
    ]


def _mlp(
    shape: tuple[int, int, int], hidden: tuple[int, ...], encoded: int, latent: int
) -> tuple[nn.Module, nn.Module]:
    pixels = math.prod(shape)
    encoder, decoder = dense((pixels, *hidden)), dense((latent, *reversed(hidden)))
    return (
        nn.Sequential(nn.Flatten(), *encoder, nn.Linear(hidden[-1], encoded)),
        nn.Sequential(*decoder, nn.Linear(hidden[0], pixels), nn.Unflatten(1, shape)),
    )


def _conv(
    shape: tuple[int, int, int], hidden: tuple[int, ...], encoded: int, latent: int
) -> tuple[nn.Module, nn.Module]:
    side = shape[-1] // 2 ** len(hidden)
    inwards = (shape[0], *hidden)
    deepest = (hidden[-1], side, side)
    decoder: list[nn.Module] = [
        nn.Linear(latent, math.prod(deepest)),
        nn.Unflatten(1, deepest),
    ]
    decoder += doubling((*reversed(inwards),))
    code = nn.Linear(math.prod(deepest), encoded)
    return nn.Sequential(*halving(inwards), nn.Flatten(), code), nn.Sequential(*decoder)
