"""What the networks of Karlo say of noisy pictures: its decoder, and the two that enlarge what that draws.

Lee et al. 2022, kakaobrain/karlo; Ramesh et al. 2022, arXiv:2204.06125, section 2.1. The decoder is a U-Net over
pixels that is told the embedding of a picture and a text: both are added to its time, and it attends to both, to the
embedding as a few rows. The U-Nets of super-resolution see the small picture, enlarged, beside the noisy one; the
second takes the last step alone.

Shape letters: B rows, C channels, H and W pixels, h and w those of a small picture, T tokens of a prompt, L = T + 1
rows of what is known of it, E numbers of an embedding and of each of those rows, K = 1 + L.
"""

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional as F

from models.text_to_image.checkpoint_parts import agreed

DECODER: Final = ("decoder", "text_proj")
SUPER_RESOLUTION: Final = ("super_res_first", "super_res_last")  # all steps but the last; that one
KINDS: Final[Mapping[str, str]] = {
    "decoder": "UNet2DConditionModel",
    "text_proj": "UnCLIPTextProjModel",
    **dict.fromkeys(SUPER_RESOLUTION, "UNet2DModel"),
}


def check_decoder(networks: Mapping[str, Any], channels: int, embedding: int) -> None:
    """Refuse a decoder that is told in another way, or whose two networks do not fit.

    Raises:
        ValueError: names the setting, what it must be and what it is.
    """
    c = networks["decoder"].config
    told = {"class_embed_type": "identity", "encoder_hid_dim_type": None}
    seen = {"addition_embed_type": None, "in_channels": channels, "out_channels": 2 * channels}
    read = {
        "clip_embeddings_dim": embedding,
        "time_embed_dim": c.time_embedding_dim or 4 * c.block_out_channels[0],
        "cross_attention_dim": c.cross_attention_dim,
    }
    agreed(networks, {"decoder": {**told, **seen}, "text_proj": read})


def check_super_resolution(
    networks: Mapping[str, Any], channels: int, said: int, side: int
) -> None:
    """Refuse U-Nets that do not see two pictures of `channels`, or say other than `said` channels of one.

    Raises:
        ValueError: names the setting, what it must be and what it is.
    """
    wanted = {"sample_size": side, "in_channels": 2 * channels, "out_channels": said}
    unclassed = {"class_embed_type": None, "num_class_embeds": None}
    agreed(networks, {name: {**wanted, **unclassed} for name in SUPER_RESOLUTION})


def decoded(model: nn.Module, x: Tensor, time_B: Tensor, context_BKE: Tensor) -> Tensor:
    """Return what the decoder says of noise, and of how much is to be added, (B, 2 C, H, W).

    Args:
        model: Has its two networks.
        x: Noisy pictures (B, C, H, W).
        time_B: Of its training.
        context_BKE: The embedding of a picture, and L rows of what is known of a prompt.
    """
    decoder: Any = model.get_submodule("decoder")
    text_proj: Any = model.get_submodule("text_proj")
    rows_BTE = context_BKE[:, 1:-1]
    attended, added = text_proj(
        image_embeddings=context_BKE[:, 0],
        prompt_embeds=context_BKE[:, -1],
        text_encoder_hidden_states=rows_BTE,
        do_classifier_free_guidance=False,  # what guidance leads away from are rows of their own
    )
    there = F.pad(rows_BTE.any(-1), (text_proj.clip_extra_context_tokens, 0), value=True)
    found: Tensor = decoder(
        x, time_B, encoder_hidden_states=attended, class_labels=added, attention_mask=there
    ).sample
    return found


def enlarged(low: Tensor, side: int) -> Tensor:
    """Return small pictures (B, C, h, w) in [0, 1] as they are seen beside noisy ones, (B, C, H, W) about [-1, 1]."""
    return F.interpolate(2 * low - 1, (side, side), mode="bicubic", antialias=True)


def pictured(x: Tensor) -> Tensor:
    """Return what was drawn (B, C, H, W) as pictures in [0, 1]."""
    return (x / 2 + 0.5).clamp(0, 1)
