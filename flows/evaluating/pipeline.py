"""A pipeline version: which stage versions it pins, whether they fit, and what it can be asked for."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from infra.documents import read_json
from infra.pipelines import SAMPLING, Ability, Accepts, Gives, PinnedStage, Tokenizer
from infra.storage import verify

if TYPE_CHECKING:
    from torch import Tensor

    from models.family import Family, Request

ADDED: Final = ("modality", "sample_rate", "tokenizer")
"""Fields of `Accepts` and `Gives` that came with sound and text: at their defaults they are in no interface's hash."""
SILENCE: Final = {"image": 0, "audio": 0, "text": -1}
"""What follows a sample that ended before others of its batch."""


class StageMismatch(ValueError):
    """Two stages of a pipeline do not fit; the message names both sides."""


def interface(config: dict[str, Any]) -> tuple[Accepts, Gives]:
    """Return what a model with this config.json accepts and gives."""
    return interface_of(_fresh(config))


def interface_of(model: "Family") -> tuple[Accepts, Gives]:
    """Return what a model accepts and gives; its weights are not looked at."""
    able, settings = model.capabilities, model.config
    if able.modality == "audio":
        given = Gives(modality="audio", sample_rate=settings.sample_rate)
        return Accepts(prompt=able.condition), given
    if able.modality == "text":
        digest = hashlib.sha256(settings.tokenizer.encode()).hexdigest()[:16]
        return Accepts(prompt=able.condition), Gives(modality="text", tokenizer=digest)
    size, channels = settings.image_size, settings.channels
    low = settings.low_size if able.upscales else None
    return (
        Accepts(prompt=able.condition, picture=(channels, low, low) if low else None),
        Gives(picture=(channels, size, size)),
    )


def facts_of_tokenizer(config: dict[str, Any]) -> Tokenizer:
    """Return which tokenizer a model of text with this config.json reads by."""
    from models.parts.tokens import tokenizer

    return Tokenizer.model_validate(tokenizer(_fresh(config).config.tokenizer).facts)


def abilities(config: dict[str, Any]) -> tuple[Ability, ...]:
    """Return what a pipeline whose last stage has this config.json can be asked for."""
    model = _fresh(config)
    able = model.capabilities
    found: list[tuple[Ability, bool]] = [
        ("images", able.modality == "image"),
        ("speech", able.modality == "audio" and able.condition == "text"),
        ("completions", able.modality == "text" and able.condition == "text"),
        ("chat", able.chats),
        ("embeddings", able.embeds),
        ("scores", able.likelihood),
        ("samples", able.modality != "text" or able.condition == "none" or able.unprompted),
    ]
    return tuple(name for name, has in found if has)


def _fresh(config: dict[str, Any]) -> "Family":
    from models import build
    from models.family import Family

    model = build(config)
    assert isinstance(model, Family)
    return model.eval()


def interface_hash(config: dict[str, Any]) -> str:
    """Return the hash of all that a stage's neighbours rely on: what comes in and goes out, prompts, and vocabulary."""
    accepts, gives = interface(config)
    document = {
        "accepts": _hashed(accepts),
        "gives": _hashed(gives),
        "vocabulary": config["config"].get("vocabulary"),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hashed(side: Accepts | Gives) -> dict[str, Any]:
    defaults = {name: field.default for name, field in type(side).model_fields.items()}
    document = side.model_dump(mode="json")
    return {
        name: value
        for name, value in document.items()
        if name not in ADDED or value != defaults[name]
    }


def check_interfaces(stages: Sequence[tuple[PinnedStage, Path]]) -> None:
    """Check that each pinned stage, fetched to a folder, still has the interface that it was pinned with.

    Raises:
        StageMismatch: the first one that has another.
    """
    for stage, folder in stages:
        found = interface_hash(read_json(folder / "config.json"))
        if stage.interface is not None and stage.interface != found:
            raise StageMismatch(
                f"{stage.name}:{stage.version} has interface {found}, but the pipeline pins "
                f"{stage.interface} as its {stage.stage}: judge the pipeline anew"
            )


def check_fit(stages: Sequence[PinnedStage]) -> None:
    """Check that each stage takes what the one before it gives.

    Raises:
        StageMismatch: the first pair that does not fit.
    """
    check_chain([(f"{stage.name}:{stage.version}", stage.accepts, stage.gives) for stage in stages])


def check_chain(stages: Sequence[tuple[str, Accepts, Gives]]) -> None:
    """As `check_fit`, of stages by what an error calls them."""
    name, first, _ = stages[0]
    if _taken(first) is not None:
        what = "upscales a picture" if first.picture else f"takes {_says(first)}"
        raise StageMismatch(f"{name} {what}: no stage stands before it")
    for (left, _, given), (right, accepted, _) in itertools.pairwise(stages):
        if _taken(accepted) != _taken(given):
            raise StageMismatch(f"{left} gives {_says(given)}, but {right} takes {_says(accepted)}")


def _taken(side: Accepts | Gives) -> tuple[str, Any] | None:
    """Return what passes from one stage to the next."""
    for kind in ("picture", "sample_rate", "tokenizer"):
        if (value := getattr(side, kind)) is not None:
            return kind, value
    return None


def _says(side: Accepts | Gives) -> str:
    if side.picture is not None:
        channels, height, width = side.picture
        return f"{width}x{height} pictures of {channels} channels"
    if side.sample_rate is not None:
        return f"sound of {side.sample_rate} Hz"
    if side.tokenizer is not None:
        return f"text by tokenizer {side.tokenizer}"
    return "no picture, sound or text of another stage"


def load_model(directory: Path) -> "Family":
    """Return the network of a fetched model version, in evaluation mode, after verifying its bytes."""
    from safetensors.torch import load_file

    from models import build
    from models.family import Family

    verify(directory)
    model = build(read_json(directory / "config.json"))
    model.load_state_dict(load_file(directory / "model.safetensors"))
    assert isinstance(model, Family)
    return model.eval()


def draw(
    models: Sequence["Family"],
    stages: Sequence[PinnedStage],
    prompts: Sequence[str],
    seeds: Sequence[int],
    rows_at_once: int = 64,
) -> "Tensor":
    """Return what the pipeline makes, a row a seed, as `Family.sample` does: pictures, sound or tokens.

    Each stage upscales what the one before it drew. Sound and text that end early are silent to the longest one's end.
    """
    import torch

    drawn = []
    for start in range(0, len(seeds), rows_at_once):
        part = slice(start, start + rows_at_once)
        made: Tensor | None = None
        for model, stage in zip(models, stages, strict=True):
            with torch.no_grad():
                made = model.sample(asked(model, stage, prompts[part], seeds[part], made)).cpu()
        assert made is not None
        drawn.append(made)
    return joined(drawn, SILENCE[stages[-1].gives.modality])


def asked(
    model: "Family",
    stage: PinnedStage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    low_BCHW: "Tensor | None" = None,
) -> "Request":
    """Return what a stage is asked for, sampled as it is pinned; who chats is asked by dialogues of one turn."""
    from models.family import Request

    reads = prompts if stage.accepts.prompt == "text" else ()
    chats = model.capabilities.chats
    return Request(
        seeds=tuple(seeds),
        prompts=() if chats else tuple(reads),
        dialogues=tuple((("user", one),) for one in reads) if chats else (),
        given={} if low_BCHW is None else {"low": low_BCHW},
        **{name: getattr(stage, name) for name in SAMPLING},
    )


def joined(parts: Sequence["Tensor"], silence: float) -> "Tensor":
    """Return rows of several batches as one, (N, ...); shorter rows are silent at the end."""
    import torch
    from torch.nn import functional as F

    longest = max(part.shape[-1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[-1]), value=silence) for part in parts])
