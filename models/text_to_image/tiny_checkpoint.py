"""The configs of a Stable Diffusion, and of a Wan, that a CPU trains in a second: letters for tokens, 16 pixels."""

import json
from typing import Any, Final

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

LENGTH: Final = 40  # tokens of a prompt
SIGNS: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
SCHEDULER: Final = json.dumps(
    {
        "_class_name": "DDIMScheduler",
        **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        **{"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    }
)


FLOW: Final = json.dumps(
    {
        "_class_name": "UniPCMultistepScheduler",
        **{"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    }
)


def networks() -> dict[str, dict[str, Any]]:
    """Return config.json of each network."""
    tokens = 2 * len(SIGNS) + 2
    ends = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1, "pad_token_id": tokens - 1}
    text = {
        **{"vocab_size": tokens, "max_position_embeddings": LENGTH, "hidden_size": 16},
        **{"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, **ends},
    }
    unet = {
        **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1},
        **{"block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 2},
        "cross_attention_dim": 16,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    vae = {
        **{"block_out_channels": [8, 8], "norm_num_groups": 4, "latent_channels": 4},
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    return {"text_encoder": text, "unet": unet, "vae": vae}


def of_clips() -> dict[str, dict[str, Any]]:
    """Return config.json of each network of a Wan whose latent has half the side, and half the frames."""
    text = {
        **{"vocab_size": 2 * len(SIGNS) + 2, "d_model": 16, "d_kv": 8, "d_ff": 32},
        **{"num_layers": 1, "num_heads": 2},
    }
    transformer = {
        **{"patch_size": [1, 2, 2], "in_channels": 4, "out_channels": 4, "text_dim": 16},
        **{"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 48, "num_layers": 1},
        "rope_max_seq_len": 32,
    }
    vae = {
        **{"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1], "num_res_blocks": 1},
        **{"temperal_downsample": [True], "scale_factor_temporal": 2, "scale_factor_spatial": 2},
        **{"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
    }
    return {"text_encoder": text, "transformer": transformer, "vae": vae}


def readers() -> dict[str, dict[str, Any]]:
    """Return the one tokenizer: letters and digits, as CLIP's has them, without merges."""
    names = [*SIGNS, *(f"{sign}</w>" for sign in SIGNS), "<|startoftext|>", "<|endoftext|>"]
    ids = {name: place for place, name in enumerate(names)}
    end = "<|endoftext|>"
    found = Tokenizer(
        models.BPE(vocab=ids, merges=[], end_of_word_suffix="</w>", unk_token=end, fuse_unk=False)
    )
    found.normalizer = normalizers.Lowercase()
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.add_special_tokens(["<|startoftext|>", end])
    found.post_processor = processors.TemplateProcessing(
        single=f"<|startoftext|> $A {end}", special_tokens=[(one, ids[one]) for one in names[-2:]]
    )
    return {"text_encoder": {"document": found.to_str(), "length": LENGTH, "pad": ids[end]}}
