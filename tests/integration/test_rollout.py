"""Rollouts on the served application: promotions under load, and bad challengers that nobody notices."""

import asyncio
import dataclasses
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra import serving
from infra.keys import Keys
from infra.ledger.ledger import Ledger
from infra.registry.registry import Registry
from services.routing.observer import look
from tests.integration.serving_kit import (
    NAME,
    House,
    Outcome,
    check_wired,
    in_one_process,
    pixels,
    publish,
    receipt,
    slowest,
    steadily,
    wait_for,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
LOAD = 0.5
"""Of what the house can answer a second."""
MOVES = 20


def black(model: Any) -> None:
    model.network.unet.out.weight.zero_()
    model.network.unet.out.bias.fill_(1e4)


def not_finite(model: Any) -> None:
    model.network.unet.out.weight.fill_(torch.nan)


def longer(model: Any) -> None:
    steps = 4 * model.config.steps  # twice the time of an answer
    model.config = dataclasses.replace(model.config, steps=steps)


def raises(model: Any) -> None:
    model.network.unet.out = torch.nn.Conv2d(16, 3, 3)  # the file's weights fit no network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rollout")


@pytest.fixture(scope="module")
def house(stack: Any, folder: Path) -> Iterator[House]:
    """The run's Ray, MLflow and Prefect with a ledger of its own, which the flows use too; the first in production.

    The stages are in the gateway's process; tests of serving have them apart.
    """
    from flows import context
    from infra import settings as module

    patched = pytest.MonkeyPatch()
    patched.setenv("ATELIER_DATABASE_URL", f"sqlite:///{folder / 'atelier.db'}")
    patched.setenv("ATELIER_LAYOUT", "fused")
    cached: list[Any] = [
        *(module.settings, context.ledger, context.registry, context.promotions),
    ]
    for function in cached:
        function.cache_clear()
    settings = module.settings()
    house = House(
        settings,
        Keys(settings.database).create("tests"),
        Ledger(settings.database),
        Registry(settings.mlflow_uri, settings.state / "versions"),
    )
    for seed in (1, 2, 3):
        publish(house, folder, seed)
    house.promote(1)
    with house.client:
        yield house
    serving.stop(settings)
    patched.undo()
    for function in cached:
        function.cache_clear()


def versions(outcomes: list[Outcome]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in outcomes:
        version = receipt(one.data[0]).version
        found[version] = found.get(version, 0) + 1
    return found


def all_well(outcomes: list[Outcome]) -> None:
    failed = [one for one in outcomes if one.status != 200]
    assert not failed, f"{len(failed)} of {len(outcomes)} failed: {failed[0].data}"
    assert not [one for one in outcomes if look(pixels(one.data[0])).flat]


def test_twenty_promotions_and_rollbacks_under_load_fail_no_request(house: House) -> None:
    began: list[datetime] = []
    first = max(house.moved)

    def moves() -> None:
        for number in range(MOVES):
            began.append(house.promote_and_see(1 if number % 2 else 2))

    outcomes = asyncio.run(steadily(house, 40, LOAD, {20: moves}, lambda _number: {"steps": 2}))
    all_well(outcomes)
    receipts = [receipt(one.data[0]) for one in outcomes]
    took: dict[int, timedelta] = {}
    for found, one in zip(receipts, outcomes, strict=True):
        assert found.place == "production"
        assert house.stood(found, one.sent, one.answered)
        if found.epoch > first:
            after = one.answered - began[found.epoch - first - 1]
            took[found.epoch] = min(after, took.get(found.epoch, after))
    assert len(took) == MOVES
    rollbacks = sorted(took[epoch].total_seconds() for epoch in took if (epoch - first) % 2 == 0)
    elapsed = (outcomes[-1].answered - outcomes[0].sent) / timedelta(seconds=1)
    print(  # noqa: T201
        f"\n{MOVES} moves: 0 of {len(outcomes)} failed at {len(outcomes) / elapsed:.1f} requests/s,"
        f" slowest {slowest(outcomes):.2f} s; a rollback to its first answer: median"
        f" {rollbacks[len(rollbacks) // 2]:.2f} s, longest {rollbacks[-1]:.2f} s"
    )


def test_a_gateway_with_its_stages_inside_draws_the_bytes_of_one_process(house: House) -> None:
    state = serving.status(house.settings)
    assert state is not None
    assert list(state["deployments"]) == ["Gateway"]
    answer = house.draw(model=f"{NAME}:1", n=3, extra_body={"seed": 5})
    for entry, expected in zip(answer.data, in_one_process(house, 1, (5, 6, 7)), strict=True):
        np.testing.assert_array_equal(pixels(entry), expected)


def test_a_cascade_of_two_inputs_and_an_edit_are_the_same_in_the_gateway_s_process(
    house: House, tmp_path: Path
) -> None:
    check_wired(house, tmp_path, 22)


def test_a_gateway_that_is_killed_with_its_stages_fails_no_request(house: House) -> None:
    pid = house.replica("Gateway")
    outcomes = asyncio.run(steadily(house, 40, 0.2, {10: lambda: os.kill(pid, signal.SIGKILL)}))
    all_well(outcomes)
    assert house.replica("Gateway") != pid


def test_a_canary_takes_its_share_and_is_taken_back(house: House) -> None:
    from flows.promotion.rollout import RolloutError, end_rollout, rollout_status, start_rollout

    row = start_rollout(f"{NAME}:3", "canary", 40, {"max_slowdown": 100})
    assert (row["stage"], row["to_version"], row["report"]["terms"]["percent"]) == ("canary", 3, 40)
    with pytest.raises(RolloutError, match=f"a canary of {NAME}:3 is running"):
        start_rollout(f"{NAME}:2", "shadow", 10)
    outcomes = asyncio.run(
        steadily(house, 60, LOAD, {}, lambda number: {"user": f"user {number}", "seed": number})
    )
    all_well(outcomes)
    share = versions(outcomes)
    assert share.keys() == {f"{NAME}:1", f"{NAME}:3"}
    assert house.draw(model=f"{NAME}@canary").data
    end_rollout(NAME, "seen enough")
    after = asyncio.run(steadily(house, 12, LOAD, {}, lambda number: {"user": f"user {number}"}))
    assert versions(after).keys() == {f"{NAME}:1"}

    def told() -> Any:  # the gateway writes once a second
        found = rollout_status(NAME)
        arms = found["arms"]
        return found if arms["challenger"]["requests"] >= share[f"{NAME}:3"] else None

    found = wait_for("tally", told)
    assert found["ended"]["reason"] == "seen enough"
    assert found["arms"]["champion"]["requests"] == share[f"{NAME}:1"]
    assert found["arms"]["challenger"]["failures"] == 0


def test_what_cannot_be_rolled_out_is_refused_in_a_line(house: House) -> None:
    from flows.promotion.rollout import RolloutError, end_rollout, start_rollout
    from infra.registry.registry import RegistryError

    with pytest.raises(RolloutError, match="in production already"):
        start_rollout(f"{NAME}:1", "canary", 10)
    with pytest.raises(RolloutError, match="is a stage, not a pipeline"):
        start_rollout(f"{NAME}.base:1", "canary", 10)
    with pytest.raises(RegistryError, match="99"):
        start_rollout(f"{NAME}:99", "canary", 10)
    with pytest.raises(RolloutError, match="no rollout of"):
        end_rollout(NAME, "nothing to end")


def test_a_version_that_raises_at_load_is_not_rolled_out_and_breaks_no_later_deploy(
    house: House, folder: Path
) -> None:
    from flows.promotion.release import serve_wanted
    from flows.promotion.rollout import start_rollout

    version = publish(house, folder, 11, raises)
    before = house.ledger.head(NAME, "canary")
    with pytest.raises(serving.ServingError, match="cannot be loaded"):
        start_rollout(version.ref, "canary", 50)
    assert house.ledger.head(NAME, "canary") == before
    assert version.ref not in serve_wanted()
    all_well(asyncio.run(steadily(house, 10, LOAD, {}, lambda number: {"user": f"user {number}"})))


@pytest.mark.parametrize(
    ("seed", "change", "why"),
    [
        (12, not_finite, "not finite"),
        (13, black, "of one colour"),
        (14, longer, "times as long"),
    ],
    ids=["NaN weights", "black pictures", "slow"],
)
def test_a_bad_challenger_is_stopped_and_no_user_notices(
    house: House, folder: Path, seed: int, change: Any, why: str
) -> None:
    from flows.promotion.rollout import start_rollout

    version = publish(house, folder, seed, change)
    start_rollout(version.ref, "canary", 50, {"min_requests": 10})

    def asking(number: int) -> dict[str, Any]:
        return {"user": f"user {number}", "seed": number}

    def ended() -> Any:
        row = house.ledger.head(NAME, "canary")
        return row if row and row.to_version is None else None

    outcomes = asyncio.run(steadily(house, 1, LOAD, {0: lambda: wait_for("end", ended)}, asking))
    row = ended()
    assert row.actor == "gateway"
    assert why in row.reason
    seen_by_every_gateway = row.at + timedelta(seconds=1)
    wait_for("second", lambda: datetime.now(UTC) > seen_by_every_gateway)
    late = asyncio.run(steadily(house, 12, LOAD, {}, asking))
    all_well([*outcomes, *late])
    assert versions(late).keys() == {f"{NAME}:1"}
    if change is not longer:
        assert versions(outcomes).keys() == {f"{NAME}:1"}
    after = (row.at - outcomes[0].sent).total_seconds()
    print(f"\nstopped after {after:.1f} s: {row.reason}")  # noqa: T201
