import asyncio
import base64
import dataclasses
import io
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.ledger.rollout_rules import Terms, bucket
from infra.receipts import receipts
from models.family import Family
from services.pipelines.payload import GenerationSpec
from services.routing.endpoints import Endpoint, Endpoints, Rollout, _chosen
from services.routing.observer import look

IMAGES = "/v1/images/generations"
PROMPT = "a small red circle"
names = (f"rolled{number}" for number in itertools.count())


def altered(model: Family, change: Callable[[Any], None]) -> Family:
    with torch.no_grad():
        change(model)
    return model


def black(model: Any) -> None:
    model.network.unet.out.weight.zero_()
    model.network.unet.out.bias.fill_(1e4)


def stuck(model: Any) -> None:
    black(model)
    model.network.unet.out.bias[::2] = -1e4


def not_finite(model: Any) -> None:
    model.network.unet.out.weight.fill_(torch.nan)


def longer(model: Any) -> None:
    model.config = dataclasses.replace(model.config, steps=12 * model.config.steps)


def sizes(model: Any) -> None:
    model.network.unet.out = torch.nn.Conv2d(16, 3, 3)  # fits no config: cannot be loaded


class Trial:
    """A champion in production, a challenger beside it, and a gateway."""

    def __init__(self, workshop: Any, champion: Family, challenger: Family, place: str) -> None:
        self.workshop, self.place, self.name = workshop, place, next(names)
        self.versions = [
            workshop.publish_pipeline(self.name, one) for one in (champion, challenger)
        ]
        workshop.promote(self.versions[0])
        self.stage = workshop.stage()
        self.app = workshop.gateway(self.stage, timeout_s=20.0)

    def begin(self, percent: float = 50, **limits: Any) -> None:
        terms = Terms(percent=percent, limits={"max_slowdown": 1000.0, **limits})
        head = self.workshop.ledger.head(self.name, self.place)
        epoch = head.epoch if head else 0
        self.workshop.ledger.transition(
            name=self.name,
            stage=self.place,
            to_version=2,
            to_digest=self.versions[1]["digest"],
            expected_epoch=epoch,
            key=f"{self.name}/{self.place}/{epoch}",
            actor="test",
            report={"terms": terms.model_dump()},
        )

    def run(
        self, what: Callable[[httpx.AsyncClient], Awaitable[Any]], *, settle: bool = True
    ) -> Any:
        async def inside() -> Any:
            transport = httpx.ASGITransport(self.app)
            url = "http://127.0.0.1"
            async with httpx.AsyncClient(transport=transport, base_url=url, timeout=60) as client:
                found = await what(client)
                while settle and self.workshop.arms._mirrored:
                    await asyncio.sleep(0.001)
                return found

        return asyncio.run(inside())

    def users(self, count: int, *, settle: bool = True, **changes: Any) -> list[receipts.Receipt]:
        """Send a request of each of so many users, one after another; every one is answered well."""

        async def all_of_them(client: httpx.AsyncClient) -> list[receipts.Receipt]:
            found = []
            for number in range(count):
                body = {"model": self.name, "prompt": PROMPT, "seed": number, "user": f"u{number}"}
                answer = await client.post(IMAGES, json={**body, **changes})
                assert answer.status_code == 200, answer.text
                found.append(checked(answer.json()["data"][0]["b64_json"]))
            return found

        found: list[receipts.Receipt] = self.run(all_of_them, settle=settle)
        return found

    def ended(self) -> Any:
        """The row that the gateway ended the rollout with."""
        deadline = time.monotonic() + 5
        while (row := self.workshop.ledger.head(self.name, self.place)).to_version is not None:
            assert time.monotonic() < deadline, "nobody stopped it"
            time.sleep(0.01)
        assert row.actor == "gateway"
        return row

    def tallies(self) -> Any:
        self.workshop.observer.close()
        epoch = max(
            row.epoch
            for row in self.workshop.ledger.history(self.name)
            if row.stage == self.place and row.to_version is not None
        )
        return self.workshop.observations.read(self.name, self.place, epoch)


def checked(encoded: str) -> receipts.Receipt:
    content = base64.b64decode(encoded)
    assert not look(np.asarray(Image.open(io.BytesIO(content)))).flat
    return receipts.read(content)


@pytest.fixture
def trial(workshop: Any, networks: Callable[..., Family]) -> Any:
    @contextmanager
    def making(
        change: Callable[[Any], None] | None = None, place: str = "canary"
    ) -> Iterator[Trial]:
        challenger = networks("base", 2)
        if change is not None:
            altered(challenger, change)
        made = Trial(workshop, networks("base", 1), challenger, place)
        try:
            yield made
        finally:
            workshop.observer.close()
            made.stage.close()

    return making


def test_what_a_batch_asks_for_is_the_champion_s_and_counts_for_nobody(trial: Any) -> None:
    """It waits behind people: that would be held against the challenger, who has half of the time-out."""
    with trial() as t:
        t.begin(100)
        assert {receipt.place for receipt in t.users(1)} == {"canary"}
        gateway = t.app._app
        of_a_batch = {"house": False, "owner": "", "request_id": "batch_1-0", "behind": math.inf}

        async def behind(scope: Any, receive: Any, send: Any) -> None:
            await gateway({**scope, **of_a_batch}, receive, send)

        t.app = behind
        assert {receipt.version for receipt in t.users(3)} == {f"{t.name}:1"}
        seen = t.tallies()
        assert (seen["champion"].requests, seen["challenger"].requests) == (0, 1)


class Clock:
    """Stands in for `time` where arms are timed; only `planning` moves it."""

    monotonic = staticmethod(time.monotonic)
    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    async def planning(self, _endpoint: Endpoint) -> GenerationSpec:
        self.now += 100.0
        return GenerationSpec(seeds=(1,), prompts=(PROMPT,))


def test_of_both_arms_the_drawing_is_timed_without_the_planning(
    trial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an upload has to be decoded."""
    clock = Clock()
    monkeypatch.setattr("services.routing.canary.time", clock)
    with trial() as t:
        t.begin(50)
        endpoints = Endpoints(t.workshop.ledger, t.workshop.registry)
        routes = [endpoints.route(t.name, f"u{number}") for number in range(20)]
        for chosen in (False, True):
            route = next(one for one in routes if one.chosen is chosen)
            asyncio.run(t.workshop.arms.draw(route, clock.planning))
        seen = t.tallies()
    assert clock.now == 200.0
    for arm in ("champion", "challenger"):
        assert [*seen[arm].latencies.values()] == [{bucket(0.0): 1}], arm


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 100), st.integers(1, 1000))
def test_the_share_of_sessions_is_the_percentage_and_each_keeps_its_arm(
    percent: float, epoch: int
) -> None:
    rollout = Rollout("shapes", "canary", epoch, Terms(percent=percent))
    chosen = [_chosen(rollout, f"session {number}") for number in range(3000)]
    assert (
        abs(100 * sum(chosen) / 3000 - percent)
        < 4.5 * np.sqrt(percent * (100 - percent) / 3000) + 0.1
    )
    assert chosen == [_chosen(rollout, f"session {number}") for number in range(3000)]


def test_a_canary_answers_its_share_with_receipts_that_name_its_row(trial: Any) -> None:
    with trial() as t:
        t.begin(40)
        first, again = t.users(40), t.users(40)
        arms = [receipt.place for receipt in first]
        assert arms == [receipt.place for receipt in again]
        assert 5 <= arms.count("canary") <= 28
        for receipt in first:
            version, place = (2, "canary") if receipt.place == "canary" else (1, "production")
            assert (receipt.version, receipt.place, receipt.epoch) == (
                f"{t.name}:{version}",
                place,
                1,
            )
        assert {t.users(1, model=f"{t.name}@canary")[0].version} == {f"{t.name}:2"}
        seen = t.tallies()
        assert seen["challenger"].requests == 2 * arms.count("canary")
        assert seen["champion"].requests == 2 * arms.count("production")
        assert (
            seen["challenger"].failures == seen["challenger"].flat == seen["champion"].failures == 0
        )


@pytest.mark.parametrize(
    ("change", "limits", "why", "at_most"),
    [
        (not_finite, {}, "were not finite, at most 0", 1),
        (sizes, {"min_requests": 10}, "10 of the challenger's 10 requests failed", 10),
        (black, {}, "were of one colour or empty, at most 2", 3),
        (stuck, {}, "were the same for different requests, at most 2", 4),
        (longer, {"max_slowdown": 1.5, "min_requests": 8}, "times as long, at most 1.5", 60),
    ],
)
def test_a_bad_challenger_is_stopped_and_users_see_only_good_pictures(
    trial: Any, change: Any, limits: Any, why: str, at_most: int
) -> None:
    with trial(change) as t:
        t.begin(50, **limits)
        found = t.users(90 if change is longer else 50)
        row = t.ended()
        assert why in row.reason
        assert {receipt.place for receipt in found[-10:]} == {"production"}
        assert {receipt.place for receipt in t.users(5)} == {"production"}
        assert t.tallies()["challenger"].requests <= at_most
        if change in {not_finite, sizes, black}:
            assert {receipt.version for receipt in found} == {f"{t.name}:1"}


def test_what_the_champion_does_too_is_not_held_against_the_challenger(
    workshop: Any, networks: Callable[..., Family]
) -> None:
    pale = [altered(networks("base", seed), black) for seed in (1, 2)]
    t = Trial(workshop, pale[0], pale[1], "canary")
    t.begin(50)

    async def some(client: httpx.AsyncClient) -> None:
        for number in range(30):
            body = {"model": t.name, "prompt": PROMPT, "seed": number, "user": f"u{number}"}
            assert (await client.post(IMAGES, json=body)).status_code == 200

    t.run(some)
    assert t.tallies()["challenger"].flat > 2
    assert workshop.ledger.head(t.name, "canary").to_version == 2
    t.stage.close()


def test_a_stream_falls_back_to_the_champion_even_after_sketches(trial: Any) -> None:
    with trial(black) as t:
        t.begin(100)

        async def stream(client: httpx.AsyncClient) -> list[str]:
            body = {"model": t.name, "prompt": PROMPT, "stream": True, "partial_images": 2}
            answer = await client.post(IMAGES, json=body)
            return [line for line in answer.text.splitlines() if line.startswith("data: ")]

        lines = t.run(stream)
        assert ["partial_image" in line for line in lines] == [True, True, False]
        assert f'"model":"{t.name}:1"' in lines[-1]
        assert t.tallies()["challenger"].flat == 1


def test_gateways_add_up_and_one_of_them_stops_the_challenger(trial: Any) -> None:
    with trial(black) as t:
        t.begin(100, max_flat=5)
        t.users(4)
        first = t.workshop.observer
        first.close()
        t.app = t.workshop.gateway(t.stage)
        t.users(1)
        time.sleep(0.3)  # until it has read what the first one wrote
        t.users(1)
        row = t.ended()
        assert row.reason.startswith("6 of the challenger's 6 answers")


def test_a_shadow_compares_and_the_champion_answers(trial: Any) -> None:
    with trial(place="shadow") as t:
        t.begin(100)

        async def draw(client: httpx.AsyncClient) -> None:
            for number in range(10):
                body = {"model": t.name, "prompt": PROMPT, "seed": number}
                answer = await client.post(IMAGES, json=body)
                entry = checked(answer.json()["data"][0]["b64_json"])
                assert (entry.version, entry.place) == (f"{t.name}:1", "production")
                while t.workshop.arms._mirrored:
                    await asyncio.sleep(0)

        t.run(draw)
        seen = t.tallies()
        assert seen["champion"].requests == seen["challenger"].compared == 10
        assert 0.01 < seen["challenger"].difference / 10 < 1


def test_a_bad_shadow_is_stopped_too(trial: Any) -> None:
    with trial(not_finite, "shadow") as t:
        t.begin(100)
        t.users(3)
        assert "not finite" in t.ended().reason


def test_a_shadow_that_hangs_delays_nobody_and_is_left_out(
    trial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trial(place="shadow") as t:
        t.begin(100)
        draw, challenger = t.stage.draw, t.versions[1]["stages"][0]["sha256"]

        async def hang(work: Any) -> Any:
            if work.pin.digest == challenger:
                await asyncio.Event().wait()
            return await draw(work)

        monkeypatch.setattr(t.stage, "draw", hang)
        began = time.monotonic()
        assert len(t.users(12, settle=False)) == 12
        assert time.monotonic() - began < 5  # the challenger would have had 10 s for each
        assert t.tallies()["challenger"].dropped == 8
