"""Kandinsky 2.2 and Karlo of diffusers as stages, each of which reads, embeds, draws, decodes or enlarges.

Kandinsky has five: CLIP's two towers, the prior between them, what denoises, and its MoVQ. A pipeline of diffusers that
has all of it in one folder, or a decoder's folder and a prior's, as their authors publish them. A text is read, an
embedding drawn for it, and latents for that; a picture is embedded and drawn anew. What guidance leads away from is the
embedding of a blank picture, which the prior and the picture tower keep.

Karlo has four: CLIP's tower of texts, the prior, a decoder of pixels that reads the text, too, and super-resolution by
two networks. Guidance leads away from no text, and an embedding that was learned for that and that the prior keeps.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from flows.provenance.checkpoints import (
    INDEX,
    TRIED,
    Checkpoint,
    CheckpointError,
    document_of,
    files_of,
    kind_of,
    licence_of,
    network_in,
    reader_in,
    told,
)
from models.text_to_image.checkpoint_parts import UNCLIPS

if TYPE_CHECKING:
    from torch import Tensor

    Network: TypeAlias = tuple[Mapping[str, Any], Mapping[str, Tensor]]
    """Its config.json, and its weights."""

WHOLE: Final = "KandinskyV22CombinedPipeline"
DECODER: Final = "KandinskyV22Pipeline"
PRIOR: Final = "KandinskyV22PriorPipeline"
KARLO: Final = "UnCLIPPipeline"
TEXT, DRAWS, IMAGE, AUTOENCODER, ENLARGES = "text", "prior", "image", "autoencoder", "upsampler"
FAMILIES: Final = {
    **dict.fromkeys((TEXT, DRAWS, IMAGE), "diffusers-prior"),
    **dict.fromkeys(("", AUTOENCODER, ENLARGES), "diffusers-decoder"),
}
"""Which of ours each stage is; "" is what denoises."""
FOLDERS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    WHOLE: {
        TEXT: ("prior_text_encoder", "prior_tokenizer"),
        DRAWS: ("prior_prior", "prior_scheduler"),
        IMAGE: ("prior_image_encoder", "prior_image_processor"),
        "": ("unet", "scheduler"),
        AUTOENCODER: ("movq",),
    },
    KARLO: {
        TEXT: ("text_encoder", "tokenizer"),
        DRAWS: ("prior", "prior_scheduler"),
        "": ("decoder", "text_proj", "decoder_scheduler"),
        ENLARGES: ("super_res_first", "super_res_last", "super_res_scheduler"),
    },
}
"""What each stage is made of, as the pipeline in one folder calls it."""
PROCESSOR: Final = "preprocessor_config.json"
SCHEDULER: Final = "scheduler_config.json"
DRAWN: Final[Mapping[str, Mapping[str, float]]] = {
    DECODER: {"steps": 100, "guidance": 4.0},
    KARLO: {"steps": 25, "guidance": 8.0},
    ENLARGES: {"steps": 7},
}
"""As diffusers' pipelines do where nobody says."""
NEEDS: Final[Mapping[str, Mapping[str, Mapping[str, str]]]] = {
    DECODER: {
        DRAWS: {"embedding": f"{IMAGE}/embed", "text_embedding": f"{TEXT}/read"},
        "": {"latent": f"{AUTOENCODER}/encode", "embedding": f"{IMAGE}/embed"},
    }
}
"""What the two stages of a Kandinsky that learn learn from; Karlo has nothing that embeds pictures."""


def is_one(folder: Path) -> bool:
    """Return whether a folder has one of these pipelines."""
    index = document_of(folder / INDEX) if (folder / INDEX).is_file() else None
    return isinstance(index, dict) and index.get("_class_name") in [*UNCLIPS]


def read(
    folder: Path, source: str, image_size: int | None = None, prior: Path | None = None
) -> Checkpoint:
    """Return what denoises, with the other stages beside it, after checking every file of all of them.

    Raises:
        CheckpointError, IntegrityError, ValueError: as `checkpoints.read`; or a prior alone, or none.
    """
    from flows.training.checkpoints import detached
    from models import describe

    files = files_of(folder, INDEX)
    if prior is not None:
        files |= {f"prior_{name}": one for name, one in files_of(prior, INDEX).items()}
    laid, places, tokenizer = _places(folder, prior)
    found = {part: network_in(places[part], of) for part, of in UNCLIPS[laid].items()}
    of_kind = _karlo if laid == KARLO else _kandinsky
    models = of_kind(places, found, reader_in(*tokenizer), image_size)
    whole = Checkpoint(
        document={},
        tensors={},
        source=source,
        licence=licence_of(folder),
        left_out=(),
        files=files,
        kind=KARLO if laid == KARLO else DECODER,
        tried=TRIED,
    )
    parts = {
        stage: dataclasses.replace(
            whole,
            document=describe(model),
            tensors=detached(model.state_dict()),
            own=tuple(name for name in files if name.partition("/")[0] in FOLDERS[laid][stage]),
        )
        for stage, model in models.items()
    }
    return dataclasses.replace(parts.pop(""), beside=parts)


def wired(stage: str, kind: str) -> dict[str, dict[str, dict[str, str]]]:
    """Return how the stages of a `kind` are wired at each entrance, `stage` what denoises."""
    read, away, other = (f"{TEXT}/read{one}" for one in ("", "#negative", "#other"))
    drawn = {"text_embedding": f"{read}.text_embedding"}
    if kind == KARLO:
        return {
            "generate": {
                read: {"text": "request.text"},
                DRAWS: drawn,
                stage: {**drawn, "embedding": f"{DRAWS}.embedding"},
                ENLARGES: {"low": f"{stage}.pixels"},
            }
        }
    decoded = {f"{AUTOENCODER}/decode": {"latent": f"{stage}.latent"}}
    return {
        "generate": {
            read: {"text": "request.text"},
            away: {"text": "request.negative"},
            DRAWS: {**drawn, "without": f"{away}.text_embedding"},
            stage: {"embedding": f"{DRAWS}.embedding"},
            **decoded,
        },
        "vary": {
            f"{IMAGE}/embed": {"pixels": "request.image"},
            stage: {"embedding": f"{IMAGE}/embed.embedding"},
            **decoded,
        },
        "blend": {
            read: {"text": "request.text"},
            other: {"text": "request.other"},
            DRAWS: drawn,
            f"{DRAWS}#other": {"text_embedding": f"{other}.text_embedding"},
            f"{DRAWS}/blend": {
                **{"embedding": f"{DRAWS}.embedding", "other": f"{DRAWS}#other.embedding"},
                "weight": "request.weight",
            },
            stage: {"embedding": f"{DRAWS}/blend.embedding"},
            **decoded,
        },
    }


def _places(
    folder: Path, prior: Path | None
) -> tuple[str, dict[str, Path], tuple[Path, dict[str, Any], str]]:
    """Return how it is laid out in one folder, where each part of that lies, and where the tokenizer is found."""
    index = document_of(folder / INDEX)
    kind, _ = kind_of(folder, index)
    if kind == PRIOR:
        raise CheckpointError(
            f"{folder} is a prior alone, which draws no picture: give its decoder's folder, and this one by --prior"
        )
    if kind in FOLDERS and prior is not None:
        raise CheckpointError(f"{folder} has a prior of its own: leave --prior out")
    if kind == DECODER and prior is None:
        raise CheckpointError(
            f"{folder} has no prior, which draws embeddings of texts: give --prior"
        )
    laid = KARLO if kind == KARLO else WHOLE
    names = [name for folders in FOLDERS[laid].values() for name in folders]
    places = {name: folder / name for name in names}
    if prior is None:
        tokenizer = next(name for name in names if name.endswith("tokenizer"))
        return laid, places, (folder, index, tokenizer)
    theirs = document_of(prior / INDEX)
    if kind_of(prior, theirs)[0] != PRIOR:
        raise CheckpointError(f"{prior} is no {PRIOR}, which --prior wants")
    own = {name: name.removeprefix("prior_") for name in places if name.startswith("prior_")}
    places |= {name: prior / part for name, part in own.items()}
    return laid, places, (prior, theirs, "tokenizer")


def _kandinsky(
    places: Mapping[str, Path],
    found: "Mapping[str, Network]",
    reader: Mapping[str, Any],
    image_size: int | None,
) -> dict[str, Any]:
    """Return the model of each stage, with what it must know of the others."""
    import torch

    from models.parts.spaces import fingerprint
    from models.request import Request

    (unet, _), (movq, codes), (seen, pictures) = (
        found[name] for name in ("unet", "movq", "prior_image_encoder")
    )
    processor = document_of(places["prior_image_processor"] / PROCESSOR)
    pixels = {
        field: told(processor, PROCESSOR, name, list)
        for field, name in (("mean", "image_mean"), ("deviation", "image_std"))
    }
    encodes = [
        one for name, one in sorted(codes.items()) if name.startswith(("encoder.", "quant_conv."))
    ]
    size = _sizes(unet, movq, image_size)
    latent = {**size, "autoencoder": fingerprint(*encodes)}
    said = _said(found["prior_text_encoder"], reader)
    shown = {
        "embedding": seen.get("projection_dim", 512),
        "clip": fingerprint(*pictures.values(), *map(torch.tensor, pixels.values())),
    }
    square = {name: size[name] for name in ("image_size", "channels")}
    settings: dict[str, dict[str, Any]] = {
        TEXT: {**said, "reader": _reads(reader)},
        DRAWS: {**said, **shown, "scheduler": _scheduler(places["prior_scheduler"])},
        IMAGE: {**shown, **square, **pixels},
        "": {**latent, **shown, **DRAWN[DECODER], "scheduler": _scheduler(places["scheduler"])},
        AUTOENCODER: latent,
    }
    models = {stage: _model(stage, WHOLE, found, settings[stage]) for stage in settings}
    with torch.no_grad():
        tower = models[IMAGE].image_encoder
        side = tower.config.image_size
        blank_E = tower(torch.zeros(1, 3, side, side)).image_embeds[0]
        models[DRAWS].nothing_LD.copy_(models[TEXT].sample(Request(seeds=(0,)))[0])
        for stage in (DRAWS, IMAGE):
            models[stage].blank_E.copy_(blank_E)
    return models


def _karlo(
    places: Mapping[str, Path],
    found: "Mapping[str, Network]",
    reader: Mapping[str, Any],
    image_size: int | None,
) -> dict[str, Any]:
    """Return the model of each stage, with what it must know of the others."""
    import torch

    from models.request import Request

    if image_size is not None:
        raise CheckpointError(
            f"image_size: a {KARLO} draws at its own size alone, got {image_size}: leave it out"
        )
    settings = _settings_of_karlo(places, found, reader)
    models = {stage: _model(stage, KARLO, found, settings[stage]) for stage in settings}
    with torch.no_grad():
        nothing_LE = models[TEXT].sample(Request(seeds=(0,)))[0]
        models[DRAWS].nothing_LD.copy_(nothing_LE)
        models[""].nothing_LE.copy_(nothing_LE)
        blank_E = models[""].text_proj.learned_classifier_free_guidance_embeddings
        models[DRAWS].blank_E.copy_(blank_E)
    return models


def _settings_of_karlo(
    places: Mapping[str, Path], found: "Mapping[str, Network]", reader: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    from models.parts.spaces import fingerprint

    text, decoder, large = (
        found[name][0] for name in ("text_encoder", "decoder", "super_res_first")
    )
    if (width := text.get("projection_dim", 512)) != (rows := text.get("hidden_size", 512)):
        raise CheckpointError(
            f"text_encoder/config.json: projection_dim must be its hidden_size {rows}, got {width}"
        )
    channels = told(decoder, "decoder/config.json", "in_channels", int)
    low_side = told(decoder, "decoder/config.json", "sample_size", int)
    side = told(large, "super_res_first/config.json", "sample_size", int)
    drawn, low, high = (
        {"scheduler": _scheduler(places[f"{whose}_scheduler"], "UnCLIPScheduler")}
        for whose in ("prior", "decoder", "super_res")
    )
    said = _said(found["text_encoder"], reader)
    blank_E = found["text_proj"][1]["learned_classifier_free_guidance_embeddings"]
    pairs = fingerprint(*found["text_encoder"][1].values(), blank_E)  # CLIP's, as its tower's are
    drawn |= {**said, "embedding": width, "clip": pairs}
    return {
        TEXT: {**said, "reader": _reads(reader)},
        DRAWS: drawn,
        "": {**drawn, **_square(low_side, channels), **DRAWN[KARLO], **low},
        ENLARGES: {**_square(side, channels), "low_size": low_side, **DRAWN[ENLARGES], **high},
    }


def _model(
    stage: str, laid: str, found: "Mapping[str, Network]", settings: Mapping[str, Any]
) -> Any:
    from models import build

    own = {
        name.removeprefix("prior_"): found[name] for name in FOLDERS[laid][stage] if name in found
    }
    networks = {part: config for part, (config, _) in own.items()}
    model = build({"family": FAMILIES[stage], "config": {**settings, "networks": networks}})
    named = {
        f"{part}.{name}": one for part, (_, tensors) in own.items() for name, one in tensors.items()
    }
    model.load_state_dict({**model.state_dict(), **named})
    return model.eval()


def _square(side: int, channels: int) -> dict[str, Any]:
    """Return the sizes of pictures that are denoised as such."""
    return {"image_size": side, "channels": channels, "latent_shape": (channels, side, side)}


def _sizes(unet: Mapping[str, Any], movq: Mapping[str, Any], side: int | None) -> dict[str, Any]:
    """Return the sizes of pictures and latents; diffusers rounds others up, to pictures larger than asked for."""
    scale = 2 ** (len(told(movq, "movq/config.json", "block_out_channels", list)) - 1)
    side = side or told(unet, "unet/config.json", "sample_size", int) * scale
    if side % scale**2:
        raise CheckpointError(f"image_size must be a multiple of {scale**2}, got {side}")
    channels = told(unet, "unet/config.json", "in_channels", int)
    latent = (channels, side // scale, side // scale)
    return {"image_size": side, "channels": movq.get("out_channels", 3), "latent_shape": latent}


def _said(text: "Network", reader: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many rows, of how many numbers, say what is known of a text, and whose these are."""
    from models.parts.spaces import fingerprint

    config, tensors = text
    width = max(config.get("hidden_size", 512), config.get("projection_dim", 512))
    return {"prompt_shape": (reader["length"] + 1, width), "texts": fingerprint(*tensors.values())}


def _reads(reader: Mapping[str, Any]) -> dict[str, Any]:
    return {name: reader[name] for name in ("document", "length")}


def _scheduler(folder: Path, only: str | None = None) -> str:
    """Return a scheduler's config; of a pipeline that steps by one kind `only`, of that."""
    document = document_of(folder / SCHEDULER)
    kind = document.get("_class_name") if isinstance(document, dict) else None
    if only is not None and kind != only:
        raise CheckpointError(f"{folder / SCHEDULER}: _class_name must be {only}, got {kind}")
    return json.dumps(document, sort_keys=True)
