"""What a recipe says of an adapter (`training.lora`)."""

from typing import Annotated

from pydantic import Field

from flows.tuning.space import Number, Strict, Whole
from infra.registry.versions import NAME

Ref = Annotated[str, Field(pattern=rf"^{NAME.pattern}(:[1-9][0-9]{{0,8}}|@[a-z]+)?$")]
"""A registered version: NAME[:v|@alias]."""


class Lora(Strict):
    """A low-rank adapter (Hu et al. 2022) learns in place of the network's weights, which stay as they are."""

    base: Ref  # whose network is adapted: a pipeline, which stays around it, or a stage
    rank: Annotated[Whole, Field(ge=1, le=256)] = 4
    alpha: Annotated[Number, Field(gt=0)] | None = (
        None  # its product counts alpha / rank; None: as much as it is
    )
    targets: tuple[str, ...] = ()  # ends of the names of layers; empty: all that the family adapts
