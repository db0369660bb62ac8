"""Two trainings and one slot, over the run's own Prefect."""

import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import IO, Any

import pytest

from flows.recipe import Resources
from flows.scheduling.concurrency import slots_of
from tests.command_kit import begun
from tests.flows.training_kit import wait_until

TRAINS = """
import sys, time
from types import SimpleNamespace as Spec
from prefect import flow
from flows.recipe import Resources
from flows.scheduling.concurrency import training_slots

@flow
def trains():
    with training_slots([Spec(resources=Resources())]):
        print("trains", flush=True)
        sys.stdin.read()
    print("trained", flush=True)

trains()
"""


def training() -> AbstractContextManager["subprocess.Popen[str]"]:
    return begun(
        [sys.executable, "-c", TRAINS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def streams(process: "subprocess.Popen[str]") -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


@pytest.mark.cluster
def test_a_second_training_waits_for_the_first_and_not_for_a_killed_one(
    stack: Mapping[str, float],
) -> None:
    from prefect import get_client

    with training() as first:
        assert streams(first)[1].readline() == "trains\n"
        with training() as second:
            with get_client(sync_client=True) as client:
                wait_until(lambda: client.count_flow_runs() >= 2)
                limit = client.read_global_concurrency_limit_by_name("training")
                assert (limit.limit, limit.active_slots) == (1, 1)
            first.kill()
            began = time.monotonic()
            assert streams(second)[1].readline() == "trains\n"
            seconds = time.monotonic() - began
            print(f"\na killed training's slot: free after {seconds:.1f} s")  # noqa: T201
            assert seconds < 20, "it waited for the lease"
            with training() as third:
                streams(second)[0].close()
                assert streams(second)[1].readline() == "trained\n"
                assert streams(third)[1].readline() == "trains\n"
                streams(third)[0].close()
                assert streams(third)[1].readline() == "trained\n"
    with get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name("training").active_slots == 0


@pytest.mark.parametrize(
    ("workers", "gpus", "on_gpus", "on_cpus"),
    [(0, "auto", 1, 1), (1, "auto", 1, 2), (4, "auto", 4, 8), (4, 0.5, 2, 8), (2, 0, 1, 4)],
)
def test_a_training_takes_a_slot_a_gpu_or_else_a_cpu_and_one_at_least(
    workers: int, gpus: Any, on_gpus: int, on_cpus: int
) -> None:
    resources = Resources(num_workers=workers, gpus_per_worker=gpus, cpus_per_worker=2)
    spec: Any = SimpleNamespace(resources=resources)
    assert slots_of(spec, on_gpus=True) == on_gpus
    assert slots_of(spec, on_gpus=False) == on_cpus


def test_an_elastic_training_takes_the_slots_of_its_most_workers() -> None:
    spec: Any = SimpleNamespace(resources=Resources(num_workers=2, elastic=(1, 4)))
    assert slots_of(spec, on_gpus=True) == 4
