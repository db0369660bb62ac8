"""The configs of a Kandinsky's prior and decoder that a CPU trains in a second."""

import json
from typing import Any, Final

KNOWN: Final = (7, 16)  # what is known of a text: six rows, and one of it whole; numbers of a row
SCHEDULER: Final = json.dumps(
    {
        "_class_name": "UnCLIPScheduler",
        **{"prediction_type": "sample", "clip_sample_range": 5.0},
    }
)
NOISY: Final = json.dumps(
    {
        "_class_name": "DDPMScheduler",
        **{"beta_start": 0.00085, "beta_end": 0.012, "variance_type": "learned_range"},
        **{"clip_sample": False, "thresholding": True, "sample_max_value": 2.0},
    }
)


def prior() -> dict[str, dict[str, Any]]:
    """Return config.json of what draws embeddings of 16 numbers."""
    rows, width = KNOWN
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
    return {"prior": {**sizes, "embedding_dim": width, "num_embeddings": rows - 1}}


def decoder() -> dict[str, dict[str, Any]]:
    """Return config.json of what decodes them to latents of 4 x 8 x 8."""
    return {
        "unet": {
            **{"sample_size": 8, "in_channels": 4, "out_channels": 8, "layers_per_block": 1},
            **{"block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 4},
            **{"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj"},
            **{"encoder_hid_dim": KNOWN[1], "cross_attention_dim": 16},
            **{"resnet_time_scale_shift": "scale_shift"},
            "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        }
    }
