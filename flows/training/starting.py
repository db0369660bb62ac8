"""Starting from a registered version's weights (`spec.base`): what stays as it was learned, and whether the rest fits.

The words that the base knows keep their places, new ones stand behind them; text is cut by the base's tokenizer, and
a checkpoint of others keeps its networks. All else is as the recipe says. Every tensor must then be there in its own
shape, but for embeddings: they may have rows more than the base's, which begin by lot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from data.loaders import facts_of, records
from flows.recipe import Stage
from flows.training.optimizers import LOOKED_UP
from flows.training.spec import Base, TrainingSpec
from infra.documents import read_json
from infra.storage import verify
from models import build, configure, trainable
from models.family import Trainable
from models.outline import outline
from models.parts import lora
from models.parts.tokens import UNK, tokenizer

SHOWN: Final = 3  # names of a kind in an error
LOOKED_AT: Final = 1000  # records, for words that a tokenizer does not know


def config_of(spec: TrainingSpec, facts: Mapping[str, Any]) -> Any:
    """Return the config of the spec's network, for data of these facts.

    Raises:
        ValueError: an unknown preset or field, or a value that Config refuses.
    """
    from flows.training.frozen import facts_of_needs

    told = {**facts, **facts_of_needs(spec), **spec.training.facts}
    directory = None if spec.base is None or spec.inherits else spec.base.path
    return config_beside(spec, directory, told)


def config_beside(
    asked: Stage | TrainingSpec, directory: Path | None, facts: Mapping[str, Any]
) -> Any:
    """Return the config of a network, which may start from, or adapt, the version in a directory.

    Raises:
        ValueError: as `config_of`; of an adapter, data that its base cannot learn.
    """
    if directory is None:
        return configure(asked.family, asked.preset, asked.config, facts)
    told = facts_beside(directory, facts)
    if asked.training.lora is None:
        return configure(asked.family, asked.preset, asked.config, told)
    document = read_json(directory / "config.json")
    _check_family(asked, document, "its base")
    with torch.device("meta"):
        config = build(document).config
    kept = [
        *{*facts} & {one.name for one in fields(config)} - {"vocabulary", "attributes", "tokenizer"}
    ]
    for name in sorted(kept):
        if told[name] != getattr(config, name):
            raise ValueError(
                f"training.lora: an adapter keeps its base's {name}, which is {getattr(config, name)},"
                f" and the data's is {told[name]}"
            )
    if getattr(config, "vocabulary", ()):
        return replace(config, vocabulary=told["vocabulary"])
    return config


def facts_beside(directory: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data's facts as a network has them that starts from the version in a directory."""
    document = read_json(directory / "config.json")
    known = document["config"]
    found = dict(facts) | {name: known[name] for name in trainable(document["family"]).brought}
    if "tokenizer" in known:
        found["tokenizer"] = known["tokenizer"]
    if facts.get("vocabulary") and known.get("vocabulary"):
        words = dict.fromkeys((*known["vocabulary"], *facts["vocabulary"]))
        found["vocabulary"] = tuple(words)
        found["max_words"] = max(facts["max_words"], known.get("max_words", 1))
    return found


def _check_family(asked: Stage | TrainingSpec, document: Mapping[str, Any], says: str) -> None:
    where = "training.lora" if asked.training.lora else "training.from"
    if document["family"] != asked.family:
        raise ValueError(f"{where}: {says} is of family {document['family']}, not {asked.family}")
    if "lora" in document:
        raise ValueError(
            f"{where}: {says} is an adapter itself: name its base, {document['lora']['base']}"
        )


def check(asked: Stage | TrainingSpec, config: Any, directory: Path, says: str) -> None:
    """Refuse a network that cannot start from the version in a directory, which errors call `says`.

    Raises:
        ValueError: another family, words or tokens in other places, or tensors that are missing, too many or of
            another shape; one line that names them.
    """
    document = read_json(directory / "config.json")
    _check_family(asked, document, says)
    before, now = document["config"], asdict(config)
    for name in ("tokenizer", "attributes"):
        if name in before and _plain(before[name]) != _plain(now[name]):
            raise ValueError(f"training.from: {says} learned {name} that are others than here")
    words, known = now.get("vocabulary", ()), before.get("vocabulary", ())
    if words and tuple(words[: len(known)]) != tuple(known):
        raise ValueError(
            f"training.from: {says} learned other words first: leave config.vocabulary out"
        )
    network = outline(trainable(asked.family), config)
    if faults := _misfits(network, directory):
        raise ValueError(
            f"training.from: {says} does not fit: {'; '.join(faults)}{_recipe_of(directory)}"
        )
    if asked.training.lora is not None:
        try:
            lora.check(network, asked.training.lora.targets)
        except ValueError as error:
            raise ValueError(f"training.lora.{error}") from None


def check_inherited(spec: TrainingSpec, config: Any) -> None:
    """Refuse a network that cannot start from another stage's weights.

    Raises:
        ValueError: the family takes nothing of them over.
    """
    assert spec.base is not None
    with safe_open(spec.base.path / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    inherited(outline(trainable(spec.family), config), weights, spec.base.says)


def inherited(model: Trainable, weights: Mapping[str, Tensor], says: str) -> Mapping[str, Tensor]:
    """Return the first values of a model's tensors, of the weights of another stage, which errors call `says`.

    Raises:
        ValueError: the family takes nothing of them over, or gives values of another shape.
    """
    try:
        found = model.start_from(weights)
    except ValueError as error:
        raise ValueError(f"starts_from: {says}: {error}") from None
    own_state = model.state_dict()
    for name, value in found.items():
        if name not in own_state or own_state[name].shape != value.shape:
            here = _size(own_state[name].shape) if name in own_state else "none"
            raise ValueError(
                f"starts_from: {says} does not fit: {name} is {_size(value.shape)} there, {here} here"
            )
    return found


def load(model: Trainable, spec: TrainingSpec, base: Base) -> None:
    """Give a fresh model the base's weights, and an adapter beside them where that is what learns.

    Raises:
        ValueError: as `check`, or as `inherited` of another stage's weights.
        infra.storage.IntegrityError: the bytes are not those of the base's digest.
    """
    verify(base.path, base.digest)
    if spec.inherits:
        stored = load_file(base.path / "model.safetensors")
        model.load_state_dict(inherited(model, stored, base.says), strict=False)
        return
    check(spec, model.config, base.path, base.says)
    stored = load_file(base.path / "model.safetensors")
    state = model.state_dict()
    grown = {name: len(one) for name, one in stored.items() if one.shape != state[name].shape}
    with torch.no_grad():
        for name, one in stored.items():
            if name in grown and spec.training.lora:
                state[name].zero_()  # its further rows are the adapter's
            state[name][: len(one)].copy_(one) if name in grown else state[name].copy_(one)
    if (asked := spec.training.lora) is not None:
        adapter = lora.LoRA(
            rank=asked.rank,
            alpha=asked.rank if asked.alpha is None else asked.alpha,
            targets=asked.targets or lora.adaptable(model),
            base=f"{base.name}:{base.version}",
            digest=base.digest,
            known={name.removesuffix(".weight"): rows for name, rows in grown.items()},
        )
        lora.attach(model, adapter)


def told(model: Trainable, spec: TrainingSpec, base: Base) -> str:
    """Return what the training starts from, and what of its data is new to that."""
    if spec.inherits:
        with safe_open(base.path / "model.safetensors", "pt") as file:
            names = file.keys()
        return f"starts from {base.says}: {len(names)} tensors of {len(model.state_dict())}"
    known = read_json(base.path / "config.json")["config"].get("vocabulary", ())
    new = getattr(model.config, "vocabulary", ())[len(known) :]
    lines = [f"starts from {base.says}"]
    if model.lora is not None:
        learn, whole = (
            sum(one.numel() for one in of) for of in (lora.own(model).values(), model.parameters())
        )
        lines = [f"adapts {base.says}: {learn} of {whole} weights learn"]
    if new:
        lines.append(f"{len(new)} words are new to it: {_some(new)}")
    return "; ".join([*lines, *_unknown(model, spec, base)])


def _misfits(model: Trainable, directory: Path) -> list[str]:
    """Return what of a network's tensors the stored ones do not give, a line a kind."""
    with safe_open(directory / "model.safetensors", "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tables = {f"{path}.weight" for path, one in model.named_modules() if isinstance(one, LOOKED_UP)}
    other = [
        f"{name} ({_size(found[name])} there, {_size(shape)} here)"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
        if name not in tables or found[name][1:] != shape[1:] or found[name] > shape
    ]
    kinds = {
        "it lacks": [name for name in wanted if name not in found],
        "it has besides": [name for name in found if name not in wanted],
        "of another shape": other,
    }
    return [f"{kind} {_some(names)}" for kind, names in kinds.items() if names]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _recipe_of(directory: Path) -> str:
    """Return how an error goes on: with the sizes that would fit, where the version says how it was trained."""
    if not (directory / "training.json").is_file():
        return ""
    trained = read_json(directory / "training.json")
    return f"; it was trained as preset {trained['preset']}, config {trained['config']}"


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _unknown(model: Trainable, spec: TrainingSpec, base: Base) -> list[str]:
    """Return how much of the text the base's tokenizer does not know, where it is not the data's own."""
    if (document := getattr(model.config, "tokenizer", None)) is None:
        return []
    words = tokenizer(document)
    if words.sha256 == tokenizer(facts_of(spec.prepared, None)["tokenizer"]).sha256:
        return []
    texts = [text for one in records(spec.prepared, "train")[:LOOKED_AT] for _, text in one]
    tokens = [token for row in words.encode_all(texts) for token in row]
    share = sum(token == UNK for token in tokens) / max(1, len(tokens))
    return [f"text is cut by the tokenizer of {base.name}, which does not know {share:.2%} of it"]
