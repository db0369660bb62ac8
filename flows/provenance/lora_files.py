"""LoRA files in diffusers' format: an adapter of a checkpoint written for others, and one of others taken in.

One safetensors file; `PART.LAYER.lora_A.weight` is A, `lora_B.weight` is B, and what is added is B A x times alpha /
rank. Files are written with that share in B already, so that whoever reads them needs no further number.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.context import git_commit, registry
from flows.provenance.checkpoints import CheckpointError, check_weights, publish_unjudged
from flows.recipe import Recipe
from infra.documents import read_json
from infra.pipelines import PinnedStage, is_pipeline, read_pipeline
from infra.storage import seal, sha256_of, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from infra.registry.registry import Version

FAMILY: Final = "diffusers"
KEY: Final = re.compile(
    r"(?P<layer>(unet|transformer)\.[\w.]+?)\.(lora_(?P<side>[AB])|lora\.(?P<way>down|up))\.weight"
)
ALPHA: Final = ".alpha"


def write(ref: str, path: Path) -> tuple["Version", int]:
    """Write an adapter of a checkpoint as one file; returns its version, and how many layers it changes.

    Raises:
        CheckpointError: no adapter, or one of another family; or a file that is there already.
    """
    from safetensors.torch import load_file, save_file

    if path.exists():
        raise CheckpointError(f"{path} is there already: name a file that is not")
    version, directory = _adapter(ref)
    document = read_json(directory / "config.json")
    asked = document["lora"]
    found: dict[str, Tensor] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        layer, _, way = name.partition(".lora.")
        side, share = ("A", 1.0) if way == "down" else ("B", asked["alpha"] / asked["rank"])
        found[f"{layer}.lora_{side}.weight"] = (share * tensor).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, path, metadata={"format": "pt"})
    return version, len(found) // 2


def take_in(path: Path, base: str, name: str) -> "Version":
    """Register a file as an adapter of a checkpoint's pipeline, which it leaves as it is; returns the pipeline.

    Raises:
        CheckpointError: a file or a base that is none, or layers that the base does not have (named).
        IntegrityError: a truncated file.
    """
    import torch
    from safetensors.torch import save_file

    from models import build, describe
    from models.parts import lora

    stage, over = _base(base)
    document = read_json(registry().fetch(stage.pin.ref, digest=stage.sha256) / "config.json")
    tensors = _read(path)
    asked = _asked(path, tensors, stage)
    with torch.device("meta"):
        model = build({**document, "lora": asdict(asked)})
        wanted = {key: tuple(one.shape) for key, one in lora.own(model).items()}
    found = {key: tuple(one.shape) for key, one in tensors.items()}
    if odd := sorted(
        key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)
    ):
        raise CheckpointError(
            f"{path} is no adapter of {base}: {odd[0]} is {found.get(odd[0], 'missing')}, not"
            f" {wanted.get(odd[0], 'there')}"
        )
    with tempfile.TemporaryDirectory(prefix="atelier-") as making:
        directory = Path(making)
        write_json(directory / "config.json", describe(model))
        save_file(tensors, directory / "model.safetensors")
        (directory / "card.md").write_text(
            f"# {name}.{stage.stage}\n\nA LoRA file of others, of rank {asked.rank}, for {asked.base}.\n"
        )
        facts = {"base": asked.base, "base_digest": asked.digest, "git_commit": git_commit()}
        seal(directory, {"kind": "model", "name": f"{name}.{stage.stage}", **facts})
        key = f"lora/{sha256_of(path)}/{asked.digest[:12]}"
        tags = {"atelier.family": FAMILY, "atelier.source": str(path)[:500]}
        version = registry().publish(f"{name}.{stage.stage}", directory, key=key, tags=tags)
    return publish_unjudged(_recipe(name, over, stage, asked.rank), {stage.stage: version})


def _adapter(ref: str) -> tuple["Version", Path]:
    version = registry().get(ref)
    directory = registry().fetch(version)
    if is_pipeline(directory):
        for stage in read_pipeline(directory).stages:
            if stage.adapts and stage.family == FAMILY:
                return version, registry().fetch(stage.pin.ref, digest=stage.sha256)
    elif (
        read_json(directory / "config.json").get("lora")
        and version.tags.get("atelier.family") == FAMILY
    ):
        return version, directory
    raise CheckpointError(f"{version.ref} is no adapter of a checkpoint of diffusers")


def _base(ref: str) -> tuple[PinnedStage, "Version"]:
    version = registry().get(ref)
    directory = registry().fetch(version)
    if is_pipeline(directory):
        for stage in read_pipeline(directory).stages:
            if stage.family == FAMILY and not stage.adapts and not stage.entries:
                return stage, version
    raise CheckpointError(f"{version.ref} is no pipeline of a checkpoint of diffusers")


def _read(path: Path) -> dict[str, "Tensor"]:
    """Return a file's tensors by our names, with alpha / rank in B."""
    from safetensors.torch import load_file

    check_weights(path)
    stored = load_file(path)
    alphas = {
        key.removesuffix(ALPHA): float(one) for key, one in stored.items() if key.endswith(ALPHA)
    }
    found: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        if key.endswith(ALPHA):
            continue
        match = KEY.fullmatch(key)
        if match is None:
            raise CheckpointError(
                f"{path}: {key} is of no layer of what denoises, as diffusers names them"
            )
        down = match["side"] == "A" or match["way"] == "down"
        layer = match["layer"]
        share = 1.0 if down else alphas.get(layer, tensor.shape[1]) / tensor.shape[1]
        found[f"{layer}.lora.{'down' if down else 'up'}"] = (share * tensor.float()).contiguous()
    return found


def _asked(path: Path, tensors: Mapping[str, "Tensor"], stage: PinnedStage) -> Any:
    from models.parts.lora import LoRA
    from models.text_to_image.diffusers_pipeline import Diffusers

    ranks = sorted({len(one) for key, one in tensors.items() if key.endswith(".down")})
    if len(ranks) != 1:
        raise CheckpointError(f"{path} must have one rank, got {ranks}")
    layers = {key.partition(".lora.")[0] for key in tensors}
    targets = tuple(
        one for one in Diffusers.adapts if any(layer.endswith(f".{one}") for layer in layers)
    )
    if odd := sorted(one for one in layers if not one.endswith(targets)):
        raise CheckpointError(f"{path}: {odd[0]} takes no adapter here; attention does")
    return LoRA(
        rank=ranks[0], alpha=ranks[0], targets=targets, base=stage.pin.ref, digest=stage.sha256
    )


def _recipe(name: str, base: "Version", stage: PinnedStage, rank: int) -> Recipe:
    return Recipe.model_validate(
        {
            **{
                "name": name,
                "description": f"A LoRA file over {base.ref}.",
                "data": {"name": "none"},
            },
            "stages": {
                stage.stage: {
                    **{"family": FAMILY, "options": stage.options},
                    "training": {"steps": 1, "lora": {"base": base.ref, "rank": rank}},
                }
            },
        }
    )
