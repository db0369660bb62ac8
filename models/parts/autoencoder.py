"""Encoders and decoders of pictures around one flat code: dense, or strided convolutions.

Shape letters: B pictures, C channels, H and W pixels, Z latent width.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import nn

Network: TypeAlias = Literal["mlp", "conv"]


def check(
    network: Network, image_size: int, channels: int, hidden: Sequence[int], latent: int
) -> None:
    """Refuse sizes that would fail late.

    Raises:
        ValueError: a size below 1, or a side that the convolutions cannot halve.
    """
    if not hidden or min(*hidden, latent, channels, image_size) < 1:
        raise ValueError(
            "image_size, channels, latent and each of hidden must be at least 1, got "
            f"{image_size}, {channels}, {latent}, {tuple(hidden)}"
        )
    unit = 2 ** len(hidden)
    if network == "conv" and image_size % unit:
        raise ValueError(
            f"image_size must be a multiple of {unit} for {len(hidden)} convolutions, "
            f"got {image_size}"
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
    encoder: list[nn.Module] = []
    for wide_in, wide_out in itertools.pairwise(inwards):
        encoder += [nn.Conv2d(wide_in, wide_out, 4, stride=2, padding=1), nn.SiLU()]
    deepest = (hidden[-1], side, side)
    decoder: list[nn.Module] = [
        nn.Linear(latent, math.prod(deepest)),
        nn.Unflatten(1, deepest),
    ]
    for wide_in, wide_out in itertools.pairwise(reversed(inwards)):
        decoder += [nn.SiLU(), nn.ConvTranspose2d(wide_in, wide_out, 4, stride=2, padding=1)]
    code = nn.Linear(math.prod(deepest), encoded)
    return nn.Sequential(*encoder, nn.Flatten(), code), nn.Sequential(*decoder)
