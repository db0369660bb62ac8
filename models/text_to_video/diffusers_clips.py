"""Clips by pipelines of Hugging Face's diffusers: AnimateDiff and Wan, as `text_to_image` has those of pictures.

Guo et al. 2023, arXiv:2307.04725: a U-Net of pictures whose frozen layers see a frame each, with motion modules between
them that see a place through all frames, and alone learn. Wan Team 2025, arXiv:2503.20314: a transformer over patches
of a latent of space and time, trained by flow matching; its autoencoder is causal in time, so that the first frame is a
latent frame of its own and each further one stands for four.

Shape letters: B rows, F frames, C channels, H and W places of the latent, T prompt tokens, D embedding width. On the
way, a row's latent frames stand below one another, (B, C, F H, W), so that samplers see a picture's shape.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from models.family import Batch, Capabilities
from models.parts import bounds
from models.text_to_image import tiny_checkpoint
from models.text_to_image.checkpoint_config import DiffusersConfig
from models.text_to_image.checkpoint_parts import CLIPS
from models.text_to_image.diffusers_pipeline import Diffusers


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusersClipsConfig(DiffusersConfig):
    """A checkpoint's own settings, and how long its clips are."""

    pipeline: Literal["AnimateDiffPipeline", "WanPipeline"] = "WanPipeline"  # type: ignore[assignment]
    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=tiny_checkpoint.of_clips)
    scheduler: str = tiny_checkpoint.FLOW
    frames: int = 5
    frame_rate: float = 16.0  # frames a second
    kinds: ClassVar[Mapping[str, Mapping[str, str]]] = CLIPS

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        DiffusersConfig.__post_init__(self)
        if self.part:
            raise ValueError(
                f"networks: a {self.pipeline} is taken whole, got its {self.part} alone"
            )
        bounds.within("frame_rate", self.frame_rate, (0.1, 1000))
        if self.pipeline == "AnimateDiffPipeline":
            longest = self.networks["unet"].get("motion_max_seq_length", 32)
            bounds.within("frames", self.frames, (1, longest))
        elif self.frames < 1 or (self.frames - 1) % self.stride:
            raise ValueError(
                f"frames must be a multiple of {self.stride} and one more, got {self.frames}"
            )

    @property
    def shrink(self) -> int:
        """How many pixels a side one place of the latent stands for."""
        if self.pipeline == "WanPipeline":
            return int(self.networks["vae"].get("scale_factor_spatial", 8))
        return DiffusersConfig.shrink.fget(self)  # type: ignore[attr-defined,no-any-return]

    @property
    def patch(self) -> int:
        """How many places of the latent a side are one to the network."""
        return int(self.networks.get("transformer", {}).get("patch_size", (1, 1, 1))[-1])

    @property
    def stride(self) -> int:
        """How many frames a latent frame stands for, after the first."""
        return int(self.networks["vae"].get("scale_factor_temporal", 1))

    @property
    def latent_frames(self) -> int:
        """How many frames are denoised."""
        return (self.frames - 1) // self.stride + 1


class DiffusersClips(Diffusers):
    """Clips from prompts, by another's checkpoint."""

    Config: ClassVar[type[Any]] = DiffusersClipsConfig
    presets: ClassVar[Mapping[str, DiffusersClipsConfig]] = {
        "tiny": DiffusersClipsConfig(steps=4, guidance=3.0),
        "base": DiffusersClipsConfig(),  # of a version that training starts from, which brings its own
    }
    config: DiffusersClipsConfig

    @property
    def capabilities(self) -> Capabilities:
        """Return what it can do."""
        return Capabilities(modality="clip", condition="text", unprompted=True, stepwise=True)

    def learns(self, name: str) -> bool:
        """Return whether a parameter of what denoises learns: of AnimateDiff the motion modules alone."""
        return self.config.pipeline != "AnimateDiffPipeline" or ".motion_modules." in name

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Return (B, T) int64; Wan's prompts without HTML's entities and doubled spaces."""
        if self.config.pipeline == "WanPipeline":
            prompts = [" ".join(html.unescape(html.unescape(one)).split()) for one in prompts]
        return super().tokens(prompts)

    def embedded(self, tokens_BT: Tensor) -> Tensor:
        """Return what is known of prompts (B, T, D); behind the end of a prompt of Wan's there are zeros."""
        encoder: Any = self.get_submodule("text_encoder")
        if self.config.pipeline == "AnimateDiffPipeline":
            found: Tensor = encoder(tokens_BT).last_hidden_state
            return found
        there_BT = tokens_BT != self.config.readers["text_encoder"]["pad"]
        found_BTD: Tensor = encoder(tokens_BT, there_BT).last_hidden_state
        return found_BTD.masked_fill(~there_BT[..., None], 0)

    def _shape(self) -> tuple[int, int, int]:
        channels, height, width = super()._shape()
        return channels, self.config.latent_frames * height, width

    def _places(self) -> int:
        patch = self.denoiser.config.get("patch_size") or (1, 1, 1)
        side = self.config.image_size // self.config.shrink
        return int(self.config.latent_frames // patch[0] * (side // patch[1]) * (side // patch[2]))

    def _prediction(
        self,
        x: Tensor,
        time_B: Tensor,
        context_BTD: Tensor,
        told_B: Tensor | None,  # noqa: ARG002 - none of them was distilled
    ) -> Tensor:
        x_BCFHW = self._apart(x)
        if self.config.pipeline == "AnimateDiffPipeline":  # each frame reads the prompt
            context_BTD = context_BTD.repeat_interleave(x_BCFHW.shape[2], 0)
        found: Tensor = self.denoiser(
            x_BCFHW, timestep=time_B, encoder_hidden_states=context_BTD
        ).sample
        return found.float().flatten(2, 3)

    @torch.no_grad()
    def _decoded(self, latents: Tensor) -> Tensor:
        x_BCFHW = self._apart(latents)
        if self.config.pipeline == "AnimateDiffPipeline":
            frames = super()._decoded(x_BCFHW.transpose(1, 2).flatten(0, 1))
            return frames.view(len(latents), -1, *frames.shape[1:])
        mean, deviation = self._statistics(latents)
        pixels: Tensor = self.vae.decode(x_BCFHW * deviation + mean).sample
        return (pixels / 2 + 0.5).clamp(0, 1).transpose(1, 2)

    def _latents(self, batch: Batch) -> Tensor:
        frames = batch["frames"]
        if self.config.pipeline == "AnimateDiffPipeline":
            stills = super()._latents({"pixels": frames.flatten(0, 1)})
            stills = stills.view(len(frames), -1, *stills.shape[1:])
            return stills.transpose(1, 2).flatten(2, 3)
        known = self.vae.encode(2 * frames.transpose(1, 2) - 1).latent_dist
        mean, deviation = self._statistics(frames)
        found: Tensor = (known.sample() - mean) / deviation
        return found.flatten(2, 3)

    def _apart(self, x: Tensor) -> Tensor:
        """Return latent frames (B, C, F, H, W) that stand below one another."""
        count, channels, _, width = x.shape
        return x.view(count, channels, self.config.latent_frames, -1, width)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the deviation of each channel of Wan's latent, (C, 1, 1, 1)."""
        c = self.vae.config
        mean, deviation = (like.new_tensor(one) for one in (c.latents_mean, c.latents_std))
        return mean[:, None, None, None], deviation[:, None, None, None]
