"""PixelRNN: Row LSTM and Diagonal BiLSTM (van den Oord, Kalchbrenner & Kavukcuoglu 2016, arXiv:1601.06759).

Pixels come in raster order, each a softmax over K levels given all before it. A masked 7 x 7 convolution, then residual
layers of two-dimensional LSTM cells (eq. 3, figure 5), then 1 x 1 convolutions (table 1). A diagonal cell hears of the
pixel to the left and the one above, so that one layer sees every pixel before; a row cell hears of three in the row
above, so that its view is a triangle. "Every pixel" takes a blank column at the right edge, which the paper does not
have: features of a pixel exclude it, so the last pixel of a row is in none that the scan from the right starts from.

Shape letters: B pictures, H and W pixels, N = H W of them by diagonals, K levels, T words, P features of a state,
E = 2 P between the layers, G = 4 P of the gates o, f, i and g, D the two directions. Pixels are in [0, 1]; likelihoods
and losses are exact sums over a picture's pixels, in nats a picture.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds
from models.parts.levels import Binarize, drawn, observed
from models.parts.noise import uniforms
from models.parts.words import Captioned
from models.request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelRNNConfig(Captioned):
    """What is learned and the network's sizes."""

    image_size: int = 28  # pixels a side
    channels: int = 1  # grey pictures only
    levels: int = 2  # of a pixel
    binarize: Binarize = "dynamic"  # of 2 levels
    vocabulary: tuple[str, ...] = ()  # lower-case words; empty: unconditional
    max_words: int = 8
    text: Literal["caption", "none"] = "caption"  # none: the vocabulary is not used
    cell: Literal["diagonal", "row"] = "diagonal"
    state: int = 16  # features of a cell's state, h in the paper
    layers: int = 7  # of LSTM cells
    first_kernel: int = 7  # pixels a side
    row_kernel: int = 3  # pixels, of the row cell's convolutions
    head: int = 32  # features of the output's hidden layer
    mask: Literal["A", "B"] = "A"  # first layer's; B is the broken control: a pixel sees itself

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        if self.channels != 1:
            raise ValueError(f"pixelrnn paints grey: channels must be 1, got {self.channels}")
        bounds.within("levels", self.levels, (2, 256))
        for name in ("first_kernel", "row_kernel"):
            if getattr(self, name) < 3 or getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd and at least 3, got {getattr(self, name)}")
        bounds.check(
            self, dict.fromkeys(("image_size", "state", "layers", "head", "max_words"), bounds.SIZE)
        )

    @property
    def columns(self) -> int:
        """How many columns are scanned: the diagonal cell's scan from the right begins in a blank one."""
        return self.image_size + (self.cell == "diagonal")


class MaskedConv(nn.Conv2d):
    """The first layer: it sees rows above and pixels to the left, and with mask B its own pixel, too."""

    def __init__(self, inputs: int, outputs: int, kernel: int, mask: str) -> None:
        self.reach = kernel // 2
        super().__init__(inputs, outputs, (self.reach + 1, kernel))
        seen = torch.ones(self.reach + 1, kernel)
        seen[-1, self.reach + (mask == "B") :] = 0
        self.seen: Tensor
        self.register_buffer("seen", seen, persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features (B, E, H, W)."""
        x_BCHW = F.pad(x_BCHW, (self.reach, self.reach, self.reach, 0))
        return F.conv2d(x_BCHW, self.weight * self.seen, self.bias)


def lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return a cell's state h and memory c (..., P) from its gates (..., 4 P) and the memory before (eq. 3)."""
    size = c.shape[-1]
    open_, write = gates.split_with_sizes([3 * size, size], -1)
    o, f, i = open_.sigmoid().chunk(3, -1)
    c = f * c + i * write.tanh()
    return o * c.tanh(), c


class DiagonalBiLSTM(nn.Module):
    """Two scans over the diagonals, from both upper corners; each cell hears of its neighbours beside and above.

    The paper skews its maps (figure 3), of which half is then outside of the picture. Here pixels come in the order of
    their diagonals, from top to bottom, and nothing is computed that is none.
    """

    def __init__(self, inputs: int, state: int) -> None:
        super().__init__()
        self.input_to_state = nn.Conv2d(inputs, 2 * 4 * state, 1)
        weight = torch.rand(2, 2 * state, 4 * state) * 2 - 1  # of the neighbour beside, then above
        self.state_to_state_DEG = nn.Parameter(weight / math.sqrt(2 * state))

    def forward(self, x_BEHW: Tensor) -> Tensor:
        """Return states (B, P, H, W) that have heard of all pixels before, of the inputs' own included."""
        count, wide, height, width = x_BEHW.shape
        order_DN = diagonal_order(height, width, x_BEHW.device)
        x_NBE = x_BEHW.permute(2, 3, 0, 1).reshape(-1, count, wide)
        x_DNE = x_NBE.index_select(0, order_DN.flatten()).view(2, -1, wide)
        bias_D1G = _bias(self.input_to_state).view(2, 1, -1)
        gates_DNG = torch.baddbmm(bias_D1G, x_DNE, self.filters)
        h_DNBP = self._scan(gates_DNG.view(2, -1, count, gates_DNG.shape[-1]), height, width)
        place_DN = order_DN.argsort(1)
        h_HWBP = h_DNBP[0].index_select(0, place_DN[0]).view(height, width, count, -1)
        left_HWBP = h_DNBP[1].index_select(0, place_DN[1]).view_as(h_HWBP)
        below_HWBP = F.pad(left_HWBP, (0, 0, 0, 0, 0, 0, 1, -1))  # row r hears of rows < r
        return (h_HWBP + below_HWBP).permute(2, 3, 0, 1)

    @property
    def filters(self) -> Tensor:
        """What each scan makes its gates of the input with."""
        return self.input_to_state.weight.view(2, -1, self.input_to_state.in_channels).mT

    def _scan(self, gates_DNBG: Tensor, height: int, width: int) -> Tensor:
        """Return the states (D, N, B, P) of the pixels, diagonal after diagonal."""
        first = [max(0, diagonal - width + 1) for diagonal in range(height + width - 1)]  # rows
        last = [min(height - 1, diagonal) for diagonal in range(height + width - 1)]
        sizes = [below - above + 1 for above, below in zip(first, last, strict=True)]
        h = c = torch.zeros_like(gates_DNBG[:, :1, :, ::4])  # beside the first pixel
        states, gone, come = [], 0, 0  # rows at the diagonal's two ends
        for diagonal, gates in enumerate(gates_DNBG.split_with_sizes(sizes, 1)):
            if diagonal:
                gone = first[diagonal] - first[diagonal - 1]
                come = last[diagonal] - last[diagonal - 1]
            beside = F.pad(h, (0, 0, 0, 0, -gone, come))
            above = F.pad(h, (0, 0, 0, 0, 1 - gone, come - 1))
            neighbours_DNE = torch.cat([beside, above], -1).flatten(1, 2)
            gates = torch.baddbmm(gates.flatten(1, 2), neighbours_DNE, self.state_to_state_DEG)
            c = F.pad(c, (0, 0, 0, 0, -gone, come))
            h, c = lstm(gates.view(*c.shape[:-1], -1), c)
            states.append(h)
        return torch.cat(states, 1)


def diagonal_order(height: int, width: int, device: torch.device) -> Tensor:
    """Return raster places by diagonal, each from top to bottom, (D, N): from the left corner, and from the right."""
    row = torch.arange(height, device=device)[:, None]
    column = torch.arange(width, device=device)
    diagonals = torch.stack([row + column, row + column.flip(0)]).flatten(1)
    return diagonals.argsort(stable=True)


class RowLSTM(nn.Module):
    """One scan over the rows, from the top; a cell hears of its neighbours in the row above."""

    def __init__(self, inputs: int, state: int, kernel: int) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.input_to_state = nn.Conv2d(inputs, 4 * state, (1, self.reach + 1))  # mask B
        self.state_to_state = nn.Conv1d(state, 4 * state, kernel, padding=self.reach, bias=False)

    def forward(self, x_BEHW: Tensor) -> Tensor:
        """Return states (B, P, H, W) that have heard of a triangle of pixels before."""
        gates_BGHW = self.input_to_state(F.pad(x_BEHW, (self.reach, 0, 0, 0)))
        states = []
        h_BPW = torch.zeros_like(gates_BGHW[:, ::4, 0])
        c_BWP = h_BPW.transpose(1, 2)
        for gates_BGW in gates_BGHW.unbind(2):
            gates_BGW = gates_BGW + self.state_to_state(h_BPW)
            h_BWP, c_BWP = lstm(gates_BGW.transpose(1, 2), c_BWP)
            h_BPW = h_BWP.transpose(1, 2)
            states.append(h_BPW)
        return torch.stack(states, 2)


class Layer(nn.Module):
    """An LSTM cell over the picture, and the way back to the width of what it reads (figure 5)."""

    def __init__(self, config: PixelRNNConfig) -> None:
        super().__init__()
        wide, state = 2 * config.state, config.state
        row = config.cell == "row"
        self.cell = RowLSTM(wide, state, config.row_kernel) if row else DiagonalBiLSTM(wide, state)
        self.out = nn.Conv2d(state, wide, 1)

    def forward(self, x_BEHW: Tensor) -> Tensor:
        """Return x (B, E, H, W) with what the states add to it."""
        added: Tensor = self.out(self.cell(x_BEHW))
        return x_BEHW + added

    def cached(self, count: int, columns: int) -> "CachedDiagonalCell | CachedRowCell":
        """Return the cell as one that takes pixel after pixel, of `count` pictures."""
        if isinstance(self.cell, DiagonalBiLSTM):
            return CachedDiagonalCell(self.cell, count, columns)
        return CachedRowCell(self.cell, count, columns)


class CachedDiagonalCell:
    """A diagonal cell that takes pixel after pixel, and computes each state once.

    The scan from the left goes along; what comes from the right is only heard one row below, so its scan runs over
    a whole row when that is finished.
    """

    def __init__(self, cell: DiagonalBiLSTM, count: int, columns: int) -> None:
        wide, state = cell.input_to_state.in_channels, cell.state_to_state_DEG.shape[1] // 2
        filter_DEG = cell.filters
        self.bias_DG = _bias(cell.input_to_state).view(2, -1)
        self.beside_DPG, self.above_DPG = cell.state_to_state_DEG.chunk(2, 1)
        self.filter_EG = torch.cat([filter_DEG[0], self.beside_DPG[0]]).contiguous()
        self.filter_left_EG = filter_DEG[1].contiguous()
        blank = self.filter_EG.new_zeros
        self.row_WBE = blank(columns, count, wide)
        self.right_WBP, self.left_WBP = blank(columns, count, state), blank(columns, count, state)
        self.still_BP = blank(count, state)
        self._begin_row()

    def _begin_row(self) -> None:
        self.above_WBG = self.right_WBP @ self.above_DPG[0] + self.bias_DG[0]
        self.h_BP = self.c_BP = self.still_BP

    def pixel(self, column: int, x_BE: Tensor) -> Tensor:
        """Take this column's input; return the cell's output (B, P) there."""
        self.row_WBE[column] = x_BE
        input_BX = torch.cat([x_BE, self.h_BP], 1)
        gates_BG = torch.addmm(self.above_WBG[column], input_BX, self.filter_EG)
        self.h_BP, self.c_BP = lstm(gates_BG, self.c_BP)
        self.right_WBP[column] = self.h_BP
        return self.h_BP + self.left_WBP[column]

    def finish_row(self) -> None:
        """Run the scan from the right over the row just taken, and make ready for the next."""
        gates_WBG = self.row_WBE @ self.filter_left_EG + self.bias_DG[1]
        gates_WBG += self.left_WBP @ self.above_DPG[1]
        h_BP = c_BP = self.still_BP
        for column in reversed(range(len(gates_WBG))):
            gates_BG = torch.addmm(gates_WBG[column], h_BP, self.beside_DPG[1])
            h_BP, c_BP = lstm(gates_BG, c_BP)
            self.left_WBP[column] = h_BP
        self._begin_row()


class CachedRowCell:
    """A row cell that takes pixel after pixel."""

    def __init__(self, cell: RowLSTM, count: int, columns: int) -> None:
        self.cell, self.reach = cell, cell.reach
        self.filter = cell.input_to_state.weight[:, :, 0].permute(0, 2, 1).flatten(1).T.contiguous()
        blank, state = self.filter.new_zeros, cell.state_to_state.in_channels
        self.row_BXE = blank(count, self.reach + columns, cell.input_to_state.in_channels)
        self.h_WBP, self.c_WBP = blank(columns, count, state), blank(columns, count, state)
        self.finish_row()

    def finish_row(self) -> None:
        """Make ready for the next row."""
        above_BGW = self.cell.state_to_state(self.h_WBP.permute(1, 2, 0))
        self.above_WBG = above_BGW.permute(2, 0, 1) + _bias(self.cell.input_to_state)

    def pixel(self, column: int, x_BE: Tensor) -> Tensor:
        """Take this column's input; return the cell's output (B, P) there."""
        self.row_BXE[:, self.reach + column] = x_BE
        window = self.row_BXE[:, column : column + self.reach + 1].flatten(1)
        gates_BG = torch.addmm(self.above_WBG[column], window, self.filter)
        h_BP, self.c_WBP[column] = lstm(gates_BG, self.c_WBP[column])
        self.h_WBP[column] = h_BP
        return h_BP


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


class PixelRNN(Family):
    """Pixels in raster order, each a softmax over its levels given all before it."""

    Config = PixelRNNConfig
    presets: ClassVar[Mapping[str, PixelRNNConfig]] = {
        "tiny": PixelRNNConfig(image_size=8, state=8, layers=1, first_kernel=5, head=16),
        "small": PixelRNNConfig(image_size=8, state=32, layers=1, first_kernel=5, head=64),
        "base": PixelRNNConfig(),  # of the paper's MNIST, table 4
    }
    config: PixelRNNConfig

    def __init__(self, config: PixelRNNConfig) -> None:
        super().__init__()
        self.config = config
        wide = 2 * config.state
        self.first = MaskedConv(2, wide, config.first_kernel, config.mask)
        known = len(config.vocabulary) + 1
        self.caption = nn.Embedding(known, wide, padding_idx=0) if config.reads_text else None
        self.residual = nn.Sequential(*(Layer(config) for _ in range(config.layers)))
        self.head1 = nn.Conv2d(wide, config.head, 1)
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
        """Return log p(x), given the caption where it is learned, in nats (B,), exact; draws as `observed`.

        Raises:
            ValueError: the model learned captions and the batch has no `tokens`.
        """
        return self._log_prob(self.observed(batch["pixels"], generator), self.tokens_of(batch))

    def observed(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the levels 0..K - 1 of pixels (B, 1, H, W), as floats; bits may be drawn from `generator`."""
        return observed(pixels, self.config.levels, self.config.binarize, generator)

    def logits(self, x_B1HW: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return every pixel's logits (B, K, H, W) given the levels before it, all at once."""
        side = x_B1HW.shape[3]
        seen = F.pad(self._input(x_B1HW), (0, self.config.columns - side))
        x_BEHW = self.first(seen) + self._conditioning(tokens)[..., None, None]
        x_BEHW = self.residual(x_BEHW)[..., :side]
        logits_BKHW: Tensor = self.head2(self.head1(x_BEHW.relu()).relu())
        return logits_BKHW

    def _input(self, x_B1HW: Tensor) -> Tensor:
        """Return levels in [-1, 1] beside ones, which tell pixels from the padding, (B, 2, H, W)."""
        scaled = x_B1HW * (2 / (self.config.levels - 1)) - 1
        return torch.cat([scaled, torch.ones_like(scaled)], 1)

    def _conditioning(self, tokens: Tensor | None) -> Tensor:
        """Return what the caption adds to the first features, (B, E) or (1, E): the sum over its words."""
        if self.caption is None or tokens is None:
            return _bias(self.first).new_zeros(1, 2 * self.config.state)
        cond_BE: Tensor = self.caption(tokens).sum(1)
        return cond_BE

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

        States are kept of the row above and of the pixel to the left, so that a picture costs two steps of each cell
        a pixel instead of a pass of the network.

        Raises:
            ValueError: prompts are missing, or not understood.
        """
        u_BHW, tokens = self._begin(request)
        side, columns, reach = self.config.image_size, self.config.columns, self.first.reach
        layers = [layer for layer in self.residual if isinstance(layer, Layer)]
        cells = [layer.cached(len(u_BHW), columns) for layer in layers]
        first = (self.first.weight * self.first.seen).flatten(1).T.contiguous()
        start_BE = _bias(self.first) + self._conditioning(tokens)
        x_B1HW = torch.zeros_like(u_BHW)[:, None]
        seen = F.pad(self._input(x_B1HW), (reach, columns - side + reach, reach, 0))
        for r in range(side):
            for c in range(columns):
                window = seen[:, :, r : r + reach + 1, c : c + 2 * reach + 1].flatten(1)
                x_BE = torch.addmm(start_BE, window, first)
                for layer, cell in zip(layers, cells, strict=True):
                    x_BE = x_BE + _at_pixel(layer.out, cell.pixel(c, x_BE))
                if c == side:
                    continue
                logits_BK = _at_pixel(self.head2, _at_pixel(self.head1, x_BE.relu()).relu())
                x_B1HW[:, 0, r, c] = drawn(logits_BK, u_BHW[:, r, c])
                pixel = self._input(x_B1HW[:, :, r : r + 1, c : c + 1])
                seen[:, :, reach + r, reach + c] = pixel[:, :, 0, 0]
            for cell in cells:
                cell.finish_row()
            if r < side - 1:
                yield None
        yield x_B1HW / (self.config.levels - 1)

    def _begin(self, request: Request) -> tuple[Tensor, Tensor | None]:
        """Return a uniform draw a pixel (B, H, W), and tokens where the model reads text."""
        self.check(request)
        device, shape = self.head1.weight.device, (self.config.image_size,) * 2
        tokens = self.encode(request.prompts)
        return uniforms(request.seeds, shape, device), None if tokens is None else tokens.to(device)


def _at_pixel(layer: nn.Conv2d, x_BP: Tensor) -> Tensor:
    return F.linear(x_BP, layer.weight[:, :, 0, 0], layer.bias)
