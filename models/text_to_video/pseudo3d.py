"""Pseudo-3D layers: a picture's U-Net made one of clips (Singer et al. 2022, arXiv:2209.14792, section 3.2).

Each convolution over a picture is followed by one over time (section 3.2.1), and each attention over a picture's places
by one over the frames of a place (section 3.2.2). The first is the identity at first and the second adds nothing, so
that a clip's network is the picture's, frame by frame, until it has learned otherwise: figure 3 of the paper. Layers of
pictures keep their names, so that their weights are a picture network's.

Convolutions see a row a frame, those of a clip one after the other; linear layers see a row a clip, as adapters of rows
want it. How many frames there are is told by the embedding.

Shape letters: B clips, F frames, N = B F pictures, W width, h and w places, P = h w of them, T words, D context width,
E embedding width.
"""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from models.diffusion.unet import Attention, Block, Level, UNet, attended


def of_clips(x_NWhw: Tensor, frames: int) -> Tensor:
    """Return places by clip and frame (B, F, P, W); of channels_last nothing is copied."""
    count, width, h, w = x_NWhw.shape
    return x_NWhw.permute(0, 2, 3, 1).reshape(count // frames, frames, h * w, width)


def of_pictures(x_BFPW: Tensor, h: int) -> Tensor:
    """Return features (N, W, h, w) of places by clip and frame."""
    clips, frames, places, width = x_BFPW.shape
    return x_BFPW.reshape(clips * frames, h, places // h, width).permute(0, 3, 1, 2)


class FrameBlock(Block):
    """A residual block of each frame by itself."""

    def forward(self, x_NWhw: Tensor, embedding_BFE: Tensor) -> Tensor:
        """Return features of the same shape."""
        frames = embedding_BFE.shape[1]
        film_NW = self.film(embedding_BFE).flatten(0, 1)
        scale, shift = film_NW[:, :, None, None].chunk(2, dim=1)
        h = self.first(F.silu(self.norm1(x_NWhw)), frames)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        return x_NWhw + self.second(self.dropout(h), frames)

    def first(self, x_NWhw: Tensor, frames: int) -> Tensor:  # noqa: ARG002 - frame by frame
        """Return the first convolution of clips of so many frames."""
        out: Tensor = self.conv1(x_NWhw)
        return out

    def second(self, x_NWhw: Tensor, frames: int) -> Tensor:  # noqa: ARG002 - frame by frame
        """Return the second convolution of clips of so many frames."""
        out: Tensor = self.conv2(x_NWhw)
        return out


class FrameAttention(Attention):
    """Places attend to one another within their frame, and to what is said of the clip."""

    def forward(self, x_BFPW: Tensor, context_BTD: Tensor | None = None) -> Tensor:
        """Return the places (B, F, P, W) with what they read added."""
        clips, frames = x_BFPW.shape[:2]
        words_NTW = None
        if self.context is not None and context_BTD is not None:
            words_NTW = self.context(context_BTD).repeat_interleave(frames, 0)
        qkv_NPW = self.qkv(self.norm(x_BFPW)).flatten(0, 1)
        read_BFPW = attended(qkv_NPW, words_NTW, self.heads).reshape(
            clips, frames, -1, x_BFPW.shape[3]
        )
        out: Tensor = x_BFPW + self.out(read_BFPW)
        return out


class FrameLevel(Level):
    """A picture's level, each frame of clips by itself."""

    block: ClassVar[type[Block]] = FrameBlock
    attention: ClassVar[type[Attention]] = FrameAttention

    def forward(self, x_NWhw: Tensor, embedding_BFE: Tensor, context_BTD: Tensor | None) -> Tensor:
        """Return features of the same shape."""
        frames, h = embedding_BFE.shape[1], x_NWhw.shape[2]
        for index, block in enumerate(self.blocks):
            x_NWhw = block(x_NWhw, embedding_BFE)
            if len(self.attentions):
                x_BFPW = self.read(index, of_clips(x_NWhw, frames), context_BTD)
                x_NWhw = of_pictures(x_BFPW, h)
        return x_NWhw

    def read(self, index: int, x_BFPW: Tensor, context_BTD: Tensor | None) -> Tensor:
        """Return the places with what they read in one another and in the context."""
        out: Tensor = self.attentions[index](x_BFPW, context_BTD)
        return out


class FrameUNet(UNet):
    """A picture's U-Net on frames (N, inputs, h, w), told by an embedding (B, F, E) and a context (B, T, D)."""

    level: ClassVar[type[Level]] = FrameLevel


class TimeConv(nn.Conv2d):
    """A convolution over three frames at each place; the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, (3, 1), padding=(1, 0))
        assert self.bias is not None
        nn.init.dirac_(self.weight)
        nn.init.zeros_(self.bias)

    def over(self, x_NWhw: Tensor, frames: int) -> Tensor:
        """Return features (N, W, h, w) of clips of so many frames."""
        mixed_BWFP = self(of_clips(x_NWhw, frames).permute(0, 3, 1, 2))
        return of_pictures(mixed_BWFP.permute(0, 2, 3, 1), x_NWhw.shape[2])


class TimeAttention(Attention):
    """Each place attends to itself in the other frames; the identity at first."""

    def forward(self, x_BFPW: Tensor, context_BTD: Tensor | None = None) -> Tensor:  # noqa: ARG002 - of time alone
        """Return the places (B, F, P, W) with what they read added."""
        clips, _, places, _ = x_BFPW.shape
        qkv_BPFW = self.qkv(self.norm(x_BFPW)).transpose(1, 2)
        read = attended(qkv_BPFW.flatten(0, 1), None, self.heads)  # (B P, F, W)
        read_BFPW = read.reshape(clips, places, *read.shape[1:]).transpose(1, 2)
        out: Tensor = x_BFPW + self.out(read_BFPW)
        return out


class VideoBlock(FrameBlock):
    """A residual block of pseudo-3D convolutions, eq. 1 of the paper."""

    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__(width, embedding, dropout)
        self.time1, self.time2 = TimeConv(width), TimeConv(width)

    def first(self, x_NWhw: Tensor, frames: int) -> Tensor:
        """Return the first convolution, over places and then over frames."""
        return self.time1.over(self.conv1(x_NWhw), frames)

    def second(self, x_NWhw: Tensor, frames: int) -> Tensor:
        """Return the second convolution, over places and then over frames."""
        return self.time2.over(self.conv2(x_NWhw), frames)


class VideoLevel(FrameLevel):
    """Pseudo-3D blocks at one resolution, each followed by pseudo-3D attention, eq. 2 of the paper."""

    block: ClassVar[type[Block]] = VideoBlock

    def __init__(
        self, width: int, blocks: int, embedding: int, dropout: float, heads: int, context: int
    ) -> None:
        super().__init__(width, blocks, embedding, dropout, heads, context)
        self.times = nn.ModuleList(TimeAttention(width, heads) for _ in self.attentions)

    def read(self, index: int, x_BFPW: Tensor, context_BTD: Tensor | None) -> Tensor:
        """Return the places with what they read within their frame, and then over frames."""
        out: Tensor = self.times[index](super().read(index, x_BFPW, context_BTD))
        return out


class VideoUNet(UNet):
    """The U-Net of clips: a picture's with layers over time."""

    level: ClassVar[type[Level]] = VideoLevel
