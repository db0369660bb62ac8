"""A pipeline version: which stage versions it pins, whether they fit, and what it can be asked for."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.recipe import Recipe, split
from infra.documents import read_json
from infra.pipelines import (
    ASKED,
    EDITED,
    NEGATIVE,
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

    from models.family import Family
    from models.request import Request

PASSES: Final = 2  # of what goes on from half of a clip, to extend it
MODALITIES: Final[Mapping[str, Modality]] = {
    **{"pixels": "image", "sound": "audio"},
    **{"text": "text", "embedding": "embedding", "clip": "clip", "volume": "mesh"},
}
"""What a pipeline makes, by the kind of what comes out."""
SILENCE: Final[Mapping[Modality, float]] = {
    "image": 0,
    "audio": 0,
    "text": -1,
    "embedding": 0,
    "clip": 0,
    "mesh": 0,
}
"""What follows a sample that ended before others of its batch."""


class StageMismatch(ValueError):
    """Two stages of a pipeline do not fit; the message names both sides."""


def ports_of(model: "Family") -> dict[str, Any]:
    """Return a model's inputs, outputs, entries, options and voices, as pipeline.json has them in a PinnedStage."""
    entries = {name: _written(one.inputs, one.outputs) for name, one in model.entries.items()}
    told = {"takes": model.takes, "speakers": tuple(getattr(model.config, "speakers", ()))}
    return {**_written(model.inputs, model.outputs), "entries": entries, **told}


def _written(
    inputs: Mapping[str, graph.Port], outputs: Mapping[str, graph.Port]
) -> dict[str, dict[str, str]]:
    ports = {"inputs": inputs, "outputs": outputs}
    return {side: {name: str(port) for name, port in of.items()} for side, of in ports.items()}


def facts_of_tokenizer(model: "Family") -> Tokenizer:
    """Return which tokenizer a model of text reads by."""
    from models.parts.tokens import tokenizer

    return Tokenizer.model_validate(tokenizer(model.config.tokenizer).facts)


def abilities(model: "Family") -> tuple[Ability, ...]:
    """Return what a pipeline can be asked for whose output is this model's samples."""
    able = model.capabilities
    kinds = {port.kind for port in model.outputs.values()}
    alone = able.condition == "none" or able.unprompted
    found: list[tuple[Ability, bool]] = [
        ("images", "pixels" in kinds),
        ("videos", "clip" in kinds),
        ("meshes", "volume" in kinds),
        ("speech", "sound" in kinds and able.condition == "text"),
        ("completions", able.modality == "text" and able.condition == "text"),
        ("chat", able.chats),
        ("embeddings", able.embeds),
        ("scores", able.likelihood),
        ("samples", bool(kinds & {"pixels", "sound"}) or ("text" in kinds and alone)),
    ]
    return tuple(name for name, has in found if has)


def able_of(generate: Entrance, models: "Mapping[str, Family]") -> tuple[Ability, ...]:
    """Return what a pipeline can be asked for, whose stages are these models.

    What decodes another stage's work has no likelihood of its own, and draws nothing: pictures or clips are asked for.
    """
    last = [*generate.nodes.values()][-1]
    if not last.entry:
        found, model = abilities(models[last.stage]), models[last.stage]
        says = "text" in generate.asks and model.capabilities.modality == "audio"
        return found if "speech" in found or not says else ("speech", *found)
    kinds = {port.kind for port in models[last.stage].entries[last.entry].outputs.values()}
    return ("videos",) if "clip" in kinds else ("images", "samples")


def clips_of(generate: Entrance, models: "Mapping[str, Family]", rate: float) -> dict[str, Any]:
    """Return how many frames a pipeline's clips have and how many a second, for its document; `rate` is the data's.

    What decodes takes any, so it is who drew them that says; and what upscales keeps the rate of who did before it,
    which may be that of each n-th frame alone.
    """
    drew = [models[node.stage] for node in generate.nodes.values() if not node.entry]
    timed = [model for model in drew if not model.capabilities.upscales] or drew
    skip = getattr(timed[-1].config, "skips", (1,))[-1]
    return {"frames": drew[-1].config.frames, "frame_rate": rate / skip}


def sizes_of(
    generate: Entrance, stages: Sequence[PinnedStage], models: "Mapping[str, Family]"
) -> dict[str, Any]:
    """Return the size that a pipeline of pictures or clips draws, and those that it can be asked for, for its document.

    Raises:
        ValueError: a stage is pinned with a size that it does not draw.
    """
    from models.parts.sizes import chosen, sides

    made = output_of(generate, stages)
    if made.kind not in {"pixels", "clip"}:
        return {}
    for node in generate.nodes.values():
        if not node.entry and "size" in (model := models[node.stage]).takes:
            stage = next(one for one in stages if one.stage == node.stage)
            size = chosen(stage.options.get("size"), model.config.sizes)
            assert size is not None  # it has some
            return {"image_size": sides(size)[::-1], "sizes": model.config.sizes}
    return {"image_size": (made.shape[-1], made.shape[-2])}


def opened(*folders: Path) -> "Family":
    """Return the network of a version's files, with its weights where its ports depend on them; as `load_model`."""
    from models import build
    from models.family import Family

    model = build(read_json(folders[-1] / "config.json"))
    assert isinstance(model, Family)
    if model.entries:
        _fill(model, folders)
    return model.ready()


def _fill(model: "Family", folders: Sequence[Path]) -> None:
    from safetensors.torch import load_file

    from models.parts import lora

    lora.fill(model, *(load_file(folder / "model.safetensors") for folder in folders))


def interface_hash(model: "Family", entries: Collection[str] | None = None) -> str:
    """Return the hash of all that a stage's neighbours rely on: what comes in and goes out, and its vocabulary.

    Of its entries those of these names count, or all: a pin relies on what there was when it was made.
    """
    ports = ports_of(model)
    del ports["takes"], ports["speakers"]  # what a request may say, and no neighbour
    known = ports.pop("entries")
    if counted := {name: known[name] for name in known if entries is None or name in entries}:
        ports["entries"] = counted
    document = {
        **ports,
        "vocabulary": asdict(model.config).get("vocabulary"),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_interfaces(stages: Sequence[tuple[PinnedStage, Sequence[Path]]]) -> None:
    """Check that each pinned stage, fetched to folders, still has the interface that it was pinned with.

    Raises:
        StageMismatch: the first one that has another.
    """
    for stage, folders in stages:
        found = interface_hash(opened(*folders), stage.entries)
        if stage.interface is not None and stage.interface != found:
            raise StageMismatch(
                f"{stage.name}:{stage.version} has interface {found}, but the pipeline pins "
                f"{stage.interface} as its {stage.stage}: judge the pipeline anew"
            )


def check_fit(pipeline: Pipeline) -> None:
    """Check every entrance of a pipeline: each stage takes what its wires bring, and all that a request gives is taken.

    Raises:
        StageMismatch: the first wire that does not fit, naming both its ends; or what nobody takes or gives.
    """
    for called, entrance in pipeline.entrances.items():
        nodes = {}
        for name, node in entrance.nodes.items():
            ports = pipeline.ports(called, name)
            nodes[name] = graph.Node(
                inputs=_parsed(ports.inputs), outputs=_parsed(ports.outputs), wires=node.wires
            )
        try:
            asks = graph.check(nodes, entrance.output)
        except graph.Misfit as error:
            raise StageMismatch(str(error)) from None
        given = ASKED.get(called, ())
        if lost := [name for name in given if name not in asks]:
            raise StageMismatch(f"{called}: no stage takes request.{lost[0]}, which is asked there")
        if called == "extend":
            check_passes(entrance)
        if odd := sorted(asks.keys() - {"text", NEGATIVE, *given}):
            there = ", ".join(f"request.{name}" for name in {"text": 0, **dict.fromkeys(given)})
            raise StageMismatch(f"{called}: there is no request.{odd[0]}, only {there}")


def check_passes(entrance: Entrance) -> None:
    """Check that what goes on from half of a clip does so twice: its last frame is then the first that comes out.

    After one pass half of what comes out were frames of the clip, and after three it would begin beyond its end.

    Raises:
        StageMismatch: it does so more or less often.
    """
    passes = Counter(node.stage for node in entrance.nodes.values() if "start" in node.wires)
    for stage, count in passes.items():
        if count != PASSES:
            raise StageMismatch(
                f"extend: {stage} goes on from half of a clip, so it is needed twice, as {stage} and"
                f" {stage}#on from {stage}'s output; got {count}"
            )


def _parsed(written: Mapping[str, str]) -> dict[str, graph.Port]:
    return {name: graph.Port.parse(text) for name, text in written.items()}


def entrances_of(recipe: Recipe, stages: Sequence[PinnedStage]) -> dict[str, Entrance]:
    """Return a recipe's entrances: as its `pipeline` says, else the stages one behind the other.

    A chain whose every stage can keep a part of a picture has the entrance `edit`, too.
    """
    if recipe.pipeline is not None:
        by_stage = {stage.stage: stage for stage in stages}
        return {str(name): entrance_of(wires, by_stage) for name, wires in recipe.pipeline.items()}
    found = {"generate": chained(stages)}
    if all(stage.inputs.keys() >= set(EDITED) for stage in stages):
        found["edit"] = chained(stages, edits=True)
    return found


def entrance_of(
    wires: Mapping[str, Mapping[str, str]], stages: Mapping[str, PinnedStage]
) -> Entrance:
    """Return an entrance as a recipe wires it: STAGE or STAGE/ENTRY by what its inputs come from.

    Nodes of one stage, told apart by what follows a #, draw the same noise.

    Raises:
        StageMismatch: a stage has no such entry.
    """
    nodes: dict[str, Node] = {}
    output = ""
    for name, of in wires.items():
        stage, entry = split(name)
        if entry and entry not in stages[stage].entries:
            known = ", ".join(stages[stage].entries) or "none"
            raise StageMismatch(f"{name}: {stage} has no entry {entry!r}; its entries: {known}")
        nodes[name] = Node(stage=stage, entry=entry, wires=dict(of), salt="" if entry else stage)
        output = f"{name}.{next(iter(stages[stage].ports(entry).outputs))}"
    return Entrance(nodes=nodes, output=output)


def output_of(entrance: Entrance, stages: Sequence[PinnedStage]) -> graph.Port:
    """Return what comes out of an entrance.

    Raises:
        StageMismatch: no stage gives it.
    """
    name, _, port = entrance.output.partition(".")
    node = entrance.nodes.get(name)
    for stage in stages:
        if node and stage.stage == node.stage:
            outputs = stage.ports(node.entry).outputs
            if port in outputs:
                return graph.Port.parse(outputs[port])
    raise StageMismatch(f"{entrance.output} is to come out, and no stage gives it")


def load_model(*folders: Path) -> "Family":
    """Return the network of a fetched model version, in evaluation mode, after verifying its bytes.

    Args:
        folders: Of its weights, as `Registry.weights` gives them: the version's own is the last.
    """
    from models import build
    from models.family import Family

    for folder in folders:
        verify(folder)
    model = build(read_json(folders[-1] / "config.json"))
    assert isinstance(model, Family)
    _fill(model, folders)
    return model.ready()


def draw(
    models: Sequence["Family"],
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    rows_at_once: int = 64,
    *,
    called: str = "generate",
    beside: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> "Tensor":
    """Return what a pipeline generates, a row a seed, as `Family.sample` does: pictures, sound or tokens.

    `models` are in the order of its stages. Sound and text that end early are silent to the longest one's end.
    Another entrance is `called` by its name; what it asks for beside a text, a row a seed, is `beside`. `options` are
    the lead's, as a request's are in the gateway.
    """
    drawn = []
    for start in range(0, len(seeds), rows_at_once):
        part = slice(start, start + rows_at_once)
        given = {name: rows[part] for name, rows in (beside or {}).items()}
        request = (prompts[part], seeds[part])
        made = made_by_nodes(
            models, pipeline, *request, called=called, beside=given, options=options
        )
        *_, (_, last) = made
        drawn.append(last)
    return joined(drawn, SILENCE[pipeline.modality])


def as_asked(
    models: Sequence["Family"],
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    prepared: Path,  # noqa: ARG001 - nothing of it is asked for beside
) -> "Tensor":
    """Return what a pipeline generates of its prompts alone: how most modalities are judged."""
    return draw(models, pipeline, prompts, seeds)


def made_by_nodes(
    models: Sequence["Family"],
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    called: str = "generate",
    beside: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> "Iterator[tuple[str, Tensor]]":
    """Yield every node of an entrance with what it makes of these requests, a row a seed; the last comes out."""
    entrance = pipeline.entrances[called]
    by_stage = dict(zip((stage.stage for stage in pipeline.stages), models, strict=True))
    given = {**(beside or {}), **({"text": list(prompts)} if prompts else {})}
    asks = options or {}
    away = pipeline.negative_of(called, asks)
    if away is not None:
        given[NEGATIVE] = [away] * len(seeds)
    walk = graph.walk(entrance.wires, entrance.output, given, entries=entrance.entries)
    call: graph.Call | None = next(walk)
    while call is not None:
        node = entrance.nodes[call.node]
        by = {"options": pipeline.options_of(called, call.node, asks)}
        stage = pipeline.stage(node.stage).model_copy(update=by)
        made = _made(by_stage[node.stage], stage, node, call.given, seeds)
        yield call.node, made
        output = next(iter(pipeline.ports(called, call.node).outputs))
        try:
            call = walk.send({output: made})
        except StopIteration:
            call = None


def _made(
    model: "Family",
    stage: PinnedStage,
    node: Node,
    given: Mapping[str, Any],
    seeds: Sequence[int],
) -> "Tensor":
    """Return what one node makes of its inputs, on the CPU."""
    import torch

    from models.parts.rows import entered

    tensors = {name: value for name, value in given.items() if name != "text"}
    with torch.no_grad():
        if node.entry:
            return entered(model, node.entry, tensors, given.get("text", ())).cpu()
        salted = [graph.salted(seed, node.salt) for seed in seeds]
        request = asked(model, stage, given.get("text", ()), salted, tensors)
        return model.sample(request).cpu()


def asked(
    model: "Family",
    stage: PinnedStage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    given: "Mapping[str, Tensor] | None" = None,
) -> "Request":
    """Return what a stage is asked for, sampled as it is pinned; who chats is asked by dialogues of one turn."""
    from models.request import Request

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
