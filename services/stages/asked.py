"""What a stage asks a model, and what it refuses for it before anything waits in the queue."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from services.pipelines.payload import LONGEST_S, GenerationSpec, Refused, StageTask, named

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from models.ports import Port
    from models.request import Request
    from services.stages.loader import Held


def request_of(
    held: "Held", spec: GenerationSpec, arrays: "Mapping[str, NDArray[Any]]"
) -> "Request":
    """Return what the model is asked."""
    from models.request import Request

    return Request(
        seeds=spec.seeds,
        prompts=spec.prompts,
        prompt_tokens=spec.prompt_tokens,
        dialogues=spec.dialogues,
        given=rows_of(arrays, held.model.inputs),
        options=spec.options,
    )


def rows_of(
    arrays: "Mapping[str, NDArray[Any]]", ports: "Mapping[str, Port]"
) -> "dict[str, Tensor]":
    """Return arrays as tensors; pictures, masks and the frames of clips are brought to the sizes of their ports."""
    import torch
    from torch.nn import functional as F

    found = {}
    for name, array in arrays.items():
        rows = torch.from_numpy(array.copy())
        port = ports.get(name)
        sides = port.shape[-2:] if port and port.kind in {"pixels", "mask", "clip"} else ()
        if None not in sides and sides and rows.shape[-2:] != sides:
            flat = rows.reshape(-1, *rows.shape[-3:])
            sized = F.interpolate(flat, [side or 1 for side in sides], mode="area")
            rows = sized.reshape(*rows.shape[:-2], *sized.shape[-2:])
        found[name] = rows
    return found


def blank(ports: "Mapping[str, Port]", count: int) -> "dict[str, NDArray[Any]]":
    """Return rows of nothing for the inputs that a model cannot do without: as they come from stages before it."""
    import numpy as np

    needed = {n: port for n, port in ports.items() if port.kind != "text" and not port.optional}
    return {
        name: np.zeros((count, *(size or 1 for size in port.shape)), np.float32)
        for name, port in needed.items()
    }


def letters(spec: GenerationSpec) -> int:
    """Return how many characters there are to read."""
    texts = {*spec.prompts, *(text for dialogue in spec.dialogues for _, text in dialogue)}
    return sum(map(len, texts))


def recalls(spec: GenerationSpec) -> bool:
    """Return whether the prompt itself is to be rated, or to be read and nothing else."""
    options = spec.options
    return options.get("max_tokens") == 0 or (spec.echo and "logprobs" in options)


def unfit(held: "Held", task: StageTask, request: "Request") -> Refused | None:
    """Refuse what the model cannot draw before it waits in the queue."""
    able, spec = held.model.capabilities, task.spec
    if not held.finite:
        return Refused("not_finite", f"{task.pin.ref} has weights that are not finite")
    try:
        held.model.check(request)
    except ValueError as error:
        return Refused("invalid", str(error), param=named(str(error)))
    if recalls(spec) and not able.recalls:
        why = "this model's text does not go on from its prompt, whose tokens have no likelihood"
        if spec.options.get("max_tokens") == 0:
            return Refused("invalid", f"max_tokens: {why}; ask for 1 at least", param="max_tokens")
        return Refused("invalid", f"logprobs: {why}; leave echo out", param="logprobs")
    seconds = spec.options.get("seconds", getattr(held.model.config, "seconds", None))
    if able.modality == "audio" and seconds and len(spec.seeds) * seconds > LONGEST_S:
        message = (
            f"seconds: n x seconds is at most {LONGEST_S:g}, got {len(spec.seeds)} x {seconds:g}"
        )
        return Refused("invalid", message, param="seconds")
    return None if able.modality == "text" else unread(held, spec.prompts)


def unread(held: "Held", prompts: Sequence[str]) -> Refused | None:
    """Refuse prompts that the model cannot read, as one that is too long."""
    try:
        if prompts:
            held.model.encode(prompts)
    except ValueError as error:
        return Refused("invalid", str(error), param="prompt")
    return None
