"""Multi-head attention and the encoder layer around it (Vaswani et al. 2017, arXiv:1706.03762, sections 3.1 to 3.3).

Shape letters: B rows, T places of queries, S of keys, E width, F feed-forward width. A mask is true where a
place may be seen; it broadcasts to (B, heads, T, S), and every place must see one at least.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts.dropout import Dropout

Activation: TypeAlias = Literal["relu", "gelu"]


class Attention(nn.Module):
    """Softmax of scaled dot products, eq. 1, in several heads."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x_BTE: Tensor, memory_BSE: Tensor, mask: Tensor) -> Tensor:
        """Return (B, T, E): what each place of x finds in the memory."""
        return self.attend(x_BTE, self.keys_values(memory_BSE), mask)

    def keys_values(self, memory_BSE: Tensor) -> Tensor:
        """Return (B, S, 2, E): the keys and values of a memory, which a decoder keeps."""
        return torch.stack([self.key(memory_BSE), self.value(memory_BSE)], 2)

    def attend(self, x_BTE: Tensor, kv_BS2E: Tensor, mask: Tensor) -> Tensor:
        """Return (B, T, E): what each place of x finds under these keys and values."""
        keys, values = kv_BS2E.unbind(2)
        found = F.scaled_dot_product_attention(
            self._split(self.query(x_BTE)),
            self._split(keys),
            self._split(values),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out

    def _split(self, x_BTE: Tensor) -> Tensor:
        """Return (B, heads, T, E / heads)."""
        rows, places, width = x_BTE.shape
        return x_BTE.reshape(rows, places, self.heads, width // self.heads).transpose(1, 2)


class FeedForward(nn.Module):
    """Two layers, the same at every place, eq. 2."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.activation = F.relu if activation == "relu" else F.gelu
        self.hidden, self.out = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Return (B, T, E)."""
        out: Tensor = self.out(self.activation(self.hidden(x_BTE)))
        return out


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each LayerNorm(x + dropout(sublayer(x))) as in section 5.4."""

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float, activation: Activation
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.feedforward = FeedForward(width, feedforward, activation)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTE: Tensor, mask: Tensor) -> Tensor:
        """Return (B, T, E)."""
        x_BTE = self.norm1(x_BTE + self.dropout(self.attention(x_BTE, x_BTE, mask)))
        out: Tensor = self.norm2(x_BTE + self.dropout(self.feedforward(x_BTE)))
        return out
