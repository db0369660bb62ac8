"""Low-rank adapters on every family with attention: what learns, what stays, and rows of several in one step."""

import dataclasses
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import FAMILIES, build, describe, trainable
from models.family import Family, Rows
from models.parts import adapter_rows, lora
from models.parts.lora import LoRA
from models.parts.rows import join, take
from models.request import Request
from tests.models.families_kit import batch_of, request, shaken, tiny

ADAPTED = tuple(name for name in FAMILIES if trainable(name).adapts)
STEPWISE = tuple(name for name in ADAPTED if tiny(name).capabilities.stepwise)
WORDS = ("red", "green", "blue")


def base_of(name: str) -> Family:
    """A tiny model, of captions where it reads any, with no weight at zero."""
    names = {one.name for one in dataclasses.fields(trainable(name).Config)}
    if "vocabulary" not in names:
        return shaken(name)
    reads = {"text": "caption"} if "text" in names else {}
    model = tiny(name, vocabulary=WORDS, max_words=3, **reads)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def adapted(base: Family, rank: int = 2, new: Sequence[str] = (), seed: int = 1) -> Family:
    """An adapter of a base, begun as training begins it, from the document that names it."""
    document = describe(base)
    known: dict[str, int] = {}
    if new:
        document["config"]["vocabulary"] = (*base.config.vocabulary, *new)
        rows = base.state_dict()
        wider = build(document).state_dict()
        grown = [name for name in rows if rows[name].shape != wider[name].shape]
        known = {name.removesuffix(".weight"): len(rows[name]) for name in grown}
    asked = LoRA(rank, 2.0 * rank, lora.adaptable(base), "toys.base:1", "f" * 64, known)
    document["lora"] = dataclasses.asdict(asked)
    torch.manual_seed(seed)
    model = build(json.loads(json.dumps(document)))
    assert isinstance(model, Family)
    lora.fill(model, base.state_dict(), lora.own(model))
    return model.eval()


def learned(base: Family, rank: int = 2, new: Sequence[str] = (), seed: int = 1) -> Family:
    """An adapter with numbers in its B."""
    model = adapted(base, rank, new, seed)
    for name, tensor in lora.own(model).items():
        if name.endswith("up"):
            tensor.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return model


def merged(model: Family, base: Family) -> Family:
    """The same network without an adapter: W + alpha / rank B A, and the further words among the others."""
    found = build(_plain(model))
    assert isinstance(found, Family)
    state = {k: v.clone() for k, v in model.state_dict().items() if ".lora." not in k}
    for name, one in model.named_modules():
        weight = f"{name.removesuffix('.lora')}.weight"
        if isinstance(one, lora.LowRank):
            state[weight] += one.scale * one.up @ one.down
        if isinstance(one, lora.Words):
            state[weight][one.known :] += lora.GAIN * one.rows
    found.load_state_dict(state)
    return found.eval()


def _plain(model: Family) -> dict[str, Any]:
    return {name: value for name, value in describe(model).items() if name != "lora"}


def loss_of(model: Family, batch: dict[str, torch.Tensor], seed: int = 3) -> torch.Tensor:
    torch.manual_seed(seed)
    return model(batch).total


@pytest.mark.parametrize("name", ADAPTED)
def test_an_adapter_begins_as_its_base_and_alone_has_gradients(name: str) -> None:
    base = base_of(name)
    model, batch = adapted(base), batch_of(base)
    assert loss_of(model, batch).item() == loss_of(base, batch).item()
    asked = request(base, (1, 2))
    assert torch.equal(model.sample(asked), base.sample(asked))
    model.requires_grad_(requires_grad=False)
    model = adapted(base).train()
    loss_of(model, batch).backward()
    moved = {name for name, one in model.named_parameters() if one.grad is not None}
    assert moved == {name for name in lora.own(model) if name in dict(model.named_parameters())}
    assert any(one.grad is not None and one.grad.abs().max() > 0 for one in model.parameters())


@pytest.mark.parametrize("name", ADAPTED)
def test_an_adapted_network_is_that_with_the_product_in_its_weights(name: str) -> None:
    """In the loss, in what is drawn, and in every cache that a sampler keeps: no layer is gone past."""
    base = base_of(name)
    model = learned(base)
    whole, batch = merged(model, base), batch_of(base)
    ours, theirs, before = (
        torch.stack([loss_of(one, batch, seed) for seed in range(3)])
        for one in (model, whole, base)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - before).abs().max() > 1e-4, "of one draw, a mean may be the same by chance"
    if model.capabilities.modality == "image":
        asked = request(base, (1, 2))
        torch.testing.assert_close(model.sample(asked), whole.sample(asked), rtol=0, atol=1e-3)
        assert not torch.allclose(model.sample(asked), base.sample(asked), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ADAPTED)
def test_the_adapters_tensors_are_its_own_and_the_base_is_shared(name: str) -> None:
    base = base_of(name)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = learned(base)
    theirs = {tensor.data_ptr() for tensor in base.state_dict().values()}
    mine = lora.own(model)
    assert not theirs & {tensor.data_ptr() for tensor in mine.values()}
    shared = {k: v for k, v in model.state_dict().items() if k not in mine}
    assert {tensor.data_ptr() for tensor in shared.values()} == theirs
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    again = build(json.loads(json.dumps(describe(model))))
    lora.fill(again, base.state_dict(), mine)
    batch = batch_of(base)
    assert torch.equal(loss_of(again.eval(), batch), loss_of(model, batch))


@pytest.mark.parametrize(
    ("name", "table"), [("ddpm", "text.words"), ("edm", "text.words"), ("dalle", "tokens")]
)
def test_a_further_word_is_a_row_that_belongs_to_the_adapter(name: str, table: str) -> None:
    base = base_of(name)
    model = learned(base, new=("teal",))
    assert len(lora.own(model)[f"{table}.lora.rows"]) == 1
    asked = Request(seeds=(1,), prompts=("teal",))
    whole = merged(model, base)
    torch.testing.assert_close(model.sample(asked), whole.sample(asked), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="unknown word 'teal'"):
        base.sample(asked)
    begun, known = adapted(base, new=("teal",)), Request(seeds=(1,), prompts=("red green",))
    assert torch.equal(begun.sample(known), base.sample(known))
    batch = {**batch_of(base, 2), "tokens": torch.tensor([[1, 4, 0], [4, 2, 0]])}
    torch.testing.assert_close(loss_of(model, batch), loss_of(whole, batch), rtol=1e-4, atol=1e-5)
    loss_of(begun.train(), batch).backward()
    rows = dict(begun.named_parameters())[f"{table}.lora.rows"]
    assert rows.grad is not None
    assert rows.grad.abs().max() > 0


@pytest.mark.parametrize(
    "name", [one for one in ADAPTED if "diffusers" not in one]
)  # of many networks
def test_every_layer_that_a_family_declares_is_there(name: str) -> None:
    assert lora.adaptable(base_of(name)) == trainable(name).adapts


def test_targets_that_are_not_there_are_refused_by_name() -> None:
    base = base_of("ddpm")
    with pytest.raises(ValueError, match="targets: there is no 'key'; choose from qkv, context"):
        lora.attach(base, LoRA(2, 2, ("qkv", "key"), "toys.base:1", "f" * 64))
    with pytest.raises(ValueError, match="it has no attention"):
        lora.attach(tiny("vae"), LoRA(2, 2, ("qkv",), "toys.base:1", "f" * 64))
    with pytest.raises(RuntimeError, match="beside its own, and nothing else has"):
        lora.fill(base, base.state_dict(), {})
    model = adapted(base)
    with pytest.raises(RuntimeError, match=r"is a tensor of the base, toys\.base:1, and of"):
        lora.fill(model, base.state_dict(), model.state_dict())


def joined(models: Sequence[Family], which: Sequence[int], steps: int, size: int) -> Rows:
    """Take steps of one batch whose rows are of these models, padded as the engine does."""
    rows = [adapter_rows.begin(models[n], request(models[0], (10 + n,))) for n in which]
    batch = join(rows)
    batch = take(batch, [*range(len(rows)), *[0] * (size - len(rows))])
    for _ in range(steps):
        batch = adapter_rows.step(models[0], batch)
    return batch


@cache
def alone(name: str, number: int) -> Rows:
    return joined(_opened(name), [number], steps=3, size=4)


@pytest.mark.parametrize("name", STEPWISE)
@settings(max_examples=8, deadline=None)
@given(which=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_each_row_of_a_mixed_step_batch_has_the_bits_that_it_has_alone(
    name: str, which: list[int]
) -> None:
    """The base, two adapters of one rank and one of another; every tensor that rows keep is compared.

    A row that longer ones fill up goes through kernels of their length, which round otherwise.
    """
    together = joined(_opened(name), which, steps=3, size=4)
    for place, number in enumerate(which):
        for key, tensor in alone(name, number).items():
            mine = together[key][place] if key in together else None
            if key == adapter_rows.NUMBER or mine is None:
                continue
            part = mine[: tensor.shape[1]] if tensor.dim() > 1 else mine
            if part.shape == mine.shape:
                assert torch.equal(part, tensor[0]), (key, which)
            else:
                torch.testing.assert_close(part, tensor[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", STEPWISE)
def test_a_row_of_an_adapter_is_drawn_as_by_its_own_network(name: str) -> None:
    models = _opened(name)
    steps = models[0].steps_of(request(models[0], (0,)))
    rows = joined(models, [0, 1, 2, 3], steps=steps, size=4)
    stepwise: Any = models[0]
    drawn = stepwise.preview(rows).float()
    for number, model in enumerate(models):
        own: Any = model
        mine = own.begin(request(models[0], (10 + number,)))
        for _ in range(steps):
            mine = own.step(mine)
        expected = own.preview(mine)[0].float()
        torch.testing.assert_close(drawn[number][..., : expected.shape[-1]], expected, rtol=0, atol=1e-4)  # fmt: skip


OPENED: dict[str, list[Family]] = {}


def _opened(name: str) -> list[Family]:
    """A base that is open to adapters, with three."""
    if name not in OPENED:
        base = base_of(name)
        adapter_rows.open_to_adapters(base)
        further = [learned(base, rank, seed=seed) for rank, seed in ((2, 1), (2, 2), (3, 3))]
        for one in further:
            assert base.adapter_place is not None
            base.adapter_place.bank.join(one, base)
        OPENED[name] = [base, *further]
    return OPENED[name]
