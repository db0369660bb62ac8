"""Draws that a row's own seed decides, the same alone or in a batch, on a CPU or on a GPU: Philox 4x64-10.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": a block of four 64-bit words is a bijection of a
counter (block, draw, 0, 0) under a key (seed, stage), so any number of any draw is there without those before it.
`stage` tells models apart that share a request's seed, `draw` what one sample needs one after another.

Shape letters: B rows, N blocks of four words each, W = 4 N words.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROUNDS: Final = 10
MULTIPLIERS: Final = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL: Final = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # added to the key after each round
LOW: Final = 0xFFFFFFFF
FEW: Final = 2**15  # words at once, of several rows: they fit a CPU's cache
MANY: Final = 2**22  # and elsewhere: some 500 MB while they are made


def normals(
    seeds: Sequence[int],
    shape: Sequence[int],
    device: torch.device,
    *,
    stage: int = 0,
    draws: int | Sequence[int] = 0,
) -> Tensor:
    """Return (len(seeds), *shape) standard normal numbers, row i all of (seeds[i], stage, its draw).

    By Box and Muller from 32 bits each: the first half of a row's are radii, at most 6.7, the second half angles.

    Example:
        >>> both = normals((7, 8), (3,), torch.device("cpu"))
        >>> bool((both[1] == normals((8,), (3,), torch.device("cpu"))[0]).all())
        True
    """
    count = math.prod(shape)
    half = -(-count // 2)
    found = torch.empty(len(seeds), 2 * half, device=device)
    for rows, words_BW in _words(seeds, half, device, stage, draws):
        found[rows] = words_BW.view(torch.int32)
        if device.type == "cpu":  # numpy's logarithm and cosine take half the time of torch's
            box_muller(np, found[rows, :half].numpy(), found[rows, half:].numpy())
        else:
            box_muller(torch, found[rows, :half], found[rows, half:])
    return found[:, :count].reshape(-1, *shape)


def uniforms(
    seeds: Sequence[int],
    shape: Sequence[int],
    device: torch.device,
    *,
    stage: int = 0,
    draws: int | Sequence[int] = 0,
) -> Tensor:
    """Return (len(seeds), *shape) numbers k / 2^24 in [0, 1), row i all of (seeds[i], stage, its draw).

    The first ones do not depend on how many there are.
    """
    count = math.prod(shape)
    found = torch.empty(len(seeds), count + count % 2, device=device)
    for rows, words_BW in _words(seeds, -(-count // 2), device, stage, draws):
        halves_BX = words_BW.view(torch.int32) >> 8
        found[rows] = halves_BX.bitwise_and_(2**24 - 1)
        found[rows] *= 2.0**-24
    return found[:, :count].reshape(-1, *shape)


class Seeded(TorchFunctionMode):
    """Where it is entered, networks of others, which draw their noise themselves, draw it from a row's seed.

    Normal numbers and Bernoulli's, one draw after another; the global generator stays as it is.

    Example:
        >>> with Seeded(7):
        ...     first, second = torch.randn(1, 3), torch.randn(1, 3)
        >>> bool((first == normals((7,), (1, 3), torch.device("cpu"))[0]).all()), bool((first == second).all())
        (True, False)
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed, self._draw = seed, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer for what draws, and call all else."""
        named = dict(kwargs or {})
        if func is torch.randn_like:
            return self._drawn(normals, args[0].shape, args[0].device).to(args[0].dtype)
        if func is torch.randn:
            device = torch.device(named.get("device") or "cpu")
            return self._drawn(normals, args[0] if args[1:] == () else args, device)
        if func is torch.bernoulli:
            chance = named.get("p", args[1] if args[1:] else args[0])
            drawn = self._drawn(uniforms, args[0].shape, args[0].device)
            return (drawn < chance).to(args[0].dtype)
        return func(*args, **named)

    def _drawn(
        self, draw: Callable[..., Tensor], shape: Sequence[int], device: torch.device
    ) -> Tensor:
        found = draw((self._seed,), tuple(shape), device, draws=self._draw)[0]
        self._draw += 1
        return found


def box_muller(library: Any, first: Any, second: Any) -> None:
    """Turn pairs of numbers -2^31..2^31 - 1 into pairs of normal ones, in place; by numpy or torch."""
    library.abs(first, out=first)
    first += 0.5
    first *= 2.0**-31  # above 0, at most 1
    library.log(first, out=first)
    first *= -2
    library.sqrt(first, out=first)
    second *= math.pi / 2**31
    cosine = library.cos(second)
    library.sin(second, out=second)
    second *= first
    first *= cosine


def places(u_BP: Tensor, weight_PK: Tensor) -> Tensor:
    """Return (B, P) int64: where the weights 0..K - 1 of each place, as shares of their sum, first exceed u."""
    below_PK = weight_PK.double().cumsum(1)
    below_PK = below_PK[:, :-1] / below_PK[:, -1:]  # the last one takes what rounding leaves
    found_PB = torch.searchsorted(below_PK, u_BP.T.double().contiguous(), right=True)
    return found_PB.T


def _words(
    seeds: Sequence[int], count: int, device: torch.device, stage: int, draws: int | Sequence[int]
) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows at a time and their first `count` words, (B, count) int64."""
    each = [draws] * len(seeds) if isinstance(draws, int) else draws
    step = max(1, (FEW if device.type == "cpu" else MANY) // max(1, count))
    for start in range(0, len(seeds), step):
        rows = slice(start, start + step)
        some = (seeds[rows], each[rows], stage, count)
        yield rows, by_numpy(*some) if device.type == "cpu" else by_torch(*some, device)


def by_numpy(seeds: Sequence[int], draws: Sequence[int], stage: int, count: int) -> Tensor:
    """Return (B, count) words; numpy's Philox is this one, and in C: it counts blocks from 1."""
    philox, found = np.random.Philox(0), []
    state: Any = philox.state
    for seed, draw in zip(seeds, draws, strict=True):
        state["state"]["key"][:] = seed % 2**64, stage
        state["state"]["counter"][:] = 0, draw, 0, 0
        philox.state = state  # a tenth of the time that a new one takes
        found.append(philox.random_raw(count))
    words_BW = np.stack(found) if len(found) > 1 else found[0][None]
    return torch.from_numpy(words_BW.view(np.int64))


def by_torch(
    seeds: Sequence[int], draws: Sequence[int], stage: int, count: int, device: torch.device
) -> Tensor:
    """Return (B, count) words, all rows at once on the device."""
    seed_B1, draw_B1 = (
        torch.tensor([_signed(one) for one in of], dtype=torch.int64).to(device)[:, None]
        for of in (seeds, draws)
    )
    block_N = 1 + torch.arange(-(-count // 4), device=device)
    counter_4BN = torch.zeros(4, len(seeds), len(block_N), dtype=torch.int64, device=device)
    counter_4BN[0], counter_4BN[1] = block_N, draw_B1
    key_2B1 = torch.stack([seed_B1, torch.full_like(seed_B1, stage)])
    return philox(counter_4BN, key_2B1).permute(1, 2, 0).flatten(1)[:, :count]


def philox(counter_4BN: Tensor, key_2B1: Tensor) -> Tensor:
    """Return the words (4, B, N) of counters (4, B, N) under keys (2, B, 1); int64 holds the bits of unsigned ones."""
    device = counter_4BN.device
    even, odd = counter_4BN[0::2], counter_4BN[1::2]
    factor, weyl = (
        torch.tensor([_signed(one) for one in two], device=device)[:, None, None]
        for two in (MULTIPLIERS, WEYL)
    )
    for number in range(ROUNDS):
        high, low = _products(even, factor)
        even = high.flip(0) ^ odd ^ (key_2B1 + number * weyl)
        odd = low.flip(0)
    return torch.stack([even, odd], 1).flatten(0, 1)


def _products(x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the high and the low 64 bits of unsigned products, by halves of 32 bits."""
    x_high, x_low, f_high, f_low = _upper(x), x & LOW, _upper(factor), factor & LOW
    middle = _upper(x_low * f_low) + x_high * f_low
    other = (middle & LOW) + x_low * f_high
    return x_high * f_high + _upper(middle) + _upper(other), x * factor


def _upper(x: Tensor) -> Tensor:
    return (x >> 32) & LOW


def _signed(value: int) -> int:
    """Return the int64 that has an unsigned integer's lowest 64 bits."""
    return (value + 2**63) % 2**64 - 2**63
