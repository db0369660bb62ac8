"""The settings of a checkpoint of diffusers, whole or of one of its three parts, and what a caller may say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from models.parts import bounds
from models.request import DiffusionOptions
from models.text_to_image import checkpoint_denoisers as denoisers
from models.text_to_image import tiny_checkpoint
from models.text_to_image.checkpoint_parts import DENOISERS, OPTIONAL, PICTURES, part_of

BOUNDS: Final[Mapping[str, bounds.Range]] = {
    "image_size": (8, 4096),
    "channels": (1, 4),
    "steps": (1, 1000),
    "guidance": (0, 50),
    "prompt_drop": (0, 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusersOptions(DiffusionOptions):
    """What a caller may say of how it draws."""

    negative_prompt: str | None = None  # what guidance leads away from, in place of no text


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusersConfig:
    """A checkpoint's own settings, as its folders have them, and how it is sampled where nobody says."""

    pipeline: Literal[
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
    ] = "StableDiffusionPipeline"
    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=tiny_checkpoint.networks)
    """config.json of each network, by its part of the pipeline."""
    readers: Mapping[str, Mapping[str, Any]] = field(default_factory=tiny_checkpoint.readers)
    """By text encoder: its tokenizer's JSON `document`, `length` of a prompt in tokens, and the id that `pad`s it."""
    scheduler: str = tiny_checkpoint.SCHEDULER  # scheduler_config.json
    zeros_unprompted: bool = False  # no text is zeros, not the embedding of ""
    image_size: int = 16  # pixels a side
    channels: int = 3
    steps: int = 50
    guidance: float = 7.5
    prompt_drop: float = 0.1  # share of captions that training leaves out
    latent_shape: tuple[int, int, int] | None = None  # of a part: C, h and w of what is denoised
    prompt_shape: tuple[int, int] | None = None  # of a part: T and D of what is known of a prompt
    texts: str = ""  # of a part: the fingerprint of the text encoders
    autoencoder: str = ""  # of a part: that of what encodes pictures, which says what latents mean
    kinds: ClassVar[Mapping[str, Mapping[str, str]]] = PICTURES

    def __post_init__(self) -> None:
        """Refuse what would fail late, and classes that are not a pipeline's own."""
        bounds.check(self, BOUNDS)
        needs = self.kinds.get(self.pipeline)
        if needs is None:
            known = ", ".join(self.kinds)
            raise ValueError(f"pipeline must be one of {known}, got {self.pipeline!r}")
        if self.networks.keys() | OPTIONAL not in _divided(needs):
            raise ValueError(
                f"networks: a {self.pipeline} has {', '.join(needs)}, got {', '.join(self.networks)}"
            )
        shapes = {"latent_shape": "text", "prompt_shape": "autoencoder"}
        for name, without in shapes.items():
            if self.part not in {"", without} and getattr(self, name) is None:
                raise ValueError(f"{name} is needed of the {self.part} of a checkpoint")
        texts = [name for name in self.networks if name.startswith("text_encoder")]
        if sorted(self.readers) != sorted(texts):
            raise ValueError(f"readers: one for each of {', '.join(texts)} is needed")
        step = self.shrink * self.patch
        if self.image_size % step:
            raise ValueError(f"image_size must be a multiple of {step}, got {self.image_size}")
        places = self.networks.get("transformer", {}).get("pos_embed_max_size")
        if places and self.image_size > places * step:
            raise ValueError(
                f"image_size must be at most {places * step}, of which the transformer knows the places, got"
                f" {self.image_size}"
            )

    @property
    def part(self) -> Literal["", "text", "denoiser", "autoencoder"]:
        """Which part of a checkpoint it is; empty: a whole one."""
        there = {part_of(name) for name in self.networks}
        return there.pop() if len(there) == 1 else ""

    @property
    def shrink(self) -> int:
        """How many pixels a side one place of the latent stands for."""
        if self.latent_shape is not None:
            return self.image_size // self.latent_shape[1]
        blocks = self.networks.get("vae", {}).get("block_out_channels", (64,))
        return int(2 ** (len(blocks) - 1))

    @property
    def patch(self) -> int:
        """How many places of the latent a side are one to the network."""
        named = [one for name, one in self.networks.items() if name in DENOISERS]
        return denoisers.patch_of(self.pipeline, named[0]) if named else 1


def _divided(needs: Mapping[str, str]) -> list[set[str]]:
    """Return the networks of a whole pipeline, and of each of its parts; what may be missing is in all of them."""
    parts: dict[str, set[str]] = {}
    for name in needs:
        parts.setdefault(part_of(name), set()).add(name)
    return [{*found, *OPTIONAL} for found in (needs, *parts.values())]
