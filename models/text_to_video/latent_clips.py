"""Clips by a transformer over patches of their latents: video latent diffusion as the field serves it today.

Frames pass one by one through a frozen autoencoder (models/variational/kl_autoencoder.py), as in Latte (Ma et al. 2024,
arXiv:2401.03048), and a rectified flow draws the latents of all of them together. A token is a patch of space and, with
`patch_frames`, of time (tubelets, as in ViViT, arXiv:2103.15691). A block of the DiT (models/diffusion/dit.py) is told
each token's place in time beside the noise and the caption, and reads

| `attending` | |
|---|---|
| "factorised" | its own frames first, then each place through time: two short attentions |
| "full" | all tokens of the clip at once |

Layers over time are gated by zeros at first: a factorised network is then a picture's DiT frame by frame, from which it
can start. What `knows` is the share of clips of training whose first frames are given, from one to all but one; a clip
then goes on from a picture (`first`) or from a clip (`start`).

Shape letters: B clips, F frames (of tokens, where they are patches), Z channels of the latents, h and w their places,
N = B F, P places of a frame's tokens, W width, M = F P, T words, D context width, E embedding width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from models.diffusion.ddpm import Denoiser
from models.diffusion.dit import Block, DiT, modulated, zeroed
from models.diffusion.super_resolution import Low
from models.diffusion.unet import attended, sinusoids
from models.family import Rows
from models.parts import bounds
from models.ports import Port
from models.request import Request
from models.text_to_image.latent import LatentDiffusion, LatentDiffusionConfig
from models.text_to_video.frames import (
    APART,
    Clips,
    FrameDenoiser,
    Timed,
    VideoDenoiser,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentClipsConfig(Timed, LatentDiffusionConfig):
    """Latent diffusion's, of clips."""

    backbone: Literal["unet", "dit"] = "dit"
    widths: tuple[int, ...] = (128,)
    blocks: int = 6
    patch: int = 2
    patch_frames: int = 1  # frames that a token stands for
    attending: Literal["factorised", "full"] = "factorised"
    knows: float = 0.0  # share of the clips of training whose first frames are given
    only: ClassVar[Literal["unet", "dit"]] = "dit"

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        Timed.__post_init__(self)
        bounds.check(self, {"patch_frames": bounds.SIZE, "knows": (0, 1)})
        if self.frames % self.patch_frames:
            raise ValueError(
                f"patch_frames must divide frames {self.frames}, got {self.patch_frames}"
            )
        if not self.temporal and (self.patch_frames > 1 or self.attending == "full"):
            raise ValueError(
                "temporal: false sees a frame by itself, so patch_frames must be 1 and attending"
                f" 'factorised', got {self.patch_frames} and {self.attending!r}"
            )
        LatentDiffusionConfig.__post_init__(self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """What is drawn, (F Z, h, w)."""
        return self.frames * self.latent_shape[0], *self.latent_shape[1:]

    @property
    def planes(self) -> int:
        """Channels of the frames that a token stands for."""
        return self.patch_frames * self.latent_shape[0]

    @property
    def low_shape(self) -> tuple[int, int] | None:
        """Channels and side of what is seen beside: the latents that are known, and whether they are."""
        seen = self.patch_frames * (self.latent_shape[0] + 1)
        return (seen, self.latent_shape[1]) if self.knows else None


class FrameBlock(Block):
    """A block of each frame by itself: tokens (B, F, P, W), told an embedding (B, F, E)."""

    def read(self, x_BFPW: Tensor, context_BTD: Tensor | None) -> Tensor:
        """Return what the tokens of a frame read in one another and in the words (B, F, P, W)."""
        frames = x_BFPW.shape[1]
        words_NTV = None
        if self.context is not None and context_BTD is not None:
            words_NTV = self.context(context_BTD).repeat_interleave(frames, 0)
        qkv_NPV = self.qkv(x_BFPW).flatten(0, 1)
        return attended(qkv_NPV, words_NTV, self.heads).view_as(x_BFPW)


class FactorisedBlock(FrameBlock):
    """A block of each frame, and then each place attends to itself in the other frames; the frame's alone at first."""

    def __init__(
        self, width: int, heads: int, embedding: int, context: int, dropout: float
    ) -> None:
        super().__init__(width, heads, embedding, context, dropout)
        self.time_qkv, self.time_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.time_modulation = zeroed(nn.Linear(embedding, 3 * width))

    def forward(self, x_BFPW: Tensor, embedding_BFE: Tensor, context_BTD: Tensor | None) -> Tensor:
        """Return tokens (B, F, P, W)."""
        x_BFPW = super().forward(x_BFPW, embedding_BFE, context_BTD)
        shift, scale, gate = self.time_modulation(embedding_BFE).unsqueeze(-2).chunk(3, dim=-1)
        qkv_BFPV = self.time_qkv(timed(modulated(x_BFPW, shift, scale)))
        read = attended(qkv_BFPV.transpose(1, 2).flatten(0, 1), None, self.heads)  # (B P, F, W)
        read_BPFW = read.reshape(len(x_BFPW), -1, *read.shape[1:])
        out: Tensor = x_BFPW + gate * self.time_out(read_BPFW.transpose(1, 2))
        return out


class FullBlock(Block):
    """A block whose tokens (B, F, P, W) attend to all of the clip's, and to the words."""

    def read(self, x_BFPW: Tensor, context_BTD: Tensor | None) -> Tensor:
        """Return what tokens read in one another and in the words (B, F, P, W)."""
        read_BMW = super().read(timed(x_BFPW).flatten(1, 2), context_BTD)
        return read_BMW.view_as(x_BFPW)


def timed(x_BFPW: Tensor) -> Tensor:
    """Return tokens with sines and cosines of their frames."""
    place_F = torch.arange(x_BFPW.shape[1], device=x_BFPW.device)
    return x_BFPW + sinusoids(APART * place_F, x_BFPW.shape[3])[:, None]


class VideoDiT(DiT):
    """Places of frames in, places of frames out (N, C, h, w), told an embedding (B, F, E) and a context (B, T, D)."""

    def forward(self, x_NChw: Tensor, embedding_BFE: Tensor, context_BTD: Tensor | None) -> Tensor:
        """Return (N, outputs, h, w) from (N, inputs, h, w)."""
        x_NPC = x_NChw.flatten(2).transpose(1, 2)
        x_BFPC = x_NPC.reshape(*embedding_BFE.shape[:2], *x_NPC.shape[1:])
        places_PW = self.places_of(*x_NChw.shape[2:])
        out_NPO = self.tokens(x_BFPC, places_PW, embedding_BFE, context_BTD).flatten(0, 1)
        return out_NPO.transpose(1, 2).reshape(len(x_NChw), -1, *x_NChw.shape[2:])


class FramesOfLatents(FrameDenoiser):
    """The transformer on every frame by itself."""

    transformer: ClassVar[type[DiT]] = VideoDiT

    @property
    def block(self) -> type[Block]:
        """Return the blocks without layers over time."""
        return FrameBlock


class ClipsOfLatents(VideoDenoiser):
    """The transformer on clips, told which frame is which and their rate."""

    transformer: ClassVar[type[DiT]] = VideoDiT
    config: "LatentClipsConfig"

    @property
    def block(self) -> type[Block]:
        """Return the blocks that the config says."""
        return FullBlock if self.config.attending == "full" else FactorisedBlock


class LatentClips(Clips, LatentDiffusion):
    """The latents of clips from noise and captions, and perhaps from their first frames."""

    Config = LatentClipsConfig  # type: ignore[assignment]  # a ClipsConfig in all but name
    presets: ClassVar[Mapping[str, LatentClipsConfig]] = {
        "tiny": LatentClipsConfig(
            image_size=8,
            channels=1,
            latent_shape=(4, 4, 4),
            frames=4,
            widths=(24,),
            blocks=2,
            patch_frames=2,
            text_width=16,
            heads=2,
            steps=4,
        ),
        "base": LatentClipsConfig(),
    }
    learns: ClassVar[str] = "latent"
    needs: ClassVar[tuple[str, ...]] = ("latent",)
    adapts: ClassVar[tuple[str, ...]] = ("qkv", "context", "out", "caption", "time_qkv", "time_out")
    config: LatentClipsConfig  # type: ignore[assignment]

    def _network(self) -> Denoiser:
        return (ClipsOfLatents if self.config.temporal else FramesOfLatents)(self.config)

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what it draws from: perhaps a text and, where it `knows` them, the frames that come first.

        Of those to `start` from the last ones are taken, half a clip's and the one in the middle.
        """
        c = self.config
        ports = {name: port for name, port in super().inputs.items() if port.kind == "text"}
        if c.knows:
            ports["first"] = Port("latent", c.latent_shape, c.autoencoder, optional=True)
            ports["start"] = Port("latent", (None, *c.latent_shape), c.autoencoder, optional=True)
        return ports

    @property
    def outputs(self) -> Mapping[str, Port]:
        """Return what it gives: the latents of a clip's frames."""
        c = self.config
        return {"latent": Port("latent", (c.frames, *c.latent_shape), c.autoencoder)}

    def _training_pair(self, picture: Tensor) -> tuple[Tensor, Low | None]:
        """Return clips, and what is known of them: nothing, or the first frames, as many as the lot says."""
        c, count = self.config, len(picture)
        if not c.knows:
            return picture, None
        known_B, many_B = torch.rand(2, count, device=picture.device)
        many_B = 1 + (many_B * (c.frames - 1)).long()
        return picture, (
            self._told(picture, many_B * (known_B < c.knows)),
            torch.zeros_like(known_B),
        )

    def _kept(self, many_B: Tensor) -> Tensor:
        """Return which of a clip's channels are known (B, F Z, 1, 1), where as many of its first frames are."""
        known_BF = torch.arange(self.config.frames, device=many_B.device) < many_B[:, None]
        return known_BF.float().repeat_interleave(self.config.latent_shape[0], 1)[:, :, None, None]

    def _told(self, clip: Tensor, many_B: Tensor) -> Tensor:
        """Return the known latents, 0 where they are not, with the mask of what is known (B, F (Z + 1), h, w)."""
        kept = self._kept(many_B)
        known, mask = self._outside(clip * kept), self._outside(kept.expand_as(clip))
        return torch.cat([known, mask[:, :, :1]], 2).flatten(1, 2)

    def _low_rows(self, request: Request, device: torch.device) -> Rows:
        """Return the known frames of a request, and that they stay as they are.

        Raises:
            ValueError: both a first frame and a clip to start from are given, or a clip that is too short.
        """
        c, given = self.config, request.given
        if not c.knows:
            return {}
        clip = torch.zeros(len(request.seeds), c.frames, *c.latent_shape, device=device)
        many = 0
        if {"first", "start"} <= given.keys():
            raise ValueError("first: give the first frame or a clip to start from, got both")
        if "first" in given:
            many, clip[:, 0] = 1, given["first"].to(device)
        if "start" in given:
            many = c.frames // 2 + 1
            if (length := given["start"].shape[1]) < many:
                raise ValueError(f"start: this model goes on from {many} frames, got {length}")
            clip[:, :many] = given["start"][:, -many:].to(device)
        known, many_B = clip.flatten(1, 2), torch.full((len(clip),), many, device=device)
        return {"low": self._told(known, many_B), "known": known, "kept": self._kept(many_B)}

    def _outside(self, picture: Tensor) -> Tensor:
        """Return latents (B, F, Z, h, w) as they are."""
        return picture.reshape(len(picture), self.config.frames, *self.config.latent_shape)
