"""What a pipeline of diffusers is made of: which networks, and of which classes."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final, Literal

from torch import nn

LIBRARIES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel"), "diffusers"
    ),
    **dict.fromkeys(("UNetMotionModel", "WanTransformer3DModel"), "diffusers"),
    **dict.fromkeys(("AutoencoderKL", "AutoencoderKLWan"), "diffusers"),
    **dict.fromkeys(("PriorTransformer", "VQModel", "UNet2DModel"), "diffusers"),
    "UnCLIPTextProjModel": "diffusers.pipelines.deprecated.unclip",
    **dict.fromkeys(
        ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "UMT5EncoderModel"),
        "transformers",
    ),
    "CLIPVisionModelWithProjection": "transformers",
}
"""The networks that a checkpoint may have, and whose they are: no other class is ever looked up."""
PICTURES: Final[Mapping[str, Mapping[str, str]]] = {
    "StableDiffusionPipeline": {
        "text_encoder": "CLIPTextModel",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    },
    "StableDiffusionXLPipeline": {
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    },
    "StableDiffusion3Pipeline": {
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
    },
    "FluxPipeline": {
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
    },
}
CLIPS: Final[Mapping[str, Mapping[str, str]]] = {
    "AnimateDiffPipeline": {
        "text_encoder": "CLIPTextModel",
        "unet": "UNetMotionModel",
        "vae": "AutoencoderKL",
    },
    "WanPipeline": {
        "text_encoder": "UMT5EncoderModel",
        "transformer": "WanTransformer3DModel",
        "vae": "AutoencoderKLWan",
    },
}
UNCLIPS: Final[Mapping[str, Mapping[str, str]]] = {
    "KandinskyV22CombinedPipeline": {
        "prior_text_encoder": "CLIPTextModelWithProjection",
        "prior_prior": "PriorTransformer",
        "prior_image_encoder": "CLIPVisionModelWithProjection",
        "unet": "UNet2DConditionModel",
        "movq": "VQModel",
    },
    "KandinskyV22Pipeline": {"unet": "UNet2DConditionModel", "movq": "VQModel"},
    "KandinskyV22PriorPipeline": {
        "text_encoder": "CLIPTextModelWithProjection",
        "prior": "PriorTransformer",
        "image_encoder": "CLIPVisionModelWithProjection",
    },
    "UnCLIPPipeline": {
        "text_encoder": "CLIPTextModelWithProjection",
        "prior": "PriorTransformer",
        "text_proj": "UnCLIPTextProjModel",
        "decoder": "UNet2DConditionModel",
        "super_res_first": "UNet2DModel",
        "super_res_last": "UNet2DModel",
    },
}
NEEDS: Final = {**PICTURES, **CLIPS, **UNCLIPS}
"""The parts of each kind of pipeline, with their classes, in the order in which they are used."""
OPTIONAL: Final = frozenset({"text_encoder_3"})  # zeros are read in its place
DENOISERS: Final = ("unet", "transformer")
LONGEST: Final = (
    256  # tokens that T5 reads of a prompt for SD3; for Flux and for clips, twice as many
)


def part_of(name: str) -> Literal["text", "denoiser", "autoencoder"]:
    """Return which of the three parts of a pipeline a network belongs to."""
    if name in DENOISERS:
        return "denoiser"
    return "text" if name.startswith("text_encoder") else "autoencoder"


def network(kind: str, config: Mapping[str, Any]) -> nn.Module:
    """Return one network with fresh weights, of the class that the pipeline's part has."""
    cls = getattr(import_module(LIBRARIES[kind]), kind)
    if LIBRARIES[kind] == "transformers":
        found: nn.Module = cls(cls.config_class(**config))
    else:
        found = cls.from_config(dict(config))
    return found


def agreed(networks: Mapping[str, Any], wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse networks, by part, that would not take what the others give.

    Raises:
        ValueError: names the first setting that is another than is wanted.
    """
    for part, settings in wanted.items():
        for name, value in settings.items():
            if (got := networks[part].config[name]) != value:
                raise ValueError(f"{part}: {name} must be {value}, got {got}")
