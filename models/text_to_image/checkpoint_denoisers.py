"""What the networks of diffusers' pipelines of pictures say of noisy latents, each asked in its own way.

Shape letters: B rows, C channels of the latent, H and W its places, T prompt tokens, D embedding width, N patches.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

FLUX_PATCH: Final = 2  # latent places a side that Flux packs into one, before its transformer


def predicted(
    pipeline: str,
    denoiser: Any,
    x: Tensor,
    time_B: Tensor,
    context_BTD: Tensor,
    *,
    side: int,
    told_B: Tensor | None = None,
) -> Tensor:
    """Return what a network says of noisy latents (B, C, H, W) at their times, given what is known of their prompts.

    Args:
        pipeline: A key of `PICTURES`.
        denoiser: Its U-Net or transformer.
        x: The latents, scaled as the sampler has them seen.
        time_B: Of the schedule that it was trained by.
        context_BTD: As `checkpoint_texts.embedded` makes it.
        side: Pixels a side of what is drawn.
        told_B: The guidance that a distilled network is told.
    """
    if pipeline == "StableDiffusionPipeline":
        found: Tensor = denoiser(x, time_B, encoder_hidden_states=context_BTD).sample
        return found.float()
    rows_BTD, whole_BD = context_BTD[:, :-1], context_BTD[:, -1]
    if pipeline == "FluxPipeline":
        return _of_flux(denoiser, x, time_B, (rows_BTD, whole_BD), told_B).float()
    c = denoiser.config
    if pipeline == "StableDiffusion3Pipeline":
        sizes = c.joint_attention_dim, c.pooled_projection_dim
        found = denoiser(x, rows_BTD[..., : sizes[0]], whole_BD[:, : sizes[1]], time_B).sample
        return found.float()
    shown_B6 = x.new_tensor([side, side, 0.0, 0.0, side, side]).expand(len(x), -1)
    width = c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim
    found = denoiser(
        x,
        time_B,
        encoder_hidden_states=rows_BTD[..., : c.cross_attention_dim],
        added_cond_kwargs={"text_embeds": whole_BD[:, :width], "time_ids": shown_B6},
    ).sample
    return found.float()


def _of_flux(
    transformer: Any,
    x: Tensor,
    time_B: Tensor,
    known: tuple[Tensor, Tensor],
    told_B: Tensor | None,
) -> Tensor:
    c, patch = transformer.config, FLUX_PATCH
    rows_BTD, whole_BD = known
    down, right = x.shape[2] // patch, x.shape[3] // patch
    places_N3 = x.new_zeros(down, right, 3)
    places_N3[..., 1] = torch.arange(down, device=x.device)[:, None]
    places_N3[..., 2] = torch.arange(right, device=x.device)
    cells = x.reshape(*x.shape[:2], down, patch, right, patch)
    found: Tensor = transformer(
        hidden_states=cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2),
        timestep=time_B / 1000,
        guidance=told_B,
        pooled_projections=whole_BD[:, : c.pooled_projection_dim],
        encoder_hidden_states=rows_BTD[..., : c.joint_attention_dim],
        txt_ids=x.new_zeros(rows_BTD.shape[1], 3),
        img_ids=places_N3.flatten(0, 1),
    ).sample
    said = found.view(len(x), down, right, -1, patch, patch)
    return said.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def tells(networks: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether a network is told the guidance as a number, having been distilled to draw guided by itself."""
    return bool(networks.get("transformer", {}).get("guidance_embeds"))


def channels_of(pipeline: str, denoiser: Any) -> int:
    """Return the channels of the latent."""
    found: int = denoiser.config.in_channels
    return found // FLUX_PATCH**2 if pipeline == "FluxPipeline" else found


def patch_of(pipeline: str, network: Mapping[str, Any]) -> int:
    """Return how many latent places a side become one that a transformer attends to; 1 of a U-Net."""
    return FLUX_PATCH if pipeline == "FluxPipeline" else int(network.get("patch_size") or 1)
