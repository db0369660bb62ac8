"""Tiny checkpoints as diffusers saves them, built from configs: pipelines of pictures, and of clips."""

import json
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from flows.provenance.checkpoints import Checkpoint
from models import build

LENGTH: Final = 48
PAIRS: Final = ("re", "red</w>", "at</w>", "cat</w>")
MERGES: Final = ("r e", "re d</w>", "a t</w>", "c at</w>")
LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
LINEAR: Final = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tokenizer(pad: str = "<|endoftext|>") -> Any:
    from transformers import CLIPTokenizer

    names = [*LETTERS, *(f"{one}</w>" for one in LETTERS), "!", "!</w>", *PAIRS]
    names += ["<|startoftext|>", "<|endoftext|>"]
    ids = {name: place for place, name in enumerate(names)}
    pairs = [tuple(merge.split()) for merge in MERGES]
    return CLIPTokenizer(vocab=ids, merges=pairs, model_max_length=LENGTH, pad_token=pad)


def text_config(words: Any, **more: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **more,
    )


def unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
    }
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        attention_head_dim=2,
        norm_num_groups=4,
        **{**kinds, **more},
    )


def vae(**more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **more,
    )


def stable_diffusion() -> Any:
    """Return a pipeline as Stable Diffusion 1 has it: PNDM, one text encoder, no safety checker."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    words = tokenizer()
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(words)),
        tokenizer=words,
        unet=unet(),
        scheduler=PNDMScheduler(
            **LINEAR, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def xl() -> Any:
    """Return a pipeline of XL's shape: two text encoders, sizes as conditions, Euler, zeros for no text."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    first, second = tokenizer(), tokenizer("!")
    torch.manual_seed(1)
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(first)),
        text_encoder_2=CLIPTextModelWithProjection(
            text_config(second, projection_dim=24, hidden_act="gelu")
        ),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
            transformer_layers_per_block=(1, 1),
        ),
        scheduler=EulerDiscreteScheduler(**LINEAR, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def three(*, long: bool = True) -> Any:
    """Return a pipeline of Stable Diffusion 3's shape: a transformer, rectified flow, and perhaps T5."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection

    first, second = tokenizer(), tokenizer("!")
    torch.manual_seed(2)
    texts = [
        CLIPTextModelWithProjection(text_config(words, projection_dim=12))
        for words in (first, second)
    ]
    t5, pieces = _t5() if long else (None, None)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=24,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=texts[0],
        tokenizer=first,
        text_encoder_2=texts[1],
        tokenizer_2=second,
        text_encoder_3=t5,
        tokenizer_3=pieces,
    )


def flux(*, told: bool = True) -> Any:
    """Return a pipeline of Flux's shape: a transformer over packed latents, perhaps told its guidance as a number."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    words = tokenizer()
    torch.manual_seed(6)
    t5, pieces = _t5()
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=told,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=told),
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=CLIPTextModel(text_config(words)),
        tokenizer=words,
        text_encoder_2=t5,
        tokenizer_2=pieces,
    )


def kandinsky() -> Any:
    """Return a pipeline as Kandinsky 2.2 has it: a prior of CLIP's embeddings, and a decoder of them with MoVQ."""
    from diffusers import (
        DDPMScheduler,
        KandinskyV22CombinedPipeline,
        UnCLIPScheduler,
        UNet2DConditionModel,
        VQModel,
    )
    from transformers import (
        CLIPImageProcessorPil,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    words = tokenizer()
    torch.manual_seed(8)
    tower = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
    )
    return KandinskyV22CombinedPipeline(
        prior_prior=prior(),
        prior_image_encoder=CLIPVisionModelWithProjection(tower),
        prior_text_encoder=CLIPTextModelWithProjection(text_config(words, projection_dim=16)),
        prior_tokenizer=words,
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        prior_image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        unet=UNet2DConditionModel(
            sample_size=8,
            out_channels=8,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            attention_head_dim=4,
            addition_embed_type="image",
            encoder_hid_dim=16,
            encoder_hid_dim_type="image_proj",
            cross_attention_dim=16,
            resnet_time_scale_shift="scale_shift",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        ),
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            thresholding=True,
            sample_max_value=2.0,
            variance_type="learned_range",
        ),
        movq=VQModel(
            block_out_channels=(32, 32),  # MoVQ's norms have 32 groups
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            num_vq_embeddings=12,
            vq_embed_dim=4,
            norm_type="spatial",
        ),
    )


def prior() -> Any:
    """Return what draws embeddings of 16 numbers, as if it had been trained: they are scaled by a number each."""
    from diffusers import PriorTransformer

    found = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=16,
        num_embeddings=LENGTH,
    )
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        found.clip_std.add_(1)
    return found


def karlo() -> Any:
    """Return a pipeline as Karlo has it: a prior, a decoder of pixels that reads the text, and super-resolution."""
    from diffusers import UnCLIPPipeline, UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
    from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel
    from transformers import CLIPTextModelWithProjection

    words = tokenizer()
    torch.manual_seed(9)
    sizes = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
    sizes |= {"resnet_time_scale_shift": "scale_shift", "attention_head_dim": 4}
    text_proj = UnCLIPTextProjModel(
        clip_extra_context_tokens=2,
        clip_embeddings_dim=16,
        time_embed_dim=32,
        cross_attention_dim=12,
    )
    torch.nn.init.normal_(text_proj.learned_classifier_free_guidance_embeddings)
    first, last = (
        UNet2DModel(
            **{"sample_size": 16, "in_channels": 6, "out_channels": 3, "add_attention": False},
            down_block_types=("ResnetDownsampleBlock2D",) * 2,
            up_block_types=("ResnetUpsampleBlock2D",) * 2,
            **sizes,
        )
        for _ in range(2)
    )
    return UnCLIPPipeline(
        prior=prior(),
        decoder=UNet2DConditionModel(
            **{"sample_size": 8, "in_channels": 3, "out_channels": 6, "cross_attention_dim": 12},
            class_embed_type="identity",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            **sizes,
        ),
        text_encoder=CLIPTextModelWithProjection(text_config(words, projection_dim=16)),
        tokenizer=words,
        text_proj=text_proj,
        super_res_first=first,
        super_res_last=last,
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=UnCLIPScheduler(),
    )


def animated() -> Any:
    """Return an AnimateDiff: the U-Net of pictures, and motion modules that are not at their start."""
    from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter
    from transformers import CLIPTextModel

    words = tokenizer()
    torch.manual_seed(3)
    motion = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        motion_max_seq_length=16,
        use_motion_mid_block=False,
    )
    for parameter in motion.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return AnimateDiffPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(words)),
        tokenizer=words,
        unet=unet(),
        motion_adapter=motion,
        scheduler=DDIMScheduler(
            **{**LINEAR, "beta_schedule": "linear"},
            clip_sample=False,
            timestep_spacing="linspace",
            steps_offset=1,
        ),
    )


def wan() -> Any:
    """Return a pipeline of Wan 2.1's shape: a transformer over space and time, UMT5, an autoencoder of clips."""
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(4)
    pieces = _pieces()
    config = UMT5Config(
        vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return WanPipeline(
        tokenizer=pieces,
        text_encoder=UMT5EncoderModel(config).eval(),
        vae=AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        transformer=WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            text_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def _pieces() -> Any:
    from transformers import T5Tokenizer

    names = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]
    return T5Tokenizer(vocab=[(name, -1.0) for name in names], extra_ids=0)


def _t5() -> tuple[Any, Any]:
    from transformers import T5Config, T5EncoderModel

    pieces = _pieces()
    config = T5Config(
        vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return T5EncoderModel(config).eval(), pieces  # it has dropout


BUILT: Final = {
    **{"sd": stable_diffusion, "xl": xl, "sd3": three},
    **{"flux": flux, "schnell": partial(flux, told=False)},
}
CLIPS: Final = {"animatediff": animated, "wan": wan}
UNCLIPS: Final = {"kandinsky": kandinsky, "karlo": karlo}


def saved(kind: str, folder: Path) -> Any:
    """Save a tiny checkpoint with a model card; return its pipeline."""
    pipeline = {**BUILT, **CLIPS, **UNCLIPS}[kind]()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: openrail\n---\n# tiny\n")
    return pipeline


def model_of(found: Checkpoint, **config: Any) -> Any:
    """Return the model that a checkpoint was read as, with its weights; `config` stands over its own settings."""
    document = json.loads(json.dumps(found.document))  # as it is kept
    model: Any = build({**document, "config": {**document["config"], **config}})
    model.load_state_dict(dict(found.tensors))
    return model.ready()


def changed(path: Path, **values: Any) -> None:
    """Write further fields into a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
