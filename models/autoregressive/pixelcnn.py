"""Gated PixelCNN, two stacks and no blind spot (van den Oord et al. 2016, arXiv:1606.05328).

The vertical stack sees all rows above, the horizontal one the pixels to the left; in each layer the horizontal stack
hears the vertical one of the row above (figure 2). Gate and class bias are eq. 4. Pixels come in raster order, each a
softmax over K levels (arXiv:1601.06759): 2 for bits, 17 for scikit-learn's digits, 256 for bytes.

Shape letters: B pictures, H and W pixels, K levels, T words, P features, X columns of a window. Pixels are in [0, 1];
likelihoods and losses are exact sums over a picture's pixels, in nats a picture.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds
from models.parts.dropout import Dropout
from models.parts.levels import Binarize, drawn, observed
from models.parts.noise import uniforms
from models.parts.words import Captioned
from models.request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelCNNConfig(Captioned):
    """What is learned and the network's sizes."""

    image_size: int = 28  # pixels a side
    channels: int = 1  # grey pictures only
    levels: int = 2  # of a pixel
    binarize: Binarize = "dynamic"  # of 2 levels
    vocabulary: tuple[str, ...] = ()  # lower-case words; empty: unconditional
    max_words: int = 8
    text: Literal["caption", "none"] = "caption"  # none: the vocabulary is not used
    width: int = 32  # features of each stack
    layers: int = 6  # the first one included
    first_kernel: int = 7  # pixels a side
    kernel: int = 3  # of the other layers
    head: int = 64  # features of the output's hidden layer
    dropout: float = 0.0  # of what each layer's residual branch tells; PixelCNN++ has .5
    mask: Literal["A", "B"] = (
        "A"  # of the first layer; B is the broken control: a pixel sees itself
    )

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        if self.channels != 1:
            raise ValueError(
                f"pixelcnn paints grey pictures: channels must be 1, got {self.channels}"
            )
        bounds.within("levels", self.levels, (2, 256))
        for name in ("first_kernel", "kernel"):
            if getattr(self, name) < 3 or getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd and at least 3, got {getattr(self, name)}")
        bounds.check(
            self, dict.fromkeys(("image_size", "width", "layers", "head", "max_words"), bounds.SIZE)
        )
        bounds.within("dropout", self.dropout, bounds.SHARE)


class GatedLayer(nn.Module):
    """One layer of both stacks; dropout before its last convolution, as in PixelCNN++ (arXiv:1701.05517, 2.5)."""

    def __init__(
        self,
        inputs: int,
        width: int,
        kernel: int,
        *,
        mask: str,
        known_words: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.columns = self.reach + (mask == "B")  # that the horizontal stack sees of its own row
        self.residual = mask == "B" and inputs == width
        self.vertical = nn.Conv2d(inputs, 2 * width, (self.reach + 1, kernel))
        self.horizontal = nn.Conv2d(inputs, 2 * width, (1, self.columns))
        self.down = nn.Conv2d(2 * width, 2 * width, 1)
        self.out, self.dropout = nn.Conv2d(width, width, 1), Dropout(dropout)
        self.caption = (
            nn.Embedding(known_words + 1, 4 * width, padding_idx=0) if known_words else None
        )

    def forward(
        self, v_BPHW: Tensor, h_BPHW: Tensor, tokens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return both stacks' outputs (B, P, H, W): v of rows <= r, h of rows < r and of columns <= c in row r."""
        reach = self.reach
        v2_BPHW = self.vertical(F.pad(v_BPHW, (reach, reach, reach, 0)))
        left_BPHW = self.horizontal(F.pad(h_BPHW, (reach, self.columns - reach - 1)))
        if self.caption is not None and tokens is not None:
            bias_v, bias_h = self.biases(tokens)
            v2_BPHW, left_BPHW = v2_BPHW + bias_v, left_BPHW + bias_h
        above_BPHW = F.pad(v2_BPHW, (0, 0, 1, -1))  # row r hears of rows < r
        gated_BPHW = gate(left_BPHW + self.down(above_BPHW))
        out: Tensor = self.out(self.dropout(gated_BPHW))
        return gate(v2_BPHW), out + h_BPHW if self.residual else out

    def biases(self, tokens: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """Return what the caption adds to each stack, (B, 2 P, 1, 1) both; the sum over its words."""
        if self.caption is None or tokens is None:
            return 0.0, 0.0
        bias_v, bias_h = self.caption(tokens).sum(1)[:, :, None, None].chunk(2, dim=1)
        return bias_v, bias_h


def gate(x_BPHW: Tensor) -> Tensor:
    """Return tanh of the first half of the features times sigmoid of the second."""
    a, b = x_BPHW.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()


class CachedLayer:
    """A layer that takes row after row and pixel after pixel, and computes each feature once."""

    def __init__(self, layer: GatedLayer, tokens: Tensor | None, count: int, side: int) -> None:
        self.layer, self.reach, inputs = layer, layer.reach, layer.vertical.in_channels
        self.bias_v, self.bias_h = layer.biases(tokens)
        blank = layer.down.weight.new_zeros
        self.rows_BPRW = blank(count, inputs, self.reach + 1, side)  # the newest rows
        self.left_BXP = blank(count, self.reach + side, inputs)  # the row that is drawn
        self.above_B2PHW = blank(count, layer.down.in_channels, 1, side)
        self.filter = layer.horizontal.weight[:, :, 0].permute(0, 2, 1).flatten(1).T.contiguous()
        self.out = layer.out.weight[:, :, 0, 0].T.contiguous()

    def push_row(self, row_BP1W: Tensor) -> Tensor:
        """Take the input of the row just finished; return the vertical stack's output (B, P, 1, W) for it."""
        self.rows_BPRW = torch.cat([self.rows_BPRW[:, :, 1:], row_BP1W], 2)
        padded = F.pad(self.rows_BPRW, (self.reach, self.reach, 0, 0))
        self.above_B2PHW = self.layer.vertical(padded) + self.bias_v
        return gate(self.above_B2PHW)

    def begin_row(self) -> None:
        """Work out for a whole row at once what does not depend on the row."""
        layer = self.layer
        bias = layer.horizontal.bias
        assert bias is not None
        cond = layer.down(self.above_B2PHW) + self.bias_h + bias[:, None, None]
        self.cond_WBP = cond[:, :, 0].permute(2, 0, 1).contiguous()
        self.left_BXP.zero_()

    def pixel(self, column: int, h_BP: Tensor | None) -> Tensor:
        """Take this column's input, where it is known already; return the horizontal output (B, P) there."""
        if h_BP is not None:
            self.left_BXP[:, self.reach + column] = h_BP
        window = self.left_BXP[:, column : column + self.layer.columns].flatten(1)
        gated = gate(torch.addmm(self.cond_WBP[column], window, self.filter))
        out_BP = torch.addmm(_bias(self.layer.out), gated, self.out)
        return out_BP + h_BP if self.layer.residual and h_BP is not None else out_BP

    def push_pixel(self, column: int, value_BP: Tensor) -> None:
        """Take the input of the pixel just drawn; for the first layer, whose window ends before it."""
        self.left_BXP[:, self.reach + column] = value_BP


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


class PixelCNN(Family):
    """Pixels in raster order, each a softmax over its levels given all before it."""

    Config = PixelCNNConfig
    presets: ClassVar[Mapping[str, PixelCNNConfig]] = {
        "tiny": PixelCNNConfig(image_size=8, width=16, layers=3, first_kernel=5, head=16),
        "base": PixelCNNConfig(),
        "digits": PixelCNNConfig(
            image_size=8, levels=17, width=48, layers=4, first_kernel=5, head=64
        ),
        "large": PixelCNNConfig(width=128, layers=16, head=512),
    }
    channels_last: ClassVar[bool] = True  # its features are; see `Family.ready`
    config: PixelCNNConfig

    def __init__(self, config: PixelCNNConfig) -> None:
        super().__init__()
        self.config = config
        known, width = len(config.vocabulary) if config.reads_text else 0, config.width
        rest: Any = {"known_words": known, "dropout": config.dropout}
        first = GatedLayer(2, width, config.first_kernel, mask=config.mask, **rest)
        others = [
            GatedLayer(width, width, config.kernel, mask="B", **rest)
            for _ in range(config.layers - 1)
        ]
        self.stacks = nn.ModuleList([first, *others])
        self.head1 = nn.Conv2d(width, config.head, 1)
        self.head2 = nn.Conv2d(config.head, config.levels, 1)

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return Capabilities(condition="text" if self.config.reads_text else "none", likelihood=True)

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean exact negative log-likelihood, of pictures given their captions where these are learned."""
        nats_B = -self._log_prob(self.observed(batch["pixels"]), self.tokens_of(batch))
        return Losses(nats_B.mean(), len(nats_B))

    @torch.no_grad()
    def log_prob(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return log p(x), or log p(x | caption) where captions are learned, in nats (B,); exact.

        Pixels are binarised or rounded to levels first, as in training; draws come from `generator`, on the model's
        device, or from torch's global one.

        Raises:
            ValueError: the model learned captions and the batch has no `tokens`.
        """
        return self._log_prob(self.observed(batch["pixels"], generator), self.tokens_of(batch))

    def observed(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the levels 0..K - 1 of pixels (B, 1, H, W), as floats."""
        return observed(pixels, self.config.levels, self.config.binarize, generator)

    def logits(self, x_B1HW: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return every pixel's logits (B, K, H, W) given the levels before it, all at once."""
        v = h = self._input(x_B1HW).contiguous(memory_format=torch.channels_last)
        for layer in self._layers():
            v, h = layer(v, h, tokens)
        logits_BKHW: Tensor = self.head2(self.head1(h.relu()).relu())
        return logits_BKHW

    def _layers(self) -> Iterator[GatedLayer]:
        for layer in self.stacks:
            assert isinstance(layer, GatedLayer)
            yield layer

    def _input(self, x_B1HW: Tensor) -> Tensor:
        """Return levels in [-1, 1] beside ones, which tell pixels from the padding, (B, 2, H, W)."""
        scaled = x_B1HW * (2 / (self.config.levels - 1)) - 1
        return torch.cat([scaled, torch.ones_like(scaled)], 1)

    def _log_prob(self, x_B1HW: Tensor, tokens: Tensor | None) -> Tensor:
        logits_BKHW = self.logits(x_B1HW, tokens).float()
        nll_BHW = F.cross_entropy(logits_BKHW, x_B1HW[:, 0].long(), reduction="none")
        return -nll_BHW.flatten(1).sum(1)

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Draw pixel after pixel; returns pictures (B, 1, H, W) in [0, 1], on the levels' grid.

        Raises:
            ValueError: prompts are missing, or not understood.
        """
        *_, found = self.drawing(request)
        assert found is not None
        return found

    def steps_of(self, request: Request) -> int:  # noqa: ARG002 - a picture is a picture
        """Return the rows of a picture."""
        return self.config.image_size

    @torch.no_grad()
    def drawing(self, request: Request) -> Iterator[Tensor | None]:
        """Draw pixel after pixel, and yield after each row.

        The vertical stack is computed once a row and the horizontal one once a pixel, from what is kept of the pixels
        before (Ramachandran et al. 2017, arXiv:1704.06001): a picture costs about one pass of the network.

        Raises:
            ValueError: prompts are missing, or not understood.
        """
        u_BHW, tokens = self._begin(request)
        side, count = self.config.image_size, len(u_BHW)
        layers = [CachedLayer(layer, tokens, count, side) for layer in self._layers()]
        head1, head2 = (head.weight[:, :, 0, 0].T for head in (self.head1, self.head2))
        x_B1HW = torch.zeros_like(u_BHW)[:, None]
        for r in range(side):
            if r:
                v = self._input(x_B1HW[:, :, r - 1 : r])
                for layer in layers:
                    v = layer.push_row(v)
            for layer in layers:
                layer.begin_row()
            for c in range(side):
                h = layers[0].pixel(c, None)
                for layer in layers[1:]:
                    h = layer.pixel(c, h)
                hidden = torch.addmm(_bias(self.head1), h.relu(), head1).relu()
                logits_BK = torch.addmm(_bias(self.head2), hidden, head2)
                x_B1HW[:, 0, r, c] = drawn(logits_BK, u_BHW[:, r, c])
                layers[0].push_pixel(c, self._input(x_B1HW[:, :, r : r + 1, c : c + 1])[:, :, 0, 0])
            if r < side - 1:
                yield None
        yield x_B1HW / (self.config.levels - 1)

    def _begin(self, request: Request) -> tuple[Tensor, Tensor | None]:
        """Return a uniform draw a pixel (B, H, W), and tokens where the model reads text."""
        device, side = self.head1.weight.device, self.config.image_size
        self.check(request)
        tokens = self.encode(request.prompts)
        u_BHW = uniforms(request.seeds, (side, side), device)
        return u_BHW, None if tokens is None else tokens.to(device)
