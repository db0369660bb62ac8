"""A pipeline version: which stage versions it pins, whether they fit, and what it can be asked for."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.recipe import Recipe
from infra.documents import read_json
from infra.pipelines import (
    EDITED,
    Ability,
    Entrance,
    Modality,
    Node,
    PinnedStage,
    Pipeline,
    Tokenizer,
    chained,
)
from infra.storage import verify
from models import ports as graph

if TYPE_CHECKING:
    from torch import Tensor

    from models.family import Family, Request

MODALITIES: Final[Mapping[str, Modality]] = {"pixels": "image", "sound": "audio", "text": "text"}
"""What a pipeline makes, by the kind of what comes out."""
SILENCE: Final = {"image": 0, "audio": 0, "text": -1}
"""What follows a sample that ended before others of its batch."""


class StageMismatch(ValueError):
    """Two stages of a pipeline do not fit; the message names both sides."""


def ports(config: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the inputs and outputs of a model with this config.json, as pipeline.json has them."""
    return ports_of(_fresh(config))


def ports_of(model: "Family") -> tuple[dict[str, str], dict[str, str]]:
    """Return a model's inputs and outputs, as pipeline.json has them; its weights are not looked at."""
    inputs, outputs = (
        {name: str(port) for name, port in of.items()} for of in (model.inputs, model.outputs)
    )
    return inputs, outputs


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
    """Return the hash of all that a stage's neighbours rely on: what comes in and goes out, and its vocabulary."""
    inputs, outputs = ports(config)
    document = {
        "inputs": inputs,
        "outputs": outputs,
        "vocabulary": config["config"].get("vocabulary"),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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


def check_fit(pipeline: Pipeline) -> None:
    """Check every entrance of a pipeline: each stage takes what its wires bring.

    Raises:
        StageMismatch: the first wire that does not fit; names both its ends.
    """
    by_stage = {stage.stage: stage for stage in pipeline.stages}
    for entrance in pipeline.entrances.values():
        nodes = {
            name: graph.Node(
                inputs=_parsed(by_stage[node.stage].inputs),
                outputs=_parsed(by_stage[node.stage].outputs),
                wires=node.wires,
            )
            for name, node in entrance.nodes.items()
        }
        try:
            graph.check(nodes, entrance.output)
        except graph.Misfit as error:
            raise StageMismatch(str(error)) from None


def _parsed(written: Mapping[str, str]) -> dict[str, graph.Port]:
    return {name: graph.Port.parse(text) for name, text in written.items()}


def entrances_of(recipe: Recipe, stages: Sequence[PinnedStage]) -> dict[str, Entrance]:
    """Return a recipe's entrances: as its `pipeline` says, else the stages one behind the other.

    A chain whose every stage can keep a part of a picture has the entrance `edit`, too.
    """
    if recipe.pipeline is not None:
        outputs = {stage.stage: next(iter(stage.outputs)) for stage in stages}
        found = {}
        for entrance, wires in recipe.pipeline.items():
            nodes = {name: Node(stage=name, wires=of, salt=name) for name, of in wires.items()}
            last = list(nodes)[-1]
            found[str(entrance)] = Entrance(nodes=nodes, output=f"{last}.{outputs[last]}")
        return found
    found = {"generate": chained(stages)}
    if all(stage.inputs.keys() >= set(EDITED) for stage in stages):
        found["edit"] = chained(stages, edits=True)
    return found


def output_of(entrance: Entrance, stages: Sequence[PinnedStage]) -> graph.Port:
    """Return what comes out of an entrance.

    Raises:
        StageMismatch: no stage gives it.
    """
    node, _, port = entrance.output.partition(".")
    wanted = entrance.nodes[node].stage if node in entrance.nodes else None
    for stage in stages:
        if stage.stage == wanted and port in stage.outputs:
            return graph.Port.parse(stage.outputs[port])
    raise StageMismatch(f"{entrance.output} is to come out, and no stage gives it")


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
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    rows_at_once: int = 64,
) -> "Tensor":
    """Return what a pipeline generates, a row a seed, as `Family.sample` does: pictures, sound or tokens.

    `models` are in the order of its stages. Sound and text that end early are silent to the longest one's end.
    """
    entrance = pipeline.entrances["generate"]
    by_stage = dict(zip((stage.stage for stage in pipeline.stages), models, strict=True))
    drawn = []
    for start in range(0, len(seeds), rows_at_once):
        part = slice(start, start + rows_at_once)
        given = {"text": list(prompts[part])} if prompts else {}
        walk = graph.walk(entrance.wires, entrance.output, given)
        call: graph.Call | None = next(walk)
        while call is not None:
            node = entrance.nodes[call.node]
            stage, model = pipeline.node("generate", call.node), by_stage[node.stage]
            salted = [graph.salted(seed, node.salt) for seed in seeds[part]]
            made = _sampled(model, stage, call.given, salted)
            try:
                call = walk.send({next(iter(stage.outputs)): made})
            except StopIteration as end:
                call = None
                drawn.append(end.value)
    return joined(drawn, SILENCE[pipeline.modality])


def _sampled(
    model: "Family", stage: PinnedStage, given: Mapping[str, Any], seeds: Sequence[int]
) -> "Tensor":
    import torch

    tensors = {name: value for name, value in given.items() if name != "text"}
    with torch.no_grad():
        return model.sample(asked(model, stage, given.get("text", ()), seeds, tensors)).cpu()


def asked(
    model: "Family",
    stage: PinnedStage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    given: "Mapping[str, Tensor] | None" = None,
) -> "Request":
    """Return what a stage is asked for, sampled as it is pinned; who chats is asked by dialogues of one turn."""
    from models.family import Request

    reads = prompts if stage.reads_text else ()
    chats = model.capabilities.chats
    return Request(
        seeds=tuple(seeds),
        prompts=() if chats else tuple(reads),
        dialogues=tuple((("user", one),) for one in reads) if chats else (),
        given=given,
        options=stage.options,
    )


def joined(parts: Sequence["Tensor"], silence: float) -> "Tensor":
    """Return rows of several batches as one, (N, ...); shorter rows are silent at the end."""
    import torch
    from torch.nn import functional as F

    longest = max(part.shape[-1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[-1]), value=silence) for part in parts])
