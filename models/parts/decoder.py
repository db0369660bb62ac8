"""The layers of a decoder that writes one token after another, and the keys and values that it keeps.

Pre-LN blocks (arXiv:2002.04745) with exact GELU and without biases, nanoGPT's variant of GPT-2's; weights start at
N(0, 0.02), those that end a residual branch at 0.02 / sqrt(2 L).

Shape letters: B rows, T tokens read at once, S slots of a cache, E width, L layers, H heads, D features of a head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts.dropout import Dropout


class Sizes(Protocol):
    """What of a family's Config is the decoder's."""

    @property
    def width(self) -> int:
        """Features of a token."""

    @property
    def layers(self) -> int:
        """How many blocks."""

    @property
    def heads(self) -> int:
        """Of each attention; they divide the width."""

    @property
    def dropout(self) -> float:
        """Of each residual branch and of attention."""


@dataclass(frozen=True, slots=True)
class KVCache:
    """The keys and values of what rows have read, and where T more tokens of each belong."""

    keys_BSLHD: Tensor
    values_BSLHD: Tensor
    place_BT: Tensor
    mask_B1TS: Tensor  # bool: the slots that each of the T tokens sees

    @classmethod
    def at(
        cls,
        keys_BSLHD: Tensor,
        values_BSLHD: Tensor,
        place_BT: Tensor,
        last_B1: Tensor | None = None,
    ) -> Self:
        """Return the cache for tokens at these places, which see up to themselves, or all up to `last_B1`."""
        until_BT = place_BT if last_B1 is None else last_B1
        slot_S = torch.arange(keys_BSLHD.shape[1], device=keys_BSLHD.device)
        mask_B1TS = (slot_S <= until_BT[:, :, None])[:, None]
        return cls(keys_BSLHD, values_BSLHD, place_BT, mask_B1TS)

    def updated(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values into their slots; return a layer's keys and values (B, H, S, D).

        In place: a slot from a row's position on holds nothing, so rows that were kept aside mean what they meant.
        """
        row_B1 = torch.arange(len(self.place_BT), device=self.place_BT.device)[:, None]
        both = ((self.keys_BSLHD, k_BHTD), (self.values_BSLHD, v_BHTD))
        for cached, new in both:
            cached[row_B1, self.place_BT, layer] = new.transpose(1, 2).to(cached.dtype)
        keys, values = (cached[:, :, layer].transpose(1, 2) for cached, _ in both)
        return keys, values


Forward: TypeAlias = Callable[[Tensor, KVCache], Tensor]
"""The network on tokens (B, T): what it makes of them does not matter here, only what it leaves in the cache."""


def prefill(
    forward: Forward, empty_SLHD: Tensor, prompts: Sequence[Sequence[int]], *, causal: bool
) -> tuple[Tensor, Tensor]:
    """Return keys and values (B, S, L, H, D) of the prompts but their last tokens; equal ones are read once.

    All at once on a GPU: what fills a shorter one up lies where its next tokens will be written. On a CPU, which
    gains nothing by that, one by one: so a row's bits do not depend on how long others are.
    """
    device, rows = empty_SLHD.device, [tuple(prompt) for prompt in prompts]
    index = {prompt: number for number, prompt in enumerate(dict.fromkeys(rows))}
    keys, values = (empty_SLHD.new_zeros(len(index), *empty_SLHD.shape) for _ in range(2))
    size = 1 if device.type == "cpu" else len(index)
    for first in range(0, len(index), size):
        some, part = list(index)[first : first + size], slice(first, first + size)
        if longest := max(map(len, some)) - 1:
            tokens = [[*prompt[:-1], *[0] * longest][:longest] for prompt in some]
            place_BT = torch.arange(longest, device=device).expand(len(some), -1)
            last_B1 = torch.tensor([[max(0, len(one) - 2)] for one in some], device=device)
            cache = KVCache.at(keys[part], values[part], place_BT, None if causal else last_B1)
            forward(torch.tensor(tokens, device=device), cache)
    if len(index) == len(rows):
        return keys, values
    which_B = torch.tensor([index[prompt] for prompt in rows], device=device)
    return keys[which_B], values[which_B]


class Attention(nn.Module):
    """Causal self-attention in several heads."""

    def __init__(self, sizes: Sizes, layer: int, *, causal: bool) -> None:
        super().__init__()
        self.layer, self.heads, self.causal = layer, sizes.heads, causal
        self.dropout = sizes.dropout
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width, bias=False)
        self.out = nn.Linear(sizes.width, sizes.width, bias=False)

    def forward(self, x_BTE: Tensor, cache: KVCache | None) -> Tensor:
        """Return (B, T, E): what each token finds before it, in the row itself or in the cache."""
        q, k, v = self.qkv(x_BTE).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is None:
            dropout = self.dropout if self.training else 0.0
            found = F.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=self.causal
            )
        else:
            k, v = cache.updated(self.layer, k, v)
            found = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=cache.mask_B1TS)
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, sizes: Sizes, layer: int, *, causal: bool) -> None:
        super().__init__()
        width = sizes.width
        self.norm1, self.norm2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.attention = Attention(sizes, layer, causal=causal)
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(4 * width, width, bias=False)
        self.dropout = Dropout(sizes.dropout)

    def forward(self, x_BTE: Tensor, cache: KVCache | None) -> Tensor:
        """Return (B, T, E)."""
        x_BTE = x_BTE + self.dropout(self.attention(self.norm1(x_BTE), cache))
        out: Tensor = x_BTE + self.dropout(self.out(F.gelu(self.hidden(self.norm2(x_BTE)))))
        return out


def blocks(sizes: Sizes, *, causal: bool = True) -> nn.ModuleList:
    """Return the layers of a decoder."""
    return nn.ModuleList([Block(sizes, layer, causal=causal) for layer in range(sizes.layers)])


def initialise(model: nn.Module, layers: int) -> None:
    """Draw every matrix and table of a decoder anew."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            ends_a_branch = name.endswith("out.weight")
            std = 0.02 / (2 * layers) ** 0.5 if ends_a_branch else 0.02
            nn.init.normal_(parameter, std=std)
