"""Schedules and triggers as a user has them: a real Prefect server, the stack's own worker, real trainings."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.scheduling import schedules
from flows.scheduling.dataset_watch import (
    DRIFTED,
    REST_S,
    Watch,
    begin,
    emit,
    forget,
    remember,
    seen,
)
from flows.scheduling.deployments import Deployment, put, submit
from flows.scheduling.worker import look_at
from tests.command_kit import begun
from tests.integration.schedule_kit import NAME, RECIPE, ScheduledHouse, scheduled_house
from tests.integration.serving_kit import wait_for

pytestmark = pytest.mark.cluster

STEPS = {"base": 41, "upsampler": 200}
SILENT = """
import time
from prefect import flow
@flow
def silent():
    print("begun", flush=True)
    time.sleep(600)
silent()
"""
RESTING = """
from prefect import flow
from prefect.flow_runs import suspend_flow_run
@flow
def resting() -> str:
    suspend_flow_run(timeout=600)
    return "rested"
"""


@pytest.fixture(scope="module")
def house(
    stack: Mapping[str, float], dvc_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScheduledHouse]:
    with scheduled_house(tmp_path_factory.mktemp("project"), dvc_cache) as one:
        yield one


@pytest.fixture(scope="module")
def killed_at(house: ScheduledHouse) -> float:
    """When a flow of no deployment was killed, after a heartbeat of its own: only its silence tells."""
    with begun(
        [sys.executable, "-c", SILENT], cwd=house.folder, env=house.environment,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"

        def beaten() -> bool:
            run = house.run_of("silent")
            beats = {"event": {"name": ["prefect.flow-run.heartbeat"]}}
            beats["resource"] = {"id": [f"prefect.flow-run.{run.id}"]}
            body = {"filter": beats}
            found = house.client.request("POST", "/events/filter", json=body).json()
            return bool(found["total"])

        wait_for("heartbeat", beaten)
        process.send_signal(signal.SIGKILL)
    return time.monotonic()


def ended(house: ScheduledHouse, schedule: str) -> Any:
    """Give the schedule's first run, once it has begun and then ended."""

    def first() -> Any:
        return next(iter(house.runs(schedule)[::-1]), None)

    run = wait_for(f"run of {schedule}", first)
    return wait_for(f"end of {run.name}", lambda: (now := first()).state.is_final() and now)


def remove(house: ScheduledHouse, schedule: str) -> None:
    """Remove a schedule: refused, and paused, while a run is at work, as may be one that was due at that time."""

    def removed() -> bool:
        done = house.tried("-m", "flows", "schedule", "rm", schedule)
        assert done.returncode == 0 or f"a run of {schedule} is at work" in done.stdout, done.stdout
        return done.returncode == 0

    wait_for("removal", removed)


def process_of(run: Any) -> psutil.Process:
    return psutil.Process(int(run.infrastructure_pid))


def test_a_schedule_fires_on_time_and_its_version_is_a_candidate_with_a_gate_report(
    house: ScheduledHouse,
) -> None:
    with house.schedule("--every", "15s") as name:
        first = ended(house, name)
        house.run("schedule", "pause", name)
        assert first.state_name == "Completed", first.state
        late = (first.start_time - first.expected_start_time).total_seconds()
        print(f"\nlate by {late:.2f} s, done in {first.total_run_time.total_seconds():.0f} s")  # noqa: T201
        assert late >= -0.5
        assert house.due(name)[0].id == first.id, "a later one went before it"

        shown = house.json("schedule", "runs", name)
        made = shown[-1]["version"]
        assert made == f"{NAME}:1"
        assert shown[-1]["gate"] == "passed"
        assert shown[-1]["page"].endswith(f"/runs/flow-run/{first.id}")
        overlapping = [run["state"] for run in shown[:-1]]
        assert set(overlapping) <= {"Cancelled", "Pending", "Submitting", "Running", "Completed"}
        if first.total_run_time.total_seconds() > 20:
            assert "Cancelled" in overlapping, "two trainings of one schedule at a time"

        candidate = house.registry.get(f"{NAME}@candidate")
        assert candidate.ref == made
        assert (house.registry.fetch(candidate) / "report.json").is_file()
        assert house.json("history", NAME) == [], "it went further than it was asked to"

        (listed,) = house.json("schedule", "list")
        assert (listed["paused"], listed["next"]) == (True, [])
        house.run("schedule", "resume", name)
        assert wait_for("next run", lambda: house.json("schedule", "list")[0]["next"])
        remove(house, name)
    assert house.json("schedule", "list") == []


@pytest.mark.usefixtures("killed_at")  # so early that the last test waits for little
def test_changed_data_start_one_run_that_goes_on_when_it_is_killed_with_its_worker(
    house: ScheduledHouse,
) -> None:
    """A touch starts none. What goes on begins with the last finished step."""
    drawn_by = house.folder / "data" / "makers" / "digits.py"
    steps = [f"stages.{stage}.training.steps={count}" for stage, count in STEPS.items()]
    words = [word for one in steps for word in ("--set", one)]

    def glance() -> str:
        known = seen(house.client, "digits")
        assert known is not None
        return str(known["glance"])

    before = house.versions("base")
    with house.schedule(*words, "--on-data-change", "digits") as name:
        seen_first = glance()
        drawn_by.touch()
        wait_for("look at the touched file", lambda: glance() != seen_first)
        assert house.runs(name) == []

        house.worker().kill()
        with drawn_by.open("a") as file:
            file.write("\n# drawn anew\n")
        wait_for("trained stage", lambda: house.versions("base") != before)
        (run,) = house.runs(name)
        trained, worker = house.versions("base"), house.worker()
        for process in (worker, process_of(run)):
            process.kill()
        began = time.monotonic()
        wait_for("crash", lambda: "Crashed" in house.states(run.id))
        crashed = time.monotonic() - began
        wait_for("second attempt", lambda: house.states(run.id).count("Running") == 2)
        again = time.monotonic() - began
        refused = house.tried("-m", "flows", "schedule", "rm", name)
        if house.state(run.id) == "Running":
            assert f"a run of {name} is at work" in refused.stdout
            assert [one["paused"] for one in house.json("schedule", "list")] == [True]
        done = ended(house, name)
        text = f"CRASHED after {crashed:.0f} s, at work again after {again:.0f} s"
        print(f"\nkilled with its worker: {text}")  # noqa: T201
        assert house.worker().pid != worker.pid
        assert (done.id, done.state_name, done.run_count) == (run.id, "Completed", 2), done.state
        assert done.parameters == run.parameters
        assert len(trained) == len(before) + 1
        assert house.versions("base") == trained, "a finished step was repeated"
        assert len(house.runs(name)) == 1
        remove(house, name)
    assert seen(house.client, "digits") is None


def test_the_drift_of_its_endpoint_makes_one_run_due_and_another_s_none(
    house: ScheduledHouse,
) -> None:
    asked = ("--on-drift", NAME, "--set", "drift.sample=0.1")
    with house.at_rest(), house.schedule(*asked) as name:
        emit(house.client, DRIFTED, "atelier.endpoint.another", {})
        emit(house.client, DRIFTED, f"atelier.endpoint.{NAME}", {"share": 0.4})
        (run,) = wait_for("run that is due", lambda: house.due(name))
        assert run.parameters["recipe"] == RECIPE
        house.client.delete_flow_run(run.id)
        remove(house, name)


def test_a_look_that_took_long_puts_off_no_other(
    house: ScheduledHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine, or while a new worker imports what it looks with."""
    pictures, walk = tmp_path / "pictures", os.walk
    pictures.mkdir()
    entry = "{maker: folder, path: pictures, image_size: 8}"
    (tmp_path / "params.yaml").write_text(f"datasets:\n  walked: {entry}\n")

    def slowly(*words: Any) -> Any:
        time.sleep(0.3)
        return walk(*words)

    begin(house.client, "walked", tmp_path)
    watch = Watch("walked", tmp_path)
    with monkeypatch.context() as slow:
        slow.setattr(os, "walk", slowly)
        assert not watch.look(house.client)
    (pictures / "one.png").write_bytes(b"one")
    assert not watch.look(house.client), "it may be on its way"
    time.sleep(REST_S)  # for its one file
    assert watch.look(house.client)
    forget(house.client, "walked")


def test_a_dataset_that_is_gone_keeps_nobody_from_the_others(
    house: ScheduledHouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pictures").mkdir()
    entry = "{maker: folder, path: pictures, image_size: 8}"
    (tmp_path / "params.yaml").write_text(f"datasets:\n  left: {entry}\n")
    watches = [Watch("gone", tmp_path), Watch("left", tmp_path)]
    try:
        with caplog.at_level("WARNING"):
            look_at(watches, house.client)
            look_at(watches, house.client)
        assert [one.getMessage().partition(":")[0] for one in caplog.records] == [
            "gone cannot be watched"
        ], "once: it rests"
        assert seen(house.client, "left") is not None
    finally:
        forget(house.client, "left")


def test_what_was_seen_of_data_is_known_until_no_schedule_is_left_that_waits_for_them(
    house: ScheduledHouse,
) -> None:
    for name in ("paused", "other"):
        tags = ("atelier", schedules.TAG, f"{schedules.DATA_TAG}digits")
        put(
            house.client,
            Deployment(
                flow="retrain", name=name, entrypoint="flows/lifecycle.py:retrain", tags=tags
            ),
        )
        schedules.pause(name)
    remember(house.client, "digits", "as it looked", "as it was")
    schedules.remove("other")
    assert seen(house.client, "digits") == {"glance": "as it looked", "content": "as it was"}
    schedules.remove("paused")
    assert seen(house.client, "digits") is None


def test_a_suspended_run_holds_no_process_and_goes_on_when_it_is_resumed(
    house: ScheduledHouse,
) -> None:
    (house.folder / "flows" / "resting.py").write_text(RESTING)
    run_id = house.begin("resting", "flows/resting.py:resting")
    refused = submit("promote", {"ref": "nothing:1"})
    wait_for("suspension", lambda: house.state(run_id) == "Suspended")
    pid = int(house.client.read_flow_run(run_id).infrastructure_pid)
    wait_for("end of the process", lambda: not psutil.pid_exists(pid))
    began = time.monotonic()
    house.client.resume_flow_run(run_id)
    wait_for("end", lambda: house.state(run_id) == "Completed")
    print(f"\nresumed and done after {time.monotonic() - began:.0f} s")  # noqa: T201
    wait_for("refusal", lambda: house.state(refused) == "Failed")


def test_a_killed_flow_of_no_deployment_is_crashed_within_90_seconds(
    house: ScheduledHouse, killed_at: float
) -> None:
    run = house.run_of("silent")
    wait_for("crash", lambda: house.state(run.id) == "Crashed")
    state = house.client.read_flow_run(run.id).state
    assert state is not None
    after = (datetime.now(UTC) - state.timestamp).total_seconds()
    seconds = time.monotonic() - killed_at - after
    print(f"\nkilled without a word: CRASHED after {seconds:.0f} s")  # noqa: T201
    assert seconds < 90
    assert os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
