"""What a pipeline of diffusers is made of: which networks, of which classes, and the tokenizers before them."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

LIBRARIES: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("UNet2DConditionModel", "SD3Transformer2DModel", "AutoencoderKL"), "diffusers"
    ),
    **dict.fromkeys(("UNetMotionModel", "WanTransformer3DModel", "AutoencoderKLWan"), "diffusers"),
    **dict.fromkeys(
        ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "UMT5EncoderModel"),
        "transformers",
    ),
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
NEEDS: Final = {**PICTURES, **CLIPS}
"""The parts of each kind of pipeline, with their classes, in the order in which they are used."""
OPTIONAL: Final = frozenset({"text_encoder_3"})  # zeros are read in its place
LONGEST: Final = 256  # tokens that T5 reads of a prompt for a picture; for a clip, twice as many


class Reader:
    """Prompts as one text encoder's tokens, all of one length."""

    def __init__(self, document: str, length: int, pad: int) -> None:
        self.length, self._pad = length, pad
        self._tokenizer = Tokenizer.from_str(document)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return (B, T) int64, with what begins and ends a prompt.

        Raises:
            ValueError: a prompt has more tokens than the encoder reads.
        """
        found = [one.ids for one in self._tokenizer.encode_batch(list(prompts))]
        if longest := max((len(ids) for ids in found if len(ids) > self.length), default=0):
            raise ValueError(
                f"a prompt of {longest} tokens, and this model reads {self.length} at most, with its"
                " beginning and end: shorten it"
            )
        return torch.tensor([ids + [self._pad] * (self.length - len(ids)) for ids in found])


def network(kind: str, config: Mapping[str, Any]) -> nn.Module:
    """Return one network with fresh weights, of the class that the pipeline's part has."""
    cls = getattr(import_module(LIBRARIES[kind]), kind)
    if LIBRARIES[kind] == "diffusers":
        found: nn.Module = cls.from_config(dict(config))
    else:
        found = cls(cls.config_class(**config))
    return found
