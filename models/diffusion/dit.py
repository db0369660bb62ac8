"""The diffusion transformer (Peebles & Xie 2023, arXiv:2212.09748): patches as tokens, told the time by adaLN-Zero.

A block (figure 3) is self-attention and a feed-forward layer; a linear map of time and caption gives each its shift,
its scale and its gate. Gates are 0 at first, so that every block is the identity, and nothing comes out. The words of a
caption are read beside the patches, in the same attention, as by the U-Net.

Who calls it folds patches into channels: a place of what it is given is a token.

Shape letters: B rows, h and w places, N = h w tokens, W width, T words, D context width, E embedding width.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.diffusion.unet import attended, sinusoids
from models.parts.dropout import Dropout

RATIO: Final = 4  # of the feed-forward layers' width to the tokens'


class Block(nn.Module):
    """A transformer block, shifted, scaled and gated by the embedding."""

    def __init__(
        self, width: int, heads: int, embedding: int, context: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.context = nn.Linear(context, 2 * width) if context else None
        self.hidden, self.back = nn.Linear(width, RATIO * width), nn.Linear(RATIO * width, width)
        self.dropout = Dropout(dropout)
        self.modulation = zeroed(nn.Linear(embedding, 6 * width))

    def forward(self, x_BNW: Tensor, embedding_BE: Tensor, context_BTD: Tensor | None) -> Tensor:
        """Return tokens (B, N, W)."""
        told_B1M = self.modulation(embedding_BE).unsqueeze(-2)
        shift1, scale1, gate1, shift2, scale2, gate2 = told_B1M.chunk(6, dim=-1)
        read = self.read(modulated(x_BNW, shift1, scale1), context_BTD)
        x_BNW = x_BNW + gate1 * self.out(read)
        h = F.gelu(self.hidden(modulated(x_BNW, shift2, scale2)), approximate="tanh")
        out: Tensor = x_BNW + gate2 * self.back(self.dropout(h))
        return out

    def read(self, x_BNW: Tensor, context_BTD: Tensor | None) -> Tensor:
        """Return what tokens read in one another and in the words (B, N, W)."""
        words = None if self.context is None or context_BTD is None else self.context(context_BTD)
        return attended(self.qkv(x_BNW), words, self.heads)


class DiT(nn.Module):
    """Places in, places out: the U-Net's part in a diffusion, of one width; zero at first."""

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        grids: Sequence[tuple[int, int]],  # h and w
        width: int,
        blocks: int,
        heads: int,
        embedding: int,
        context: int,
        dropout: float,
        block: type[Block] = Block,
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            block(width, heads, embedding, context, dropout) for _ in range(blocks)
        )
        self.modulation = zeroed(nn.Linear(embedding, 2 * width))
        self.out = zeroed(nn.Linear(width, outputs))
        for high, wide in dict.fromkeys(grids):
            # made from the sizes, so no version has to hold it
            of_grid_NW = places(high, wide, width)
            self.register_buffer(f"places_{high}x{wide}", of_grid_NW, persistent=False)

    def forward(self, x_BChw: Tensor, embedding_BE: Tensor, context_BTD: Tensor | None) -> Tensor:
        """Return (B, outputs, h, w) from (B, inputs, h, w)."""
        x_BNI, places_NW = x_BChw.flatten(2).transpose(1, 2), self.places_of(*x_BChw.shape[2:])
        out: Tensor = self.tokens(x_BNI, places_NW, embedding_BE, context_BTD)
        return out.transpose(1, 2).reshape(len(out), -1, *x_BChw.shape[2:])

    def places_of(self, high: int, wide: int) -> Tensor:
        """Return what is added to the tokens of one of the grids (N, W)."""
        return self.get_buffer(f"places_{high}x{wide}")

    def tokens(
        self, x_BNI: Tensor, places_NW: Tensor, embedding_BE: Tensor, context_BTD: Tensor | None
    ) -> Tensor:
        """Return outputs (B, N, O) of the tokens' inputs."""
        x_BNW = self.stem(x_BNI) + places_NW
        for block in self.blocks:
            x_BNW = block(x_BNW, embedding_BE, context_BTD)
        shift, scale = self.modulation(embedding_BE).unsqueeze(-2).chunk(2, dim=-1)
        out: Tensor = self.out(modulated(x_BNW, shift, scale))
        return out


def modulated(x_BNW: Tensor, shift_B1W: Tensor, scale_B1W: Tensor) -> Tensor:
    """Return tokens of mean 0 and variance 1, scaled and shifted."""
    return F.layer_norm(x_BNW, x_BNW.shape[-1:]) * (1 + scale_B1W) + shift_B1W


def places(high: int, wide: int, width: int) -> Tensor:
    """Return fixed sines and cosines (N, W) of each place's row and column, half of the width each."""
    down, along = (sinusoids(torch.arange(n, device="cpu"), width // 2) for n in (high, wide))
    return torch.cat([down.repeat_interleave(wide, 0), along.repeat(high, 1)], 1)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """Return the layer, which gives zeros at first."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
