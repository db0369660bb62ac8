"""A diffusion of clips: a DDPM whose pictures are the frames of a clip, one after the other in the channels.

So noise, samplers, guidance and super-resolution are those of pictures. What differs stands here: the network sees
frames, and is told which they are and how fast they come; a clip is cut from a longer one; noise may be the same for
every frame.

Shape letters: B clips, F frames, L frames of the data, C channels, H and W pixels, N = B F pictures, T words, D context
width, E embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.diffusion.ddpm import DDPM, DDPMConfig, DDPMOptions, Denoiser
from models.diffusion.dit import zeroed
from models.diffusion.unet import UNet, sinusoids
from models.family import Batch, Capabilities, Losses, Rows
from models.parts import bounds
from models.ports import Port
from models.request import Request
from models.text_to_video.pseudo3d import FrameUNet, VideoUNet

RATES: Final[bounds.Range] = (0.1, 240)
PER_FRAME: Final = ("frames", "embedding", "latent")  # of a batch
OCTAVE: Final = 100  # of frame rates, on the scale on which networks are told times
APART: Final = 100  # frames, on that scale


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoOptions(DDPMOptions):
    """What a caller may say of how a clip is drawn."""

    frame_rate: float | None = None
    """Frames a second of the whole clip, of which D draws some: the fewer, the more happens from one to the next.
    Between those that training was told: a network that learned one rate draws at that alone."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What of clips is seen; a Config has it beside those of a diffusion of pictures."""

    frames: int = 9  # F
    frame_rate: float = 8.0  # of the data, frames a second
    skips: tuple[int, ...] = (
        1,
    )  # each n-th frame of the data is seen; the last n is what is drawn
    temporal: bool = True  # false: frame by frame
    shared_noise: bool = False  # the same noise for every frame
    shuffled: bool = False  # a broken control: frames are learned in any order
    only: ClassVar[Literal["unet", "dit"]] = "unet"  # the backbone that there is

    if TYPE_CHECKING:  # fields of the diffusion's Config
        channels: int = 3
        image_size: int = 16
        sizes: tuple[str, ...] = ()
        backbone: Literal["unet", "dit"] = "unet"

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(self, {"frames": (1, 1024), "frame_rate": RATES, "skips": (1, 64)})
        if self.sizes:
            raise ValueError(f"sizes: frames of clips are squares, got {self.sizes}")
        if self.backbone != self.only:
            raise ValueError(f"backbone must be {self.only!r} for clips, got {self.backbone!r}")
        if self.shared_noise and self.temporal:
            raise ValueError(
                "shared_noise: each frame has noise of its own in training, so frames that hear of one"
                " another (temporal: true) cannot share it; leave it out, got True"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """What is drawn, (F C, H, W)."""
        return self.frames * self.channels, self.image_size, self.image_size

    @property
    def planes(self) -> int:
        """Channels of a frame."""
        return self.channels

    def check_frame_rate(self, rate: float) -> None:
        """Refuse a rate of the whole clip at which none of training was cut; frame by frame none is told but its own.

        Raises:
            ValueError: says which were.
        """
        slowest = self.skips[-1] / max(self.skips) if self.temporal else 1
        fastest = self.skips[-1] / min(self.skips) if self.temporal else 1
        if not self.frame_rate * slowest <= rate <= self.frame_rate * fastest:
            learned = dict.fromkeys(f"{self.frame_rate * one:g}" for one in (slowest, fastest))
            raise ValueError(
                f"frame_rate: this model learned clips of {' to '.join(learned)} frames a second, got {rate:g}"
            )

    @property
    def span(self) -> int:
        """The frames of the data that a clip at the lowest rate reaches over."""
        return (self.frames - 1) * max(self.skips) + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipsConfig(Timed, DDPMConfig):
    """A DDPM's, of clips."""

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        DDPMConfig.__post_init__(self)
        Timed.__post_init__(self)


class FrameDenoiser(Denoiser):
    """A picture's network, which sees every frame by itself."""

    backbone: ClassVar[type[UNet]] = FrameUNet

    def predict(
        self,
        x_BXHW: Tensor,
        low_BYhw: Tensor | None,
        embedding_BE: Tensor,
        context_BTD: Tensor | None,
    ) -> Tensor:
        """Return what the backbone makes of clips (B, F C, H, W), float32."""
        frames = x_BXHW.shape[1] // self.config.planes
        low = None if low_BYhw is None else each(low_BYhw, frames)
        told_BFE = F.silu(self.of_frames(embedding_BE, frames))
        h = self.unet(self.seen(each(x_BXHW, frames), low), told_BFE, context_BTD)
        made_NCHW = F.pixel_shuffle(h.float(), self.config.patch)
        return made_NCHW.reshape(x_BXHW.shape)

    def of_frames(self, embedding_BE: Tensor, frames: int) -> Tensor:
        """Return the embedding of each frame (B, F, E): they are all the same."""
        return embedding_BE[:, None].expand(-1, frames, -1)


class Paced(Denoiser):
    """A network that is told how fast frames come."""

    rate: nn.Linear  # from 64 numbers of a rate, zeros at first

    def of_rate(self, rate_B: Tensor) -> Tensor:
        """Return what rates, in frames a second, add to the embedding (B, E)."""
        added: Tensor = self.rate(sinusoids(OCTAVE * rate_B.log2()))
        return added


class VideoDenoiser(FrameDenoiser, Paced):
    """A picture's network with layers over time, told which frame is which and their rate; the picture's at first."""

    backbone: ClassVar[type[UNet]] = VideoUNet

    def __init__(self, config: DDPMConfig) -> None:
        super().__init__(config)
        embedding = 2 * config.widths[0]
        self.frame, self.said = nn.Linear(64, embedding), nn.Linear(embedding, embedding)
        self.moment, self.rate = (zeroed(nn.Linear(n, embedding)) for n in (embedding, 64))

    def of_frames(self, embedding_BE: Tensor, frames: int) -> Tensor:
        """Return the embedding of each frame (B, F, E): what is said of the clip times its place comes to it.

        Where "left" is in the third frame is no sum of what "left" and "third" are, and a product from the start.
        """
        places_F = torch.arange(frames, device=embedding_BE.device)
        place_FE = self.frame(sinusoids(APART * places_F))
        met_BFE = place_FE * (1 + self.said(F.silu(embedding_BE)))[:, None]
        told_BFE: Tensor = embedding_BE[:, None] + self.moment(met_BFE)
        return told_BFE


class Clips(DDPM):
    """Clips from noise, captions and, where `low_size` is set, their low-resolution copies."""

    Config = ClipsConfig
    Options = VideoOptions
    learns: ClassVar[str] = "frames"
    config: ClipsConfig

    def _network(self) -> Denoiser:
        return (VideoDenoiser if self.config.temporal else FrameDenoiser)(self.config)

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return replace(super().capabilities, modality="clip")

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what it draws from: what a diffusion of pictures does but for these, and a clip that it upscales."""
        c = self.config
        ports = {
            name: port
            for name, port in super().inputs.items()
            if port.kind not in {"pixels", "mask"}
        }
        if c.low_size:
            ports["low"] = Port("clip", (c.frames, c.channels, c.low_size, c.low_size))
        return ports

    def given_of(self, batch: Batch) -> dict[str, Tensor]:
        """Return what was made of real clips, and the small copies that it upscales."""
        real_BFCHW = self.usual(batch)
        found = super().given_of({**batch, "pixels": real_BFCHW.flatten(0, 1)})
        if "low" in found:
            found["low"] = found["low"].reshape(*real_BFCHW.shape[:3], *found["low"].shape[2:])
        return found

    def usual(self, batch: Batch) -> Tensor:
        """Return the first frames (B, F, C, H, W) of real clips at the rate of what is drawn."""
        return batch["frames"][:, :: self.config.skips[-1]][:, : self.config.frames]

    def start_from(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a picture network's weights, so that clips are its pictures, frame by frame, at first.

        What it does not have, such as layers over time, stays as it is. Where this network sees more beside the picture
        (frames that are known), its first layer makes nothing of that yet.

        Raises:
            ValueError: a tensor has another shape, or these weights are of no U-Net.
        """
        own = self.state_dict()
        shared = {
            name: _grown(name, one, own[name]) for name, one in weights.items() if name in own
        }
        if not any(name.startswith("network.unet.") for name in shared):
            raise ValueError(
                "these weights are of no network of pictures that clips can start from"
            )
        return shared

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """Return the loss of Algorithm 1 on clips cut from the batch's `frames` (B, L, C, H, W)."""
        return super().forward(self.cut(batch), player)

    def cut(self, batch: Batch) -> Batch:
        """Return the batch with random clips (B, F, C, H, W) in it, of as many frames as are drawn, and their rates.

        Of an embedding of each of the data's frames, those of the clip's stay.

        Raises:
            ValueError: the data's clips are shorter.
        """
        c, device = self.config, batch["frames"].device
        count, length = batch["frames"].shape[:2]
        if length < c.span:
            raise ValueError(
                f"{c.frames} frames with skips {c.skips} reach over {c.span}, and the data's clips have {length}"
            )
        skips_K = torch.tensor(c.skips, device=device)
        skip_B1 = skips_K[torch.randint(len(c.skips), (count, 1), device=device)]
        room_B1 = length - (c.frames - 1) * skip_B1
        start_B1 = (torch.rand(count, 1, device=device) * room_B1).long()
        index_BF = start_B1 + skip_B1 * torch.arange(c.frames, device=device)
        if c.shuffled:
            index_BF = index_BF.gather(1, torch.rand(index_BF.shape, device=device).argsort(1))
        row_B1 = torch.arange(count, device=device)[:, None]
        chosen = {
            name: batch[name][row_B1, index_BF]
            for name in PER_FRAME
            if name in batch and batch[name].dim() > 2
        }
        return {**batch, **chosen, "frame_rate": c.frame_rate / skip_B1.squeeze(1)}

    def _of_times(self, times_B3: Tensor, batch: Batch) -> Tensor:
        return self._at_rate(super()._of_times(times_B3, batch), batch["frame_rate"])

    def _at_rate(self, of_times: Tensor, rate_B: Tensor) -> Tensor:
        """Return what the network takes from times (..., 3 + E), its embedding told the rate, too."""
        if not isinstance(self.network, Paced):
            return of_times
        gains, embedding = of_times[..., :3], of_times[..., 3:]
        added_BE = self.network.of_rate(rate_B)
        added = added_BE.reshape(len(added_BE), *[1] * (embedding.dim() - 2), -1)
        return torch.cat([gains, embedding + added], -1)

    @torch.no_grad()
    def begin(self, request: Request) -> Rows:
        """Return rows of pure noise, each told the frame rate that is asked for."""
        rows = super().begin(request)
        rate = request.options.get("frame_rate", self.config.frame_rate)
        self.config.check_frame_rate(rate)
        told = rate / self.config.skips[-1]
        rate_B = torch.full((len(request.seeds),), told, device=rows["x"].device)
        return {**rows, "of_times": self._at_rate(rows["of_times"], rate_B)}

    def _noise(
        self, seeds: Sequence[int], draws: Sequence[int], shape: Sequence[int], device: torch.device
    ) -> Tensor:
        if not self.config.shared_noise:
            return super()._noise(seeds, draws, shape, device)
        planes, *sides = shape
        frames = self.config.frames
        return (
            super()._noise(seeds, draws, (planes // frames, *sides), device).repeat(1, frames, 1, 1)
        )

    def _inside(self, picture: Tensor) -> Tensor:
        """Return clips (B, F, C, H, W) of [0, 1] as (B, F C, H, W) in [-1, 1]."""
        return super()._inside(picture).flatten(1, 2)

    def _outside(self, picture: Tensor) -> Tensor:
        """Return clips (B, F, C, H, W) in [0, 1]."""
        side = picture.shape[-1]
        return super()._outside(picture).reshape(len(picture), -1, self.config.channels, side, side)


def each(clip_BXHW: Tensor, frames: int) -> Tensor:
    """Return the frames of clips (N, X / F, H, W)."""
    count, planes, *sides = clip_BXHW.shape
    return clip_BXHW.reshape(count * frames, planes // frames, *sides)


def _grown(name: str, given: Tensor, own: Tensor) -> Tensor:
    """Return a tensor; of a first layer that sees more channels here those that come to it are zeros."""
    if own.shape == given.shape:
        return given
    first = name.endswith("unet.stem.weight") and own.dim() == given.dim()
    more = own.shape[1] - given.shape[1] if first else 0
    if more > 0 and own[:, :1].shape == given[:, :1].shape:
        return torch.cat([given, torch.zeros_like(own[:, :more])], 1)
    sizes = ["x".join(map(str, one.shape)) for one in (own, given)]
    raise ValueError(f"{name} is {sizes[0]} here, and {sizes[1]} in what it starts from")
