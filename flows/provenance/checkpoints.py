"""A diffusers checkpoint of others as a version of ours: read whole and checked before anything is published.

Nothing of it runs. Weights are safetensors; classes are looked up in our own table, by the pipeline's kind; a file of
Python, a class from elsewhere and a pickle are refused by name. Configs, tokenizers and the scheduler become one
config.json of family `diffusers`, and the weights one model.safetensors in fp32.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.context import git_commit, named, registry
from flows.provenance.cards import checkpoint_card
from flows.recipe import Recipe
from infra.documents import DocumentError, parse_yaml, read_json
from infra.storage import IntegrityError, seal, sha256_of, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from infra.registry.registry import Version

INDEX: Final = "model_index.json"
SOURCE: Final = (
    "checkpoint.json"  # of the version: where it came from, and the sha256 of every file
)
PICKLES: Final = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".joblib", ".npy"})
CODE: Final = frozenset({".py", ".pyc", ".so", ".pyd", ".dll", ".ipynb", ".sh"})
WEIGHTS: Final = ".safetensors"
LIBRARIES: Final = frozenset({"diffusers", "transformers", "stable_diffusion", "unclip"})
UNUSED: Final = ("safety_checker", "feature_extractor", "image_encoder", "motion_adapter")
"""Parts of a pipeline that nothing is drawn by; the U-Net has the motion adapter's layers itself."""
READ: Final = (
    *("tokenizer", "scheduler", "image_processor"),
    *("prior_tokenizer", "prior_scheduler", "prior_image_processor"),
    *("decoder_scheduler", "super_res_scheduler"),
)
UNLIKE: Final = ("expand_timesteps", "boundary_ratio")
"""Settings of an index that have a pipeline draw in another way than is done here."""
SIDES: Final = {"WanPipeline": 480, "FluxPipeline": 1024}  # pixels: their transformers name no size
TOKENIZERS: Final = {
    **dict.fromkeys(("CLIPTokenizer", "CLIPTokenizerFast"), "CLIPTokenizer"),
    **dict.fromkeys(("T5Tokenizer", "T5TokenizerFast"), "T5Tokenizer"),
}
DROPPED: Final = (
    *("architectures", "torch_dtype", "dtype", "transformers_version", "use_cache"),
    *("_name_or_path", "task_specific_params"),
)
"""Of transformers' config.json, what says nothing of how a network reads and writes."""
REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
DRAWN: Final[Mapping[str, Mapping[str, float]]] = {
    "StableDiffusionPipeline": {"steps": 50, "guidance": 7.5},
    "StableDiffusionXLPipeline": {"steps": 50, "guidance": 5.0},
    "StableDiffusion3Pipeline": {"steps": 28, "guidance": 7.0},
    "FluxPipeline": {"steps": 28, "guidance": 3.5},
    "AnimateDiffPipeline": {"steps": 50, "guidance": 7.5, "frames": 16, "frame_rate": 8.0},
    "WanPipeline": {"steps": 50, "guidance": 5.0, "frames": 81, "frame_rate": 16.0},
}
"""How each kind of pipeline draws in diffusers where nobody says."""
TRIED: Final = ("a red apple on a wooden table", "a small house by the sea", "a cat in the snow")
WANTED: Final = ("*.json", "*.safetensors", "*.txt", "spm_char.model", "README.md", "LICENSE*")


class CheckpointError(ValueError):
    """A folder that is no checkpoint which can be taken in; one line that names the file."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was read of a checkpoint."""

    document: dict[str, Any]  # as `models.describe` gives it
    tensors: "Mapping[str, Tensor]"
    source: str
    licence: str
    left_out: tuple[str, ...]  # parts that are not used
    files: dict[str, dict[str, Any]]  # every file's bytes and sha256
    kind: str  # what it is called where it came from
    tried: tuple[str, ...] = ()  # prompts to try it on
    own: tuple[str, ...] | None = None  # the files that it is made of; None: all
    beside: "Mapping[str, Checkpoint]" = field(default_factory=dict)
    """Further stages that are made of it."""

    @property
    def family(self) -> str:
        """Which of ours it is."""
        return str(self.document["family"])


def downloaded(repository: str) -> tuple[Path, str]:
    """Return the folder of a repository of the Hugging Face hub, fetched without pickles and code, and its revision.

    Raises:
        CheckpointError: the hub does not answer or has no such repository.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if not REPOSITORY.fullmatch(repository):
        raise CheckpointError(f"{repository!r} is no repository of the hub, like OWNER/NAME")
    try:
        found = Path(snapshot_download(repository, allow_patterns=list(WANTED)))
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise CheckpointError(f"{repository} cannot be fetched: {_line(error)}") from None
    return found, f"{repository}@{found.name}"


def read(folder: Path, source: str, image_size: int | None = None) -> Checkpoint:
    """Return a checkpoint's config and weights, after checking every file of it.

    It draws at `image_size` pixels a side, or at its own size.

    Raises:
        CheckpointError: a pickle, code, a class that is not the pipeline's own, or a part that is missing or unknown.
        IntegrityError: a file of weights that is truncated or no safetensors.
        ValueError: a config that the family refuses.
    """
    from models import build, describe
    from models.text_to_image.checkpoint_parts import CLIPS

    files = files_of(folder, INDEX)
    index = document_of(folder / INDEX)
    kind, needs = kind_of(folder, index)
    networks: dict[str, Any] = {}
    readers: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for part in needs:
        config, weights = network_in(folder / part, needs[part])
        networks[part] = config
        tensors |= {f"{part}.{name}": tensor for name, tensor in weights.items()}
        if part.startswith("text_encoder"):
            readers[part] = reader_in(folder, index, part.replace("text_encoder", "tokenizer"))
    config = {
        "pipeline": kind,
        "networks": networks,
        "readers": readers,
        "scheduler": _scheduler(folder / "scheduler" / "scheduler_config.json", kind),
        "zeros_unprompted": kind.endswith("XLPipeline")
        and bool(index.get("force_zeros_for_empty_prompt", True)),
        "image_size": image_size or _side(networks, kind),
        "channels": networks["vae"].get("out_channels", 3),
        **_drawn(kind, networks),
    }
    family = "diffusers-clips" if kind in CLIPS else "diffusers"
    model = build({"family": family, "config": config})
    return Checkpoint(
        document=describe(model),
        tensors=tensors,
        source=source,
        licence=licence_of(folder),
        left_out=tuple(name for name in UNUSED if (index.get(name) or [None])[0]),
        files=files,
        kind=kind,
        tried=TRIED,
    )


def _drawn(kind: str, networks: Mapping[str, Any]) -> Mapping[str, float]:
    """Return how it draws where nobody says; a Flux that is told no guidance was distilled to few steps."""
    from models.text_to_image.checkpoint_denoisers import tells

    if kind == "FluxPipeline" and not tells(networks):
        return {"steps": 4, "guidance": 1.0}
    return DRAWN[kind]


def publish(found: Checkpoint, name: str, stage: str) -> "Version":
    """Register a checkpoint, or a part of one, as a stage's version; the same files again are the same version."""
    from safetensors.torch import save_file

    own = {
        name: found.files[name] for name in found.files if found.own is None or name in found.own
    }
    listed = json.dumps([own, found.document], sort_keys=True)
    key = f"checkpoint/{hashlib.sha256(listed.encode()).hexdigest()}"
    known = registry().find(f"{name}.{stage}", key)
    if known is not None:
        return known
    with tempfile.TemporaryDirectory(prefix="atelier-") as making:
        directory = Path(making)
        write_json(directory / "config.json", found.document)
        save_file(dict(found.tensors), directory / "model.safetensors")
        origin = {"source": found.source, "licence": found.licence, "left_out": found.left_out}
        write_json(directory / SOURCE, {**origin, "files": found.files})
        card = checkpoint_card(
            f"{name}.{stage}", kind=found.kind, source=found.source, licence=found.licence,
            files=len(own), left_out=found.left_out,
        )  # fmt: skip
        (directory / "card.md").write_text(card)
        seal(directory, {"kind": "model", "name": f"{name}.{stage}", "git_commit": git_commit()})
        tags = {"atelier.family": found.family, "atelier.source": found.source[:500]}
        return registry().publish(f"{name}.{stage}", directory, key=key, tags=tags)


def publish_unjudged(recipe: Recipe, versions: "Mapping[str, Version]") -> "Version":
    """Register the pipeline of these stages as it is: it can be drawn with, and promoted only by force."""
    from flows.evaluating.gate import Evaluation, check
    from flows.evaluation import pin
    from flows.provenance.cards import pipeline_card

    key = "/".join(["unjudged", *(one.digest[:32] for one in versions.values())])
    if known := registry().find(recipe.name, key):
        return known
    pipeline = pin(recipe, {stage: named(one) for stage, one in versions.items()}, {})
    evaluation = Evaluation(evaluation_set="none", judge=None, metrics={}, outcomes={})
    report = check(recipe.gate, evaluation, production=None)
    with tempfile.TemporaryDirectory(prefix="atelier-") as making:
        texts = {
            "pipeline.json": pipeline.model_dump_json(indent=1),
            "recipe.json": recipe.model_dump_json(indent=1),
            "evaluation.json": evaluation.model_dump_json(),
            "report.json": report.model_dump_json(indent=1),
            "card.md": pipeline_card(recipe, pipeline, "none", evaluation, report),
        }
        for name, text in texts.items():
            (Path(making) / name).write_text(text)
        seal(Path(making), {"kind": "pipeline", "name": recipe.name, "git_commit": git_commit()})
        stages = " ".join(one.ref for one in versions.values())
        tags = {"atelier.stages": stages, "atelier.gate": "failed"}
        return registry().publish(recipe.name, Path(making), key=key, tags=tags)


def files_of(folder: Path, index: str) -> dict[str, dict[str, Any]]:
    """Return every file with its size and sha256, after refusing what could run and what is cut off."""
    if not (folder / index).is_file():
        raise CheckpointError(
            f"{folder} has no {index}: it is no checkpoint of diffusers, nor, without a config.json,"
            " one of transformers"
        )
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, suffix = path.relative_to(folder).as_posix(), path.suffix.lower()
        if suffix in PICKLES:
            raise CheckpointError(
                f"{path} is a pickle, which can run code when it is read: refused; take it away, or"
                " save the checkpoint with safe_serialization=True"
            )
        if suffix in CODE:
            raise CheckpointError(f"{path} is code, which is never run: refused")
        if suffix == ".json" and (odd := _remote(document_of(path))):
            raise CheckpointError(f"{path} asks for {odd}, code of its own: refused")
        if suffix == WEIGHTS:
            check_weights(path)
        found[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    return found


def _remote(document: Any) -> str | None:
    """Return what in a config names code that comes with it."""
    if not isinstance(document, dict):
        return None
    for setting in ("auto_map", "custom_pipelines", "_custom_pipeline"):
        if document.get(setting):
            return setting
    return None


def check_weights(path: Path) -> None:
    """Refuse a file that is truncated, or no safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except SafetensorError as error:
        raise IntegrityError(f"{path} is truncated or no safetensors: {_line(error)}") from None


def document_of(path: Path) -> Any:
    """Return a JSON file's content, or refuse it in a line."""
    try:
        return read_json(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except DocumentError as error:
        raise CheckpointError(str(error)) from None


def told(document: Any, file: str, name: str, kind: type[int] | type[list[Any]]) -> Any:
    """Return what a config says, or refuse its file in a line where it says nothing of that kind."""
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, kind):
        what = "one number" if kind is int else "a list"
        raise CheckpointError(f"{file}: {name} must be {what}, got {found}")
    return found


def kind_of(folder: Path, index: Any) -> tuple[str, Mapping[str, str]]:
    """Return which pipeline it is, and its networks' classes by part, after comparing the index with them."""
    from models.text_to_image.checkpoint_parts import NEEDS, OPTIONAL

    kind = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(kind, str) or kind not in NEEDS:
        told: dict[type, str] = {list: "a pipeline of its own", str: f"a {kind}"}
        what = told.get(type(kind), "no JSON object with a _class_name")
        raise CheckpointError(f"{folder / INDEX} is {what}; taken are {', '.join(NEEDS)}")
    for part, pair in index.items():
        if part.startswith("_") or not isinstance(pair, list) or pair == [None, None]:
            continue
        library, wanted = pair[0], NEEDS[kind].get(part)
        if library not in LIBRARIES:
            raise CheckpointError(
                f"{folder / INDEX} takes {part} from {library!r}, code of its own: refused"
            )
        if wanted is not None and pair[1] != wanted:
            raise CheckpointError(f"{folder / INDEX}: {part} is a {pair[1]}, not a {wanted}")
        if wanted is None and part not in UNUSED and not part.startswith(READ):
            raise CheckpointError(
                f"{folder / INDEX} has {part}, a {pair[1]}, which no {kind} here draws with: refused"
            )
    if odd := [name for name in UNLIKE if index.get(name)]:
        raise CheckpointError(f"{folder / INDEX}: {odd[0]} is {index[odd[0]]}: no such {kind} here")
    there = {part: of for part, of in NEEDS[kind].items() if (index.get(part) or [None])[0]}
    if missing := sorted(NEEDS[kind].keys() - there.keys() - OPTIONAL):
        raise CheckpointError(f"{folder / INDEX} has no {missing[0]}, which a {kind} needs")
    return kind, there


def network_in(folder: Path, kind: str) -> tuple[dict[str, Any], "Mapping[str, Tensor]"]:
    """Return a network's config and weights, by the names that its class has now."""
    from flows.training.checkpoints import detached
    from models.text_to_image.checkpoint_parts import LIBRARIES as HOMES

    config = document_of(folder / "config.json")
    stems = sorted(path.name for path in folder.glob(f"*{WEIGHTS}"))
    if not stems:
        raise CheckpointError(f"{folder} has no weights as {WEIGHTS}")
    network = loaded(folder, kind, HOMES[kind], variant=_variant(stems))
    held = detached(network.state_dict())
    return {name: value for name, value in config.items() if not name.startswith("_")}, held


def loaded(folder: Path, kind: str, home: str, *, variant: str | None) -> Any:
    """Return the network of a folder in fp32, of a class of diffusers' or transformers'.

    Raises:
        CheckpointError: the files are no such network, or not all of one.
    """
    from importlib import import_module

    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    cls = getattr(import_module(home), kind)
    try:
        network, report = cls.from_pretrained(
            folder,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{"dtype" if home == "transformers" else "torch_dtype": torch.float32},
        )
    except (OSError, ValueError, RuntimeError, TypeError, LookupError) as error:
        raise CheckpointError(f"{folder} is no {kind}: {_line(error)}") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if odd := sorted(map(str, report[what])):
            raise CheckpointError(f"{folder}: its weights are not its network's: {what} {odd[0]}")
    return network


def network_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a network, of transformers' config.json."""
    return {name: value for name, value in asked.items() if name not in DROPPED}


def _variant(names: list[str]) -> str | None:
    """Return which of the weights are read: the plain ones, else a variant like "fp16"."""
    variants = {name.split(".")[1] for name in names if name.count(".") == 2}
    plain = any(name.count(".") == 1 for name in names)
    return None if plain or not variants else min(variants)


def reader_in(folder: Path, index: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return a tokenizer as one JSON document, with the length of its prompts and what pads them."""
    import transformers

    pair = index.get(part) or [None, None]
    if pair[1] not in TOKENIZERS:
        known = ", ".join(sorted(TOKENIZERS))
        raise CheckpointError(f"{folder / INDEX}: {part} is a {pair[1]}; taken are {known}")
    try:
        cls = getattr(transformers, TOKENIZERS[pair[1]])
        found = cls.from_pretrained(folder / part, local_files_only=True)
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise CheckpointError(f"{folder / part} is no {pair[1]}: {_line(error)}") from None
    return {
        "document": found.backend_tokenizer.to_str(),
        "length": _longest(index, cls) or int(found.model_max_length),
        "pad": int(found.pad_token_id),
    }


def _longest(index: Mapping[str, Any], cls: type) -> int | None:
    """Return how many tokens a pipeline reads of a prompt, where its tokenizer does not say."""
    from models.text_to_image.checkpoint_parts import CLIPS, LONGEST

    if cls.__name__ != "T5Tokenizer":
        return None
    return 2 * LONGEST if index["_class_name"] in {"FluxPipeline", *CLIPS} else LONGEST


def _scheduler(path: Path, kind: str) -> str:
    """Return scheduler_config.json as the pipeline takes it: Stable Diffusion's corrects two old settings."""
    document = document_of(path)
    if kind == "StableDiffusionPipeline":
        corrected = {"steps_offset": 1, "clip_sample": False}
        document |= {name: value for name, value in corrected.items() if name in document}
    return json.dumps(document, sort_keys=True)


def _side(networks: Mapping[str, Any], kind: str) -> int:
    """Return the pixels a side that the pipeline draws where nobody says."""
    if kind in SIDES:
        return SIDES[kind]
    part = "unet" if "unet" in networks else "transformer"
    size = told(networks[part], f"{part}/config.json", "sample_size", int)
    blocks = told(networks["vae"], "vae/config.json", "block_out_channels", list)
    return int(size * 2 ** (len(blocks) - 1))


def licence_of(folder: Path) -> str:
    """Return the licence that the model card names, or that there is a file of one."""
    readme = folder / "README.md"
    if readme.is_file():
        parts = readme.read_text(errors="replace").split("---")
        if len(parts) > 2 and not parts[0].strip():
            try:
                head = parse_yaml(parts[1].encode(), str(readme))
            except DocumentError:
                head = None
            if isinstance(head, dict) and head.get("license"):
                name = head.get("license_name") if head["license"] == "other" else None
                return str(name or head["license"])[:100]
    files = sorted(path.name for path in folder.glob("LICENSE*"))
    return f"as its {files[0]} says" if files else "not stated"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
