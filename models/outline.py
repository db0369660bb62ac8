"""A network without weights: its sizes are checked and its capabilities told, and it takes no memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from models.family import Trainable


class _Unfilled(TorchFunctionMode):
    """Leaves new weights as they are: on the meta device there is nothing to fill, and trying imports a compiler."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def outline(cls: type[Trainable], config: Any) -> Trainable:
    """Return the network of a config on no device.

    Raises:
        ValueError: the config's sizes do not fit.

    Example:
        >>> from models import trainable
        >>> network = outline(trainable("gpt"), trainable("gpt").presets["base"])
        >>> network.capabilities.modality, sum(p.numel() for p in network.parameters()) > 80_000_000
        ('text', True)
    """
    with torch.device("meta"), _Unfilled():
        return cls(config)
