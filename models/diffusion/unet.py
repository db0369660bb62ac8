"""The U-Net of the diffusion families (Ronneberger et al. 2015, arXiv:1505.04597) and their text encoder.

Made for few channels on a CPU as well as for many on a GPU: it works on pixels folded into channels, in channels_last,
joins the two ways by addition, and reads text in one attention over picture and words (as GLIDE, arXiv:2112.10741).

Shape letters: B rows, W width, h and w places, N tokens, T words, D context width, E embedding width.
"""

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts import bounds
from models.parts.dropout import Dropout
from models.parts.tables import Table

GROUPS: Final = 8  # of its norms


def check_sizes(
    what: str,
    side: int,
    *,
    patch: int,
    widths: Sequence[int],
    attention: int,
    heads: int,
    context: int,
) -> None:
    """Refuse sizes that no U-Net can have; errors call the side `what`, `context` is the width of the text it reads.

    Raises:
        ValueError: names the size, what it must be and what it is.
    """
    unit = patch * 2 ** (len(widths) - 1)
    if not widths or side % unit:
        raise ValueError(
            f"{what} must be a multiple of {unit} (patch {patch}, {len(widths)} widths), got {side}"
        )
    for width in (*widths, context):
        if width < 8 or width % 8 or width % heads:
            raise ValueError(f"widths must be multiples of 8 and of heads {heads}, got {width}")
    if not 0 <= attention <= len(widths):
        raise ValueError(f"attention must be 0 to {len(widths)} resolutions, got {attention}")


def check_norms(side: int, *, patch: int, widths: Sequence[int]) -> None:
    """Refuse squares of which a resolution's norms leave nothing.

    Raises:
        ValueError: names the width and what it must be.
    """
    for depth, width in enumerate(widths):
        bounds.check_norm("each of widths", width, side // (patch * 2**depth), GROUPS)


def sinusoids(time_B: Tensor, width: int = 64) -> Tensor:
    """Return (B, width) sines and cosines of times 0..1000."""
    index = torch.arange(width // 2, device=time_B.device)
    angle = time_B[:, None].float() * torch.exp(index * (-math.log(1e4) / (width // 2)))
    return torch.cat([angle.sin(), angle.cos()], 1)


class Attention(nn.Module):
    """Tokens attend to one another and to a context; the identity at first."""

    def __init__(self, width: int, heads: int, context_width: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.context = nn.Linear(context_width, 2 * width) if context_width else None
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_BNW: Tensor, context_BTD: Tensor | None = None) -> Tensor:
        """Return the tokens (B, N, W) with what they read added."""
        words = None if self.context is None or context_BTD is None else self.context(context_BTD)
        out: Tensor = x_BNW + self.out(attended(self.qkv(self.norm(x_BNW)), words, self.heads))
        return out


def attended(qkv_BN3W: Tensor, words_BT2W: Tensor | None, heads: int) -> Tensor:
    """Return what tokens read in one another and in words (B, N, W), from queries, keys and values side by side."""
    query, key, value = qkv_BN3W.chunk(3, dim=-1)
    if words_BT2W is not None:
        more_key, more_value = words_BT2W.chunk(2, dim=-1)
        key, value = torch.cat([key, more_key], 1), torch.cat([value, more_value], 1)
    query, key, value = (
        each.reshape(*each.shape[:2], heads, -1).transpose(1, 2) for each in (query, key, value)
    )
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class TextEncoder(nn.Module):
    """Words to vectors: embeddings with places, then attention layers; token 0 fills short captions."""

    def __init__(self, words: int, max_words: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words + 1, width)
        self.places = Table(nn.init.normal_(torch.empty(max_words, width), std=0.1))
        self.layers = nn.ModuleList(Attention(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.null_1TD = Table(nn.init.normal_(torch.empty(1, max_words, width)))  # "no caption"

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return the context (B, T, D)."""
        context_BTD = self.words(tokens_BT) + self.places
        for layer in self.layers:
            context_BTD = layer(context_BTD)
        normed: Tensor = self.norm(context_BTD)
        return normed

    def apart(self, tokens_BT: Tensor) -> Tensor:
        """Return the context (B, T, D), each row read alone: no bit of it depends on the others."""
        rows = [self.forward(tokens_1T) for tokens_1T in torch.split(tokens_BT, 1)]
        return torch.cat(rows)

    def training_context(self, tokens_BT: Tensor, drop: float) -> Tensor:
        """Return the context (B, T, D), in a share `drop` of the rows as if there were no caption.

        So that one network learns both predictions of guidance (Ho & Salimans 2022, arXiv:2207.12598, algorithm 1).
        """
        context_BTD: Tensor = self(tokens_BT)
        dropped_B = torch.rand(len(context_BTD), device=context_BTD.device) < drop
        return torch.where(dropped_B[:, None, None], self.null_1TD, context_BTD)

    def sampling_context(
        self, tokens_BT: Tensor | None, count: int, guidance: float
    ) -> tuple[Tensor, Tensor]:
        """Return the context (B, T, D) and the guidance scale (B,) of `count` rows.

        Without a prompt, and at scale 0, that is the unconditional prediction, which takes one call.
        """
        if tokens_BT is None or guidance == 0:
            return self.null_1TD.expand(count, -1, -1), torch.ones(count)
        context_BTD = self.apart(tokens_BT.to(self.null_1TD.device))
        return context_BTD, torch.full((count,), float(guidance))


class Block(nn.Module):
    """A residual block, scaled and shifted by the embedding (FiLM, arXiv:1709.07871).

    Dropout comes before its last convolution, as in DDPM (arXiv:2006.11239, appendix B) and EDM.
    """

    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * width)
        self.norm2, self.dropout = nn.GroupNorm(GROUPS, width), Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(
            self.conv2.weight
        )  # each block is the identity at first, so depth does no harm

    def forward(self, x_BWhw: Tensor, embedding_BE: Tensor) -> Tensor:
        """Return features of the same shape."""
        scale, shift = self.film(embedding_BE)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x_BWhw)))
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        out: Tensor = x_BWhw + self.conv2(self.dropout(h))
        return out


class Level(nn.Module):
    """Blocks at one resolution, each followed by attention where `heads` is not 0."""

    block: ClassVar[type[Block]] = Block
    attention: ClassVar[type[Attention]] = Attention

    def __init__(
        self, width: int, blocks: int, embedding: int, dropout: float, heads: int, context: int
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.block(width, embedding, dropout) for _ in range(blocks))
        self.attentions = nn.ModuleList(
            self.attention(width, heads, context) for _ in range(blocks if heads else 0)
        )

    def forward(self, x_BWhw: Tensor, embedding_BE: Tensor, context_BTD: Tensor | None) -> Tensor:
        """Return features of the same shape."""
        for index, block in enumerate(self.blocks):
            x_BWhw = block(x_BWhw, embedding_BE)
            if len(self.attentions):
                x_BNW = x_BWhw.flatten(2).transpose(1, 2)
                x_BNW = self.attentions[index](x_BNW, context_BTD)
                x_BWhw = x_BNW.transpose(1, 2).unflatten(2, x_BWhw.shape[2:])
        return x_BWhw


class UNet(nn.Module):
    """Features down through `widths`, halving the side each time, and up again; almost zero at first.

    Attention stands at the `attention` lowest resolutions.
    """

    level: ClassVar[type[Level]] = Level
    channels_last: ClassVar[bool] = True  # its features are; see `Family.ready`

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        widths: Sequence[int],
        blocks: int,
        attention: int,
        heads: int,
        embedding: int,
        context: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for depth, width in enumerate(widths):
            here = heads if depth >= len(widths) - attention else 0
            self.down.append(self.level(width, blocks, embedding, dropout, here, context))
            self.up.append(self.level(width, blocks, embedding, dropout, here, context))
        steps = list(itertools.pairwise(widths))
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in steps)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in steps)
        self.norm = nn.GroupNorm(GROUPS, widths[0])
        self.out = nn.Conv2d(widths[0], outputs, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x_BWhw: Tensor, embedding_BE: Tensor, context_BTD: Tensor | None) -> Tensor:
        """Return (B, outputs, h, w) from (B, inputs, h, w)."""
        h = self.stem(x_BWhw.contiguous(memory_format=torch.channels_last))
        skips = []
        for depth, level in enumerate(self.down):
            h = level(h, embedding_BE, context_BTD)
            if depth < len(self.shrink):
                skips.append(h)
                h = self.shrink[depth](h)
        for depth in reversed(range(len(self.up))):
            if depth < len(self.grow):
                h = self.grow[depth](h) + skips[depth]
            h = self.up[depth](h, embedding_BE, context_BTD)
        out: Tensor = self.out(F.silu(self.norm(h)))
        return out
