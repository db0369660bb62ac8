import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.autoregressive.pixelcnn import PixelCNN
from models.family import Family
from models.request import Request
from services.stages.batch_invariance import agreeing
from services.stages.deployment import BATCHES
from services.stages.engine import Engine
from services.stages.scheduler import Failed, Finished, Full, Shown
from tests.models.families_kit import batch_of, counted, tiny

PATIENCE_S = 60


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def base(networks: Callable[..., Family]) -> Family:
    return networks("base")


class Inbox(Queue[Any]):
    """What an engine delivered for one ticket."""

    def pictures(self, count: int) -> list[Any]:
        found: dict[int, Any] = {}
        while len(found) < count:
            result = self.get(timeout=PATIENCE_S)
            assert isinstance(result, Finished | Shown), result
            if isinstance(result, Finished):
                found[result.row] = result.made
        return [found[row] for row in range(count)]


def order(*seeds: int, prompt: str = "a red circle", **options: Any) -> Request:
    return Request(seeds=seeds, prompts=(prompt,) * len(seeds), **options)


class Held:
    """A model whose first step waits for a word, so that a queue can be filled behind it."""

    def __init__(self, model: Family) -> None:
        self._model = model
        self.go, self.stepping = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def step(self, rows: Any) -> Any:
        self.stepping.set()
        assert self.go.wait(PATIENCE_S)
        model: Any = self._model
        return model.step(rows)


@settings(max_examples=15, deadline=None)
@given(
    orders=st.lists(
        st.tuples(st.integers(0, 2**53 - 1), st.integers(1, 6), st.integers(1, 5)),
        min_size=2,
        max_size=6,
    )
)
def test_a_seed_gives_the_same_bits_alone_and_among_others(
    engine: Engine, base: Family, orders: list[tuple[int, int, int]]
) -> None:
    requests = [order(*range(seed, seed + n), steps=steps) for seed, n, steps in orders]
    alone = []
    for request in requests:
        inbox = Inbox()
        engine.submit(base, request, inbox.put)
        alone.append(inbox.pictures(len(request.seeds)))
    inboxes = [Inbox() for _ in requests]
    for request, inbox in zip(requests, inboxes, strict=True):
        engine.submit(base, request, inbox.put)
    for request, inbox, before in zip(requests, inboxes, alone, strict=True):
        np.testing.assert_array_equal(inbox.pictures(len(request.seeds)), before)


@pytest.mark.parametrize(("kind", "least"), [("base", 2), ("upscaler", 4), ("vae", 4)])
def test_batches_of_four_and_more_give_equal_bits_and_of_two_where_text_doubles_the_call(
    networks: Callable[..., Family], kind: str, least: int
) -> None:
    agreed = agreeing(networks(kind), BATCHES)
    assert set(agreed) >= {size for size in BATCHES if size >= least}


def test_the_sizes_that_agree_give_a_seed_its_bits_alone_and_among_others(
    engine: Engine, base: Family
) -> None:
    sizes = agreeing(base, BATCHES)
    pictures = []
    for request in (
        order(5),
        order(4, 5),
        order(3, 4, 5),
        order(*range(1, 6)),
        order(*range(5, 17)),
    ):
        inbox = Inbox()
        engine.submit(base, request, inbox.put, buckets=sizes)
        pictures.append(inbox.pictures(len(request.seeds))[request.seeds.index(5)])
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


def test_a_batch_size_that_changes_the_bits_is_left_out(base: Family) -> None:
    class Sensitive(Held):
        call_sizes = None  # it does not fill up its calls itself

        def step(self, rows: Any) -> Any:
            model: Any = self._model
            moved = model.step(rows)
            return {**moved, "x0": moved["x0"] + (1e-3 if len(rows["x"]) == 8 else 0)}

    model: Any = Sensitive(base)
    assert agreeing(model, (4, 8, 16)) == (4, 16)


def test_sounds_that_last_unequally_agree_where_the_shorter_one_ends_in_silence() -> None:
    """Else every sentence was filled up to the largest batch."""
    torch.manual_seed(0)
    pieces = tiny("unit-selection")
    voices = {
        "unit-selection": counted(pieces, batch_of(pieces)).eval(),
        "vits-checkpoint": tiny("vits-checkpoint").eval(),
    }
    for name, model in voices.items():
        assert agreeing(model, (1, 2, 4)) == (1, 2, 4), name


def test_a_call_size_that_changes_the_bits_is_left_out_and_a_batch_may_have_any_size(
    networks: Callable[..., Family],
) -> None:
    model: Any = networks("base")
    changed = model.network.register_forward_hook(
        lambda *given: given[2] + 1e-3 * (len(given[2]) == 8)
    )
    assert agreeing(model, (1, 8)) == tuple(range(1, 9))
    changed.remove()
    assert {4, 6, 16} <= {*model.call_sizes}
    assert 8 not in model.call_sizes


def test_a_volume_has_its_bits_in_a_batch_of_any_size(engine: Engine) -> None:
    """None is filled up: a volume beside those that were asked for would cost as much as each of them."""
    model = tiny("dreamfusion").eval()
    sizes = agreeing(model, (1, 8))
    assert sizes == tuple(range(1, 9))
    found = []
    for seeds in ((5,), (3, 4, 5)):
        inbox = Inbox()
        engine.submit(model, Request(seeds=seeds), inbox.put, buckets=sizes)
        found.append(inbox.pictures(len(seeds))[-1])
    np.testing.assert_array_equal(*found)


def test_a_row_keeps_its_bits_whoever_is_guided_beside_it_and_joins_when(
    engine: Engine, networks: Callable[..., Family]
) -> None:
    """Alone, and among one to fifteen others whose steps and guidance differ: calls of all sizes."""
    model = networks("base")
    sizes = agreeing(model, BATCHES)
    watched = [order(seed, steps=5, guidance=scale) for seed, scale in ((7, 1.0), (7, 2.0))]
    for request in watched:
        found = []
        for others in (0, 1, 2, 6, 15):
            inbox, *beside = [Inbox() for _ in range(1 + others)]
            for seed, one in enumerate(beside):
                another = order(seed, steps=1 + seed % 6, guidance=1.0 + seed % 3)
                engine.submit(model, another, one.put, buckets=sizes)
            engine.submit(model, request, inbox.put, buckets=sizes)
            found += inbox.pictures(1)
            for one in beside:
                one.pictures(1)
        for picture in found[1:]:
            np.testing.assert_array_equal(picture, found[0])


def test_the_engine_draws_what_the_family_draws(engine: Engine, base: Family) -> None:
    inbox = Inbox()
    engine.submit(base, order(3, 4, 5, 6), inbox.put)
    ours = torch.from_numpy(np.stack(inbox.pictures(4)))
    torch.testing.assert_close(ours, base.sample(order(3, 4, 5, 6)), rtol=0, atol=1e-4)


def test_a_late_request_joins_the_batch_under_way(base: Family) -> None:
    engine, model = Engine(), Held(base)
    slow, quick = Inbox(), Inbox()
    held: Any = model
    engine.submit(held, order(1, steps=40), slow.put)
    assert model.stepping.wait(PATIENCE_S)
    engine.submit(held, order(2, steps=1), quick.put)
    model.go.set()
    quick.pictures(1)
    assert slow.empty()
    slow.pictures(1)
    engine.close()


def test_previews_are_spread_over_the_steps(engine: Engine, base: Family) -> None:
    inbox = Inbox()
    engine.submit(base, order(1, steps=8), inbox.put, previews=3)
    kinds = [inbox.get(timeout=PATIENCE_S) for _ in range(4)]
    assert [event.index for event in kinds[:3]] == [0, 1, 2]
    assert isinstance(kinds[3], Finished)
    differences = [float(np.abs(e.picture - kinds[3].made).mean()) for e in kinds[:3]]
    assert differences[2] < differences[0]


def test_a_full_queue_refuses_and_says_when_to_come_back(base: Family) -> None:
    engine, model = Engine(max_waiting=4), Held(base)
    held: Any = model
    first, second = Inbox(), Inbox()
    engine.submit(held, order(*range(16)), first.put)
    assert model.stepping.wait(PATIENCE_S)
    engine.submit(held, order(*range(4)), second.put)
    with pytest.raises(Full, match="4 samples are waiting, at most 4 may") as refused:
        engine.submit(held, order(9), Inbox().put)
    assert 1 <= refused.value.retry_after_s <= 120
    model.go.set()
    first.pictures(16)
    second.pictures(4)
    engine.close()


def test_a_cancelled_request_leaves_the_queue_and_the_batch(base: Family) -> None:
    engine, model = Engine(), Held(base)
    held: Any = model
    running, waiting, other = Inbox(), Inbox(), Inbox()
    ticket = engine.submit(held, order(*range(16), steps=1000), running.put)
    assert model.stepping.wait(PATIENCE_S)
    queued = engine.submit(held, order(*range(8)), waiting.put)
    assert engine.waiting == 8
    engine.cancel(queued)
    assert engine.waiting == 0
    engine.cancel(ticket)
    model.go.set()
    engine.submit(held, order(5), other.put)
    other.pictures(1)
    assert running.empty()
    assert waiting.empty()
    engine.close()


def test_what_a_model_refuses_fails_its_own_request_only(engine: Engine, base: Family) -> None:
    bad, good = Inbox(), Inbox()
    engine.submit(base, order(1, 2, prompt="a purple circle"), bad.put)
    engine.submit(base, order(1), good.put)
    good.pictures(1)
    failure = bad.get(timeout=PATIENCE_S)
    assert failure == Failed("invalid", failure.message)
    assert "purple" in failure.message
    assert bad.empty()


@pytest.mark.parametrize("kind", [RuntimeError, IndexError, AttributeError, AssertionError])
def test_a_model_that_breaks_fails_its_rows_and_the_engine_goes_on(
    engine: Engine, base: Family, kind: type[Exception]
) -> None:
    class Broken(Held):
        def step(self, rows: Any) -> Any:
            raise kind(f"out of memory for {len(rows)} tensors")

    broken: Any = Broken(base)
    bad, good = Inbox(), Inbox()
    engine.submit(broken, order(1), bad.put)
    failure = bad.get(timeout=PATIENCE_S)
    assert (failure.kind, failure.message[:31]) == ("failed", "the model broke: out of memory ")
    engine.submit(base, order(1), good.put)
    good.pictures(1)


def test_closing_fails_what_is_under_way(base: Family) -> None:
    engine, model = Engine(), Held(base)
    held: Any = model
    inbox = Inbox()
    engine.submit(held, order(1, steps=1000), inbox.put)
    assert model.stepping.wait(PATIENCE_S)
    model.go.set()
    engine.close()
    assert inbox.get(timeout=PATIENCE_S) == Failed("stopped", "the replica stopped while drawing")
    with pytest.raises(RuntimeError, match="stopped"):
        engine.submit(base, order(1), inbox.put)


@pytest.mark.parametrize("kind", ["base", "vae"])
def test_numbers_that_are_not_finite_fail_the_request_and_are_never_delivered(
    engine: Engine, networks: Callable[..., Family], kind: str
) -> None:
    model, inbox = networks(kind), Inbox()
    with torch.no_grad():
        list(model.parameters())[-1].fill_(torch.nan)
    request = order(1, 2) if kind == "base" else Request(seeds=(1, 2))
    engine.submit(model, request, inbox.put, previews=1)
    result = inbox.get(timeout=PATIENCE_S)
    assert result == Failed("not_finite", "the model gave numbers that are not finite")
    healthy = Inbox()
    engine.submit(networks("vae"), Request(seeds=(1,)), healthy.put)
    assert np.isfinite(healthy.pictures(1)[0]).all()
    assert inbox.empty()


def test_a_model_that_only_paints_captions_is_tried_with_one() -> None:
    torch.manual_seed(0)
    config = replace(PixelCNN.presets["tiny"], vocabulary=("one", "two"), max_words=1)
    assert agreeing(PixelCNN(config).eval(), (1, 2))[-1] == 2
