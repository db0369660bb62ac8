"""Kandinsky 2.2 of diffusers as five stages: CLIP's two towers, the prior between them, what denoises, and its MoVQ.

A pipeline of diffusers that has all of it in one folder, or a decoder's folder and a prior's, as their authors publish
them. A text is read, an embedding drawn for it, and latents for that; a picture is embedded and drawn anew. What
guidance leads away from is the embedding of a blank picture, which the prior and the picture tower keep.
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
TEXT, DRAWS, IMAGE, AUTOENCODER = "text", "prior", "image", "autoencoder"
FAMILIES: Final = {
    **dict.fromkeys((TEXT, DRAWS, IMAGE), "diffusers-prior"),
    **dict.fromkeys(("", AUTOENCODER), "diffusers-decoder"),
}
"""Which of ours each stage is; "" is what denoises."""
FOLDERS: Final = {
    TEXT: ("prior_text_encoder", "prior_tokenizer"),
    DRAWS: ("prior_prior", "prior_scheduler"),
    IMAGE: ("prior_image_encoder", "prior_image_processor"),
    "": ("unet", "scheduler"),
    AUTOENCODER: ("movq",),
}
"""What each stage is made of, as the pipeline in one folder calls it."""
PROCESSOR: Final = "preprocessor_config.json"
DRAWN: Final = {"steps": 100, "guidance": 4.0}  # as diffusers' pipeline does where nobody says
NEEDS: Final = {
    DRAWS: {"embedding": f"{IMAGE}/embed", "text_embedding": f"{TEXT}/read"},
    "": {"latent": f"{AUTOENCODER}/encode", "embedding": f"{IMAGE}/embed"},
}
"""What the two stages that learn learn from."""


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
    places, tokenizer = _places(folder, prior)
    found = {part: network_in(places[part], of) for part, of in UNCLIPS[WHOLE].items()}
    models = _models(places, found, reader_in(*tokenizer), image_size)
    whole = Checkpoint(
        document={},
        tensors={},
        source=source,
        licence=licence_of(folder),
        left_out=(),
        files=files,
        kind=DECODER,
        tried=TRIED,
    )
    parts = {
        stage: dataclasses.replace(
            whole,
            document=describe(model),
            tensors=detached(model.state_dict()),
            own=tuple(name for name in files if name.partition("/")[0] in FOLDERS[stage]),
        )
        for stage, model in models.items()
    }
    return dataclasses.replace(parts.pop(""), beside=parts)


def wired(stage: str) -> dict[str, dict[str, dict[str, str]]]:
    """Return how the stages are wired at each entrance, `stage` what denoises."""
    read, away, other = (f"{TEXT}/read{one}" for one in ("", "#negative", "#other"))
    drawn = {"text_embedding": f"{read}.text_embedding"}
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
) -> tuple[dict[str, Path], tuple[Path, dict[str, Any], str]]:
    """Return where each part lies, as the pipeline in one folder calls it, and where the tokenizer is found."""
    index = document_of(folder / INDEX)
    kind, _ = kind_of(folder, index)
    if kind == PRIOR:
        raise CheckpointError(
            f"{folder} is a prior alone, which draws no picture: give its decoder's folder, and this one by --prior"
        )
    if kind == WHOLE and prior is not None:
        raise CheckpointError(f"{folder} has a prior of its own: leave --prior out")
    if kind == DECODER and prior is None:
        raise CheckpointError(
            f"{folder} has no prior, which draws embeddings of texts: give --prior"
        )
    places = {name: folder / name for folders in FOLDERS.values() for name in folders}
    if prior is None:
        return places, (folder, index, "prior_tokenizer")
    theirs = document_of(prior / INDEX)
    if kind_of(prior, theirs)[0] != PRIOR:
        raise CheckpointError(f"{prior} is no {PRIOR}, which --prior wants")
    own = {name: name.removeprefix("prior_") for name in places if name.startswith("prior_")}
    return places | {name: prior / part for name, part in own.items()}, (prior, theirs, "tokenizer")


def _models(
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
    said = {
        "prompt_shape": _known(found["prior_text_encoder"][0], reader["length"]),
        "texts": fingerprint(*found["prior_text_encoder"][1].values()),
    }
    shown = {
        "embedding": seen.get("projection_dim", 512),
        "clip": fingerprint(*pictures.values(), *map(torch.tensor, pixels.values())),
    }
    reads = {name: reader[name] for name in ("document", "length")}
    square = {name: size[name] for name in ("image_size", "channels")}
    settings: dict[str, dict[str, Any]] = {
        TEXT: {**said, "reader": reads},
        DRAWS: {**said, **shown, "scheduler": _scheduler(places["prior_scheduler"])},
        IMAGE: {**shown, **square, **pixels},
        "": {**latent, **shown, **DRAWN, "scheduler": _scheduler(places["scheduler"])},
        AUTOENCODER: latent,
    }
    models = {stage: _model(stage, found[FOLDERS[stage][0]], settings[stage]) for stage in FOLDERS}
    with torch.no_grad():
        tower = models[IMAGE].image_encoder
        side = tower.config.image_size
        blank_E = tower(torch.zeros(1, 3, side, side)).image_embeds[0]
        models[DRAWS].nothing_LD.copy_(models[TEXT].sample(Request(seeds=(0,)))[0])
        for stage in (DRAWS, IMAGE):
            models[stage].blank_E.copy_(blank_E)
    return models


def _model(stage: str, network: "Network", settings: Mapping[str, Any]) -> Any:
    from models import build

    part = FOLDERS[stage][0].removeprefix("prior_")
    config, tensors = network
    document = {"family": FAMILIES[stage], "config": {**settings, "networks": {part: config}}}
    model = build(document)
    named = {f"{part}.{name}": one for name, one in tensors.items()}
    model.load_state_dict({**model.state_dict(), **named})
    return model.eval()


def _sizes(unet: Mapping[str, Any], movq: Mapping[str, Any], side: int | None) -> dict[str, Any]:
    """Return the sizes of pictures and latents; diffusers rounds others up, to pictures larger than asked for."""
    scale = 2 ** (len(told(movq, "movq/config.json", "block_out_channels", list)) - 1)
    side = side or told(unet, "unet/config.json", "sample_size", int) * scale
    if side % scale**2:
        raise CheckpointError(f"image_size must be a multiple of {scale**2}, got {side}")
    channels = told(unet, "unet/config.json", "in_channels", int)
    latent = (channels, side // scale, side // scale)
    return {"image_size": side, "channels": movq.get("out_channels", 3), "latent_shape": latent}


def _known(text: Mapping[str, Any], length: int) -> tuple[int, int]:
    """Return how many rows, of how many numbers, say what is known of a text."""
    return length + 1, max(text.get("hidden_size", 512), text.get("projection_dim", 512))


def _scheduler(folder: Path) -> str:
    return json.dumps(document_of(folder / "scheduler_config.json"), sort_keys=True)
