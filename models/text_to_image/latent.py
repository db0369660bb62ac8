"""Latent diffusion (Rombach et al. 2022, arXiv:2112.10752): a diffusion that draws an autoencoder's latents.

Everything of DDPM holds (models/diffusion/ddpm.py), of a grid of latents in place of pixels: the loss of section 3.2
(eq. 2), captions by attention (section 3.3), guidance, samplers. What differs stands here: latents have deviation 1 and
no range to be clipped to, and a mask of pixels is brought to their grid. The network is the paper's U-Net or, as the
field has it since, a transformer (Peebles & Xie 2023, arXiv:2212.09748).

The latents come from the pinned `encode` of an autoencoder (models/variational/kl_autoencoder.py), which `autoencoder`
names: those of another one mean something else. Its `decode` paints what is drawn here, and puts back, pixel by pixel,
what a mask keeps.

Shape letters: B rows, Z channels of the latents, h and w their places, H and W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from models.diffusion.ddpm import DDPM, DDPMConfig
from models.parts import bounds
from models.parts.sizes import around, sides
from models.ports import Port


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentDiffusionConfig(DDPMConfig):
    """DDPM's, and whose latents are drawn."""

    image_size: int = 32  # pixels a side, of masks
    latent_shape: tuple[int, int, int] = (4, 8, 8)  # Z, h and w
    autoencoder: str = ""  # the fingerprint of its weights
    data_std: float = 1.0
    patch: int = 1

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.within("latent_shape's channels", self.latent_shape[0], bounds.SIZE)
        if any(one % self.shrink for size in self.sizes for one in sides(size)):
            raise ValueError(
                f"sizes must be multiples of {self.shrink}, which a place of latents is, got {self.sizes}"
            )
        if self.latent_shape[1] != self.latent_shape[2]:
            raise ValueError(f"latent_shape must have equal sides, got {self.latent_shape}")
        if self.low_size is not None:
            raise ValueError(
                f"low_size belongs to pixels, which a stage behind the decoder upscales, got {self.low_size}"
            )
        DDPMConfig.__post_init__(self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """What is drawn, (Z, h, w), where all are squares."""
        return self.latent_shape

    @property
    def shrink(self) -> int:
        """Pixels a side of a place."""
        return max(1, self.image_size // self.latent_shape[1])

    @property
    def open_shape(self) -> tuple[int | None, ...]:
        """The latents' shape at a port."""
        return self.latent_shape[0], *around(self.latent_shape[1], self.sizes)


class LatentDiffusion(DDPM):
    """Latents from noise and captions."""

    Config = LatentDiffusionConfig
    presets: ClassVar[Mapping[str, LatentDiffusionConfig]] = {
        "tiny": LatentDiffusionConfig(
            image_size=8,
            channels=1,
            latent_shape=(4, 4, 4),
            widths=(16, 24),
            text_width=16,
            heads=2,
            steps=4,
        ),
        "base": LatentDiffusionConfig(),
        "dit": LatentDiffusionConfig(backbone="dit", widths=(128,), blocks=6, patch=2),
        "large": LatentDiffusionConfig(  # for KL-f8 of 256 pixels: DiT-B/2
            image_size=256,
            latent_shape=(4, 32, 32),
            backbone="dit",
            patch=2,
            widths=(768,),
            blocks=12,
            heads=12,
            text_width=768,
            text_layers=4,
        ),
    }
    learns: ClassVar[str] = "latent"
    needs: ClassVar[tuple[str, ...]] = ("latent",)
    config: LatentDiffusionConfig

    @property
    def inputs(self) -> Mapping[str, Port]:
        """Return what it draws from: perhaps a text, and the latents of a picture of which a mask leaves some open."""
        c = self.config
        return {
            **super().inputs,
            "image": Port("latent", c.open_shape, c.autoencoder, optional=True),
        }

    @property
    def outputs(self) -> Mapping[str, Port]:
        """Return what it gives: latents of its autoencoder."""
        return {"latent": Port("latent", self.config.open_shape, self.config.autoencoder)}

    def _inside(self, picture: Tensor) -> Tensor:
        """Return latents as they are."""
        return picture

    def _outside(self, picture: Tensor) -> Tensor:
        """Return latents as they are."""
        return picture

    def _clipped(self, picture: Tensor) -> Tensor:
        """Return latents as they are: none is too large."""
        return picture

    def _open(self, mask: Tensor) -> Tensor:
        """Return (B, 1, h, w): a place is open where one of its pixels is."""
        c = self.config
        places = [side * c.latent_shape[1] // c.image_size for side in mask.shape[2:]]
        return F.adaptive_max_pool2d(mask, places)
