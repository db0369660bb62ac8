"""Low-rank adapters (Hu et al. 2022, arXiv:2106.09685): W x + alpha / rank B A x beside weights that stay as they are.

`attach` adds them to a network, under names of their own (`... .qkv.lora.down`): those of the base's tensors do not
change, and `own` tells the two apart. Words that the base never learned are rows of its embeddings that belong to the
adapter. B is zero at first, so that an adapter begins as its base. Nothing is ever merged: the base's bytes are the
base's. `adapter_rows` has rows of several adapters share a step.

Shape letters: W words, D text width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Trainable
from models.parts.tables import Table

GAIN: Final = 8.0


@dataclass(frozen=True, slots=True)
class LoRA:
    """What an adapter adds, and to which version; JSON, in its config.json."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # the last parts of the names of layers
    base: str  # "shapes.base:3"
    digest: str  # the base's
    known: Mapping[str, int] = field(default_factory=dict)
    """Of embeddings that the adapter has further rows of: how many are the base's."""


class LowRank(nn.Module):
    """B A x, beside a linear layer."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        features, like = layer.in_features, layer.weight
        self.scale = scale
        self.down = nn.Parameter(like.new_empty(rank, features))  # A
        self.up = nn.Parameter(like.new_zeros(layer.out_features, rank))  # B
        nn.init.normal_(self.down, std=features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the layer's output."""
        return F.linear(F.linear(x, self.down), self.up) * self.scale


class Words(nn.Module):
    """Rows behind the `known` ones of an embedding, which is zero there; they begin as its rows do.

    Adam's steps are of one size: too small for a word's numbers, which are about 1, where it suits those of a product.
    So they are learned `GAIN` times as fast: it is the word that changes, and not what it shares with others.
    """

    def __init__(self, embedding: nn.Embedding, known: int) -> None:
        super().__init__()
        self.known = known
        size = (embedding.num_embeddings - known, embedding.embedding_dim)
        rows = nn.init.normal_(embedding.weight.new_empty(size), std=1 / GAIN)
        self.rows = Table(rows)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what is added to the embedding of tokens: nothing to that of a word that the base knows."""
        rows = torch.cat([self.rows.new_zeros(1, self.rows.shape[1]), GAIN * self.rows])
        return F.embedding((tokens - (self.known - 1)).clamp(min=0), rows)


def layers(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """Return the linear layers whose name ends in one of the targets, by name."""
    ends = tuple(f".{target}" for target in targets)
    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and f".{name}".endswith(ends)
    }


def attach(model: Trainable, lora: LoRA) -> None:
    """Add an adapter to a network; nothing else of it learns any more.

    Raises:
        ValueError: a target that the family does not let adapters change, or that this network does not have.
    """
    check(model, lora.targets)
    model.requires_grad_(requires_grad=False)
    added: list[tuple[Any, nn.Module]] = [
        (layer, LowRank(layer, lora.rank, lora.alpha / lora.rank))
        for layer in layers(model, lora.targets).values()
    ]
    for name, known in lora.known.items():
        embedding = model.get_submodule(name)
        assert isinstance(embedding, nn.Embedding)
        added.append((embedding, Words(embedding, known)))
    for module, addition in added:
        module.lora = addition
        module.register_forward_hook(_added)
    model.lora = lora


def _added(module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    found: Tensor = out + module.lora(args[0])
    return found


def adaptable(model: Trainable) -> tuple[str, ...]:
    """Return the targets that this network has."""
    return tuple(name for name in type(model).adapts if layers(model, [name]))


def check(model: Trainable, targets: Sequence[str]) -> None:
    """Refuse targets that cannot be adapted.

    Raises:
        ValueError: names the target and those that there are.
    """
    there = adaptable(model)
    if not there:
        names = ", ".join(type(model).adapts)
        why = f"no linear one is called {names}" if names else "it has no attention"
        raise ValueError(f"no layer of this network takes an adapter: {why}")
    if odd := [target for target in targets if target not in there]:
        raise ValueError(f"targets: there is no {odd[0]!r}; choose from {', '.join(there)}")


def own(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that are a network's own, by name: all of them, or those of its adapter alone."""
    state: dict[str, Tensor] = model.state_dict()
    if getattr(model, "lora", None) is None:
        return state
    return {name: tensor for name, tensor in state.items() if ".lora." in name}


def fill(model: Trainable, *tensors: Mapping[str, Tensor]) -> None:
    """Give a model its tensors: all of them at once, or its base's and then its adapter's.

    An adapter has the base's tensors themselves and no copies, but for embeddings that it has further rows of.

    Raises:
        RuntimeError: they are not those of this network.
    """
    *base, mine = tensors
    if bool(base) != (model.lora is not None):
        raise RuntimeError(
            "an adapter has the tensors of its base beside its own, and nothing else has"
        )
    if model.lora is None:
        model.load_state_dict(dict(mine))
        return
    if shared := base[0].keys() & mine.keys():
        raise RuntimeError(
            f"{min(shared)} is a tensor of the base, {model.lora.base}, and of the adapter"
        )
    whole = {**base[0], **mine}
    for name in model.lora.known:
        whole[f"{name}.weight"] = grown(
            base[0][f"{name}.weight"], model.get_parameter(f"{name}.weight")
        )
    model.load_state_dict(whole, assign=True)


def grown(table_WD: Tensor, like_WD: Tensor) -> Tensor:
    """Return the base's embedding with rows of zeros behind it: what is there belongs to the adapter."""
    more = table_WD.new_zeros(len(like_WD) - len(table_WD), table_WD.shape[1])
    return torch.cat([table_WD, more])
