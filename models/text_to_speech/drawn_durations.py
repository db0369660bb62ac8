"""VITS' stochastic duration predictor (Kim, Kong and Son 2021, arXiv:2106.06103, section 2.2.2 and appendix B).

How many frames a phoneme has is drawn, as people speak one text at many paces. A duration d is a whole number, and a
single number leaves a flow nothing to turn: so u in (0, 1) is taken from d (variational dequantisation, Ho et al. 2019)
and nu put beside it (variational augmentation, Chen et al. 2020), both from a posterior q(u, nu | d, phonemes), a flow,
too. What is learned is the bound -E_q[log p(d - u, nu | phonemes) - log q(u, nu | d, phonemes)], in nats a phoneme.

Couplings move one of two numbers by a monotone rational-quadratic spline that the other one and the phoneme's context
say (Durkan et al. 2019, arXiv:1906.04032); beyond 5 on either side they leave it as it is.

Shape letters: B rows, S phonemes, W width, K bins of a spline.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts.noise import normals
from models.text_to_speech.acoustic import LONGEST, Convolutions, noise

BINS: Final = 10
EDGE: Final = 5.0  # up to where a spline bends
LEAST: Final = 1e-3  # width, height (as shares) and slope of a bin
COUPLINGS: Final = 4
SLOPE_1: Final = math.log(math.expm1(1 - LEAST))  # softplus of it is a slope of 1


def spline(x: Tensor, shape: Tensor, *, back: bool = False) -> tuple[Tensor, Tensor]:
    """Return a monotone spline of numbers (...), and the logarithm of its slope there.

    Args:
        x: Numbers of any shape.
        shape: (..., 3 K - 1): logits of widths and of heights, and the slopes between bins before softplus.
        back: Go from what it gives to what it was given; the slope is still the forward one.
    """
    at_x, at_y = _knots(shape[..., :BINS]), _knots(shape[..., BINS : 2 * BINS])
    slope = LEAST + F.softplus(shape[..., 2 * BINS :] + SLOPE_1)
    slope = F.pad(slope, (1, 1), value=1.0)
    within = x.abs() < EDGE
    inner = torch.where(within, x, 0)
    bin_ = (inner[..., None] >= (at_y if back else at_x)[..., 1:-1]).sum(-1, keepdim=True)
    x0, x1, y0, y1, d0, d1 = (
        knots.gather(-1, bin_ + step)[..., 0]
        for knots in (at_x, at_y, slope) for step in (0, 1)
    )  # fmt: skip
    steep, bend = (y1 - y0) / (x1 - x0), d0 + d1 - 2 * (y1 - y0) / (x1 - x0)
    if back:
        up = inner - y0
        a, b, c = (y1 - y0) * (steep - d0) + up * bend, (y1 - y0) * d0 - up * bend, -steep * up
        part = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
        found = x0 + part * (x1 - x0)
    else:
        part = (inner - x0) / (x1 - x0)
        found = y0 + (y1 - y0) * (steep * part.square() + d0 * part * (1 - part)) / (
            steep + bend * part * (1 - part)
        )
    left = 1 - part
    rise = d1 * part.square() + 2 * steep * part * left + d0 * left.square()
    log_slope = 2 * steep.log() + rise.log() - 2 * (steep + bend * part * left).log()
    return torch.where(within, found, x), torch.where(within, log_slope, 0)


def _knots(logits: Tensor) -> Tensor:
    """Return where bins end (..., K + 1), from -EDGE to EDGE."""
    share = LEAST + (1 - LEAST * BINS) * logits.softmax(-1)
    return F.pad(share.cumsum(-1), (1, 0)) * (2 * EDGE) - EDGE


class Coupling(nn.Module):
    """Moves one of a phoneme's two numbers as the other and its context say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(1, width)
        self.layers = Convolutions(width, 2, 0.0)
        self.last = nn.Linear(width, 3 * BINS - 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, kept_BS: Tensor, said_BSW: Tensor, inside_BS1: Tensor) -> Tensor:
        """Return the spline's shape (B, S, 3 K - 1), float32."""
        x_BSW = self.layers(self.first(kept_BS[..., None]) + said_BSW, inside_BS1)
        shape: Tensor = self.last(x_BSW).float()
        return shape


class PairFlow(nn.Module):
    """Two numbers a phoneme to two others and back: a scale and a shift, and couplings in turn."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.couplings = nn.ModuleList(Coupling(width) for _ in range(COUPLINGS))

    def forward(
        self, pair: tuple[Tensor, Tensor], said_BSW: Tensor, inside_BS1: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return what a pair (B, S) becomes, and the logarithm of the Jacobian's determinant (B, S)."""
        kept, moved = (
            one * scale.exp() + shift
            for one, scale, shift in zip(pair, self.log_scale, self.shift, strict=True)
        )
        log_det_BS = self.log_scale.sum().expand_as(kept)
        for coupling in self.couplings:
            moved, log_slope = spline(moved, coupling(kept, said_BSW, inside_BS1))
            log_det_BS = log_det_BS + log_slope
            kept, moved = moved, kept
        return (kept, moved), log_det_BS

    def back(
        self, pair: tuple[Tensor, Tensor], said_BSW: Tensor, inside_BS1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the pair that `forward` turns into this one."""
        kept, moved = pair
        for coupling in reversed(self.couplings):
            kept, moved = moved, kept
            moved, _ = spline(moved, coupling(kept, said_BSW, inside_BS1), back=True)
        first, second = (
            (one - shift) / scale.exp()
            for one, scale, shift in zip((kept, moved), self.log_scale, self.shift, strict=True)
        )
        return first, second


class DrawnDurations(nn.Module):
    """How many frames a phoneme has, drawn. What is learned here does not move the encoder."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.context = Convolutions(width, 2, dropout)
        self.heard = nn.Linear(1, width)
        self.flow, self.posterior = PairFlow(width), PairFlow(width)

    def errors(self, x_BSW: Tensor, path_BSF: Tensor, inside_BS: Tensor) -> Tensor:
        """Return a bound on -log p(d) (B, S), in nats, of phonemes as they are aligned."""
        frames_BS, inside_BS1 = path_BSF.sum(2).clamp(min=1), inside_BS[..., None]
        said_BSW = self.context(x_BSW.detach(), inside_BS1)
        own_BSW = said_BSW + self.heard(frames_BS.log()[..., None])
        drawn = noise(x_BSW.new_zeros(len(x_BSW), 2, x_BSW.shape[1]).float())
        (logit_BS, beside_BS), log_det_BS = self.posterior(drawn.unbind(1), own_BSW, inside_BS1)
        log_q_BS = _log_normal(drawn.unbind(1)) - log_det_BS
        log_q_BS = (
            log_q_BS - F.logsigmoid(logit_BS) - F.logsigmoid(-logit_BS)
        )  # of u, not of its logit
        log_left_BS = (frames_BS - logit_BS.sigmoid()).clamp(min=1e-5).log()
        pair, log_det_BS = self.flow((log_left_BS, beside_BS), said_BSW, inside_BS1)
        log_p_BS = _log_normal(pair) + log_det_BS - log_left_BS  # of d - u, not of its logarithm
        bound_BS: Tensor = log_q_BS - log_p_BS
        return bound_BS

    def frames(
        self, x_BSW: Tensor, inside_BS: Tensor, speed: float, seeds: Sequence[int]
    ) -> Tensor:
        """Return how many frames each phoneme is given (B, S), each row of its own seed: one at least."""
        inside_BS1 = inside_BS[..., None]
        said_BSW = self.context(x_BSW, inside_BS1)
        shape = x_BSW.shape[1], 2
        drawn_BS2 = normals(seeds, shape, x_BSW.device, draws=1)  # less noise would be shorter
        log_left_BS, _ = self.flow.back(
            (drawn_BS2[..., 0], drawn_BS2[..., 1]), said_BSW, inside_BS1
        )
        frames_BS: Tensor = (log_left_BS.exp() / speed).ceil().clamp(1, LONGEST) * inside_BS
        return frames_BS


def _log_normal(pair: Sequence[Tensor]) -> Tensor:
    """Return log p of two numbers that are standard normal."""
    first, second = pair
    return -(first.square() + second.square()) / 2 - math.log(2 * math.pi)
