"""Generative models in pure PyTorch; FAMILIES is the table of contents."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # torch takes seconds, and this table is read before anybody waits for it
    from models.family import Trainable

FAMILIES: Final[Mapping[str, str]] = {
    "aae": "models.variational.aae:AAE",
    "bert": "models.language.bert:BERT",
    "causal-lm": "models.language.causal:CausalLM",
    "clip": "models.text_to_image.clip:CLIP",
    "dalle": "models.text_to_image.dalle:DALLE",
    "ddpm": "models.diffusion.ddpm:DDPM",
    "diffusers": "models.text_to_image.diffusers_pipeline:Diffusers",
    "diffusers-clips": "models.text_to_video.diffusers_clips:DiffusersClips",
    "diffusers-decoder": "models.text_to_image.diffusers_unclip.decoder:DiffusersDecoder",
    "diffusers-prior": "models.text_to_image.diffusers_unclip.prior:DiffusersPrior",
    "dreamfusion": "models.text_to_3d.dreamfusion:DreamFusion",
    "dvae": "models.variational.dvae:DVAE",
    "edm": "models.diffusion.edm:EDM",
    "gan": "models.adversarial.gan:GAN",
    "gpt": "models.language.gpt:GPT",
    "griffin-lim": "models.text_to_speech.griffin_lim:GriffinLim",
    "hifi-gan": "models.text_to_speech.hifi_gan:HiFiGAN",
    "kl-autoencoder": "models.variational.kl_autoencoder:KLAutoencoder",
    "latent-clips": "models.text_to_video.latent_clips:LatentClips",
    "latent-diffusion": "models.text_to_image.latent:LatentDiffusion",
    "lda": "models.classical.lda:LDA",
    "made": "models.autoregressive.made:MADE",
    "make-a-video-decoder": "models.text_to_video.make_a_video:VideoDecoder",
    "make-a-video-interpolation": "models.text_to_video.make_a_video:Interpolation",
    "make-a-video-upsampler": "models.text_to_video.make_a_video:VideoUpsampler",
    "matcha": "models.text_to_speech.matcha:Matcha",
    "mcvd": "models.text_to_video.mcvd:MCVD",
    "nade": "models.autoregressive.nade:NADE",
    "naive-bayes": "models.classical.naive_bayes:NaiveBayes",
    "pixelcnn": "models.autoregressive.pixelcnn:PixelCNN",
    "pixelrnn": "models.autoregressive.pixelrnn:PixelRNN",
    "speecht5": "models.text_to_speech.speecht5:SpeechT5",
    "transformer": "models.language.transformer:Transformer",
    "unit-selection": "models.text_to_speech.unit_selection:UnitSelection",
    "unclip-decoder": "models.text_to_image.unclip:Decoder",
    "unclip-prior": "models.text_to_image.unclip:Prior",
    "vae": "models.variational.vae:VAE",
    "vits": "models.text_to_speech.vits:VITS",
    "vits-checkpoint": "models.text_to_speech.vits_checkpoint:VitsCheckpoint",
    "vocos": "models.text_to_speech.vocos:Vocos",
    "vqvae": "models.variational.vqvae:VQVAE",
    "wae": "models.variational.wae:WAE",
    "wavenet": "models.autoregressive.wavenet:WaveNet",
}
JUDGES: Final[Mapping[str, str]] = {
    "attribute-judge": "models.judges.attribute_judge:AttributeJudge",
    "clip-judge": "models.judges.clip_judge:ClipJudge",
}


def target(name: str) -> str:
    """Return MODULE:CLASS of a family or judge.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.

    Example:
        >>> target("vae")
        'models.variational.vae:VAE'
    """
    table = {**FAMILIES, **JUDGES}
    if name not in table:
        raise ValueError(f"unknown family {name!r}{near(name, sorted(table))}")
    return table[name]


def near(name: str, known: Sequence[str]) -> str:
    """Return how an error goes on that names something unknown: the nearest known one, or all where none is near.

    Example:
        >>> near("vea", ["gan", "vae"])
        "; did you mean 'vae'?"
    """
    found = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else f"; choose one of {', '.join(known)}"


def trainable(name: str) -> "type[Trainable]":
    """Return the class of a family or judge by its name.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.

    Example:
        >>> sorted(trainable("vae").presets)[:2]
        ['base', 'conv']
    """
    module, _, attribute = target(name).partition(":")
    found: type[Trainable] = getattr(import_module(module), attribute)
    return found


def configure(
    name: str, preset: str, overrides: Mapping[str, Any], facts: Mapping[str, Any]
) -> Any:
    """Return a family's Config: its preset, then the dataset's facts, then the recipe's overrides.

    A fact (image_size, channels, vocabulary, max_words, attributes) counts where Config has a field of that name.

    Raises:
        ValueError: unknown family, preset or field, or a value that Config refuses.

    Example:
        >>> config = configure("vae", "tiny", {"latent": 2}, {"image_size": 16, "vocabulary": ("red",)})
        >>> config.latent, config.image_size
        (2, 16)
    """
    cls = trainable(name)
    if preset not in cls.presets:
        raise ValueError(f"{name} has no preset {preset!r}{near(preset, list(cls.presets))}")
    fields = {field.name for field in dataclasses.fields(cls.Config)}
    if unknown := sorted(set(overrides) - fields):
        raise ValueError(f"{name} has no setting {unknown[0]!r}{near(unknown[0], sorted(fields))}")
    from models.parts import kinds

    asked = {name: _tuples(value) for name, value in overrides.items()}
    kinds.check(cls.Config, asked)
    known = {key: _tuples(value) for key, value in facts.items() if key in fields}
    return dataclasses.replace(cls.presets[preset], **{**known, **asked})


def describe(model: "Trainable") -> dict[str, Any]:
    """Return the JSON document from which `build` makes the same network.

    Example:
        >>> model = trainable("nade")(configure("nade", "tiny", {"hidden": 4}, {}))
        >>> describe(model)["family"], describe(model)["config"]["hidden"]
        ('nade', 4)
    """
    table = {**FAMILIES, **JUDGES}
    path = f"{type(model).__module__}:{type(model).__qualname__}"
    name = next(name for name, target in table.items() if target == path)
    adapter = {} if model.lora is None else {"lora": dataclasses.asdict(model.lora)}
    return {"family": name, "config": dataclasses.asdict(model.config), **adapter}


def build(document: Mapping[str, Any]) -> "Trainable":
    """Return a freshly initialised network from `describe`'s document, with an adapter where it describes one.

    JSON lists become tuples.

    Raises:
        ValueError: unknown family or a config that it refuses.

    Example:
        >>> build({"family": "nade", "config": {"image_size": 8, "hidden": 4}}).config.hidden
        4
    """
    cls = trainable(document["family"])
    config = {
        key: _tuples(value)
        for key, value in {**cls.implied, **document["config"]}.items()
        if key not in cls.gone
    }
    try:
        model = cls(cls.Config(**config))
        if "lora" in document:
            from models.parts import lora  # it takes torch

            lora.attach(model, lora.LoRA(**{k: _tuples(v) for k, v in document["lora"].items()}))
    except TypeError as error:
        raise ValueError(f"{document['family']} cannot be built from its config: {error}") from None
    return model


def _tuples(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    return value


__all__ = [
    "FAMILIES",
    "JUDGES",
    "build",
    "configure",
    "describe",
    "near",
    "target",
    "trainable",
]
