"""Rows of several adapters of one base, and of the base itself, in one step of a stepwise sampler.

Each row names its adapter by a number (`begin`); `step` has each layer of the base add to a row what that row's adapter
says (`models.parts.lora`). The rows are multiplied one by one, in products of one shape: no bit of a row depends on its
neighbours or their adapters.

Shape letters: B rows, N places of a row, I and O features in and out, R rank.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Final, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from models.family import Family, Rows
from models.parts.lora import LowRank, layers
from models.parts.rows import Stepwise
from models.request import Request

NUMBER: Final = "adapter"
"""The rows' tensor (B,) of numbers; 0, as for rows without it, is the base itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model's rows take their steps."""

    bank: "Bank"
    number: int
    host: Family | None  # the base, whose layers all of them go through; None: it is that itself


@dataclass(frozen=True, slots=True)
class Product:
    """What the adapters of one rank add to a layer: zeros to rows of others."""

    down_BRI: Tensor
    up_BOR: Tensor
    scale_B11: Tensor

    def of(self, x_BNI: Tensor) -> Tensor:
        """Return what is added (B, N, O); a clip's frames, or its places, may be rows one after the other."""
        parts = len(x_BNI) // len(self.down_BRI)
        down, up, scale = (
            one.repeat_interleave(parts, 0) if parts > 1 else one
            for one in (self.down_BRI, self.up_BOR, self.scale_B11)
        )
        return torch.bmm(torch.bmm(x_BNI, down.mT), up.mT) * scale


class Chosen:
    """The adapters of the rows of a batch, and what they add to each layer, gathered once while the rows stay."""

    def __init__(self, adapted: Mapping[int, Family], numbers: Sequence[int]) -> None:
        self.numbers = list(numbers)
        self._beside: dict[str, dict[int, LowRank]] = {}  # by layer and adapter
        for number, model in adapted.items():
            for name, one in model.named_modules():
                if isinstance(one, LowRank):
                    self._beside.setdefault(name.removesuffix(".lora"), {})[number] = one
        self._products: dict[str, list[Product]] = {}

    def products(self, name: str) -> list[Product]:
        """Return what is added to the layer of this name, one a rank."""
        if name not in self._products:
            beside = self._beside.get(name, {})
            ranks = sorted({len(one.down) for one in beside.values()})
            self._products[name] = [
                self._product({n: one for n, one in beside.items() if len(one.down) == rank})
                for rank in ranks
            ]
        return self._products[name]

    def _product(self, alike: Mapping[int, LowRank]) -> Product:
        first, *_ = alike.values()
        slots = {number: slot for slot, number in enumerate(alike, start=1)}
        chosen = [slots.get(number, 0) for number in self.numbers]
        slot_B = torch.tensor(chosen, device=first.down.device)
        downs = [torch.zeros_like(first.down), *(one.down for one in alike.values())]
        ups = [torch.zeros_like(first.up), *(one.up for one in alike.values())]
        scales = first.down.new_tensor([0.0, *(one.scale for one in alike.values())])
        return Product(
            torch.stack(downs)[slot_B], torch.stack(ups)[slot_B], scales[slot_B][:, None, None]
        )


class Bank:
    """The adapters of one loaded base; it holds none of them, nor the base."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._adapted: WeakValueDictionary[int, Family] = WeakValueDictionary()
        self._last = Chosen({}, [])
        # of the rows of the call under way in this thread, where they have adapters
        self.now: ContextVar[Sequence[int] | None] = ContextVar("adapters", default=None)

    def join(self, adapted: Family, host: Family) -> None:
        """Let the rows of an adapter share the steps of its base."""
        number = next(self._numbers)
        self._adapted[number] = adapted
        adapted.adapter_place = Place(self, number, host)

    def chosen(self, numbers: Sequence[int]) -> Chosen:
        """Return the adapters of rows."""
        chosen = self._last
        if [*numbers] != chosen.numbers:
            adapted = {n: self._adapted[n] for n in sorted({*numbers} - {0})}
            chosen = self._last = Chosen(adapted, numbers)  # another thread may try one out
        return chosen


def open_to_adapters(host: Family) -> None:
    """Make a base ready for adapters to `join`, before anybody draws with it; alone it draws as it did."""
    bank = Bank()
    host.adapter_place = Place(bank, 0, None)
    for name, layer in layers(host, type(host).adapts).items():
        layer.register_forward_hook(partial(_added, bank, name))


def host_of(model: Family) -> Family:
    """Return the model whose layers the rows go through: the base of an adapter that shares its steps, or itself."""
    return (
        model
        if model.adapter_place is None or model.adapter_place.host is None
        else model.adapter_place.host
    )


def begin(model: Family, request: Request) -> Rows:
    """Return the rows of a request, which say whose they are where that is an adapter that shares its base's steps."""
    rows = cast(Stepwise, model).begin(request)
    if model.adapter_place is None or not model.adapter_place.number:
        return rows
    return {**rows, NUMBER: torch.full((len(request.seeds),), model.adapter_place.number)}


@torch.no_grad()
def step(model: Family, rows: Rows) -> Rows:
    """Return the rows of a model, and of those that share its steps, one step further, each by its own adapter."""
    stepwise = cast(Stepwise, host_of(model))
    if model.adapter_place is None or NUMBER not in rows:
        return stepwise.step(rows)
    bank = model.adapter_place.bank
    token = bank.now.set(rows[NUMBER].tolist())
    try:
        return stepwise.step(rows)
    finally:
        bank.now.reset(token)


@contextmanager
def placed(model: Family, asked: Sequence[int]) -> Iterator[None]:
    """Say which rows of a step a call of the network is made of, where it is not all of them in their order."""
    bank: Bank | None = None if model.adapter_place is None else model.adapter_place.bank
    numbers = None if bank is None else bank.now.get()
    if bank is None or numbers is None:
        yield
        return
    token = bank.now.set([numbers[row] for row in asked])
    try:
        yield
    finally:
        bank.now.reset(token)


def _added(
    bank: Bank,
    name: str,
    _layer: nn.Module,
    args: tuple[Tensor, ...],
    out: Tensor,
) -> Tensor:
    numbers = bank.now.get()
    if numbers is None:
        return out
    x = args[0]
    x_BNI = x.flatten(1, -2) if x.dim() > 2 else x[:, None]
    for product in bank.chosen(numbers).products(name):
        out = out + product.of(x_BNI).view_as(out)
    return out
