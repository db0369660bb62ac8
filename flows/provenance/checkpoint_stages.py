"""A checkpoint of diffusers as three stages: its text encoders, what denoises, and its autoencoder.

Each is a version of its own, named by its part's files and by what its numbers mean to the others: a checkpoint with
another decoder of pictures shares the other two. Prompts are read once for whoever draws them, and each stage stands in
the pool that suits it.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from flows.provenance import unclip_checkpoints
from flows.provenance.checkpoints import Checkpoint, CheckpointError
from models.text_to_image.checkpoint_parts import DENOISERS, PICTURES, part_of

if TYPE_CHECKING:
    from torch import Tensor

TEXT: Final = "text"
AUTOENCODER: Final = "autoencoder"
NEEDS: Final = {"latent": f"{AUTOENCODER}/encode", "embedding": f"{TEXT}/read"}
"""What the stage that denoises learns from."""
KEPT: Final = {
    "text": ("pipeline", "prompt_shape", "texts"),
    "autoencoder": ("pipeline", "image_size", "channels", "latent_shape", "autoencoder"),
}
"""The settings of a part, beside its networks; what denoises has all."""


def parted(found: Checkpoint, stage: str) -> dict[str, Checkpoint]:
    """Return a checkpoint's parts by the stage that each becomes, `stage` what denoises; of clips or texts it whole.

    Raises:
        CheckpointError: another of the parts is called so.
    """
    divided = found.document["config"].get("pipeline") in PICTURES
    if stage in (found.beside or ({TEXT, AUTOENCODER} if divided else ())):
        raise CheckpointError(f"{stage} is what another part of it is called: rename the stage")
    if not divided:
        return {**found.beside, stage: found}
    shared, nothing_TD = _shared(found)
    names = {TEXT: "text", stage: "denoiser", AUTOENCODER: "autoencoder"}
    parts = {}
    for called, part in names.items():
        config, tensors = _part({**found.document["config"], **shared}, part, found.tensors)
        if part == "denoiser":
            tensors["nothing_TD"] = nothing_TD
        document = {**found.document, "config": config}
        own = tuple(name for name in found.files if _is_of(name, part))
        parts[called] = dataclasses.replace(found, document=document, tensors=tensors, own=own)
    return parts


def wired(
    stage: str, parts: Mapping[str, Checkpoint]
) -> dict[str, dict[str, dict[str, str]]] | None:
    """Return how the parts of a checkpoint are wired at each entrance; None of one that is whole."""
    if len(parts) == 1:
        return None
    if parts[stage].beside:
        return unclip_checkpoints.wired(stage, parts[stage].kind)
    from models.text_to_image.checkpoint_denoisers import tells

    away = f"{TEXT}/read#negative"
    reads = {f"{TEXT}/read": {"text": "request.text"}}
    draws = {"embedding": f"{TEXT}/read.embedding"}
    if not tells(parts[stage].document["config"]["networks"]):
        reads[away] = {"text": "request.negative"}
        draws["without"] = f"{away}.embedding"
    decodes = {f"{AUTOENCODER}/decode": {"latent": f"{stage}.latent"}}
    return {"generate": {**reads, stage: draws, **decodes}}


def learned(stage: str, parts: Mapping[str, Checkpoint]) -> dict[str, dict[str, str]]:
    """Return what the parts of a checkpoint that learn would learn from."""
    if len(parts) == 1:
        return {}
    if parts[stage].beside:
        needs = unclip_checkpoints.NEEDS.get(parts[stage].kind, {})
        return {name or stage: dict(one) for name, one in needs.items()}
    return {stage: dict(NEEDS)}


def _part(
    whole: Mapping[str, Any], part: str, tensors: "Mapping[str, Tensor]"
) -> tuple[dict[str, Any], "dict[str, Tensor]"]:
    """Return the config and the weights of one part, nothing in it that is another's alone."""
    networks = {name: one for name, one in whole["networks"].items() if part_of(name) == part}
    readers = whole["readers"] if part == "text" else {}
    kept = whole if part == "denoiser" else {name: whole[name] for name in KEPT[part]}
    weights = {name: one for name, one in tensors.items() if name.partition(".")[0] in networks}
    return {**kept, "networks": networks, "readers": readers}, weights


def _shared(found: Checkpoint) -> "tuple[dict[str, Any], Tensor]":
    """Return what all parts know of one another, and what is known of no text (T, D)."""
    import torch

    from models import build
    from models.parts.spaces import fingerprint

    model: Any = build(found.document)
    model.load_state_dict(dict(found.tensors), assign=True)
    with torch.no_grad():
        nothing_TD = model.eval().embedded(model.encode([""]))[0]
    if model.config.zeros_unprompted:
        nothing_TD = torch.zeros_like(nothing_TD)
    texts = [one for name, one in found.tensors.items() if part_of(name) == "text"]
    encodes = [
        one
        for name, one in sorted(found.tensors.items())
        if name.startswith(("vae.encoder.", "vae.quant_conv."))
    ]
    shared = {
        "latent_shape": model._shape(),
        "prompt_shape": tuple(nothing_TD.shape),
        "texts": fingerprint(*texts),
        "autoencoder": fingerprint(*encodes, torch.tensor(model._scale())),
    }
    return shared, nothing_TD.clone()


def _is_of(file: str, part: str) -> bool:
    """Return whether a part is made of a file of the checkpoint."""
    folder, _, rest = file.partition("/")
    if folder in {"scheduler", *DENOISERS}:
        return part == "denoiser"
    if folder == "vae":
        return part == "autoencoder"
    return bool(rest) and part == "text" and folder.startswith(("text_encoder", "tokenizer"))
