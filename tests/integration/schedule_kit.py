"""A house with a project of its own, for which the run's worker works."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from infra.registry.registry import Registry
from infra.settings import settings
from infra.stack.spec import POOL, beat_file, parts
from infra.stack.stack import up
from tests.command_kit import commands
from tests.integration.project_kit import make_project
from tests.integration.serving_kit import wait_for

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

RECIPE = "tiny.yaml"
NAME = "scheduled"  # the registry is shared: versions of "tiny" are other tests'


@dataclass(frozen=True)
class ScheduledHouse:
    folder: Path
    environment: dict[str, str]
    client: "SyncPrefectClient"

    def tried(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `python words...`, however it ends."""
        if words[:2] == ("-m", "flows"):
            done = commands.run(*words[2:], cwd=self.folder, env=self.environment)
            done.stdout += done.stderr
        else:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=self.folder, env=self.environment, text=True, timeout=300,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        assert "Traceback" not in done.stdout
        return done

    def python(self, *words: str, code: int = 0) -> str:
        done = self.tried(*words)
        assert done.returncode == code, done.stdout
        return done.stdout

    def run(self, *words: str, code: int = 0) -> str:
        """Run `atelier words...`; give what it printed."""
        return self.python("-m", "flows", *words, code=code)

    def json(self, *words: str) -> Any:
        printed = self.run(*words, "--json")
        starts = [line for line in printed.splitlines(keepends=True) if line[0] in "[{"]
        return json.loads(printed[printed.index(starts[0]) :])

    @contextmanager
    def schedule(self, *words: str) -> Iterator[str]:
        """Add a schedule; gives its name. Where the block fails it goes with its runs, and the next test meets none."""
        name = self.json("schedule", "add", RECIPE, *words)["name"]
        passed = False
        try:
            yield name
            passed = True
        finally:
            if not passed:
                self._clear(name)

    def _clear(self, schedule: str) -> None:
        if self.tried("-m", "flows", "schedule", "pause", schedule).returncode:
            return  # it is gone already
        runs = self.runs(schedule)
        for run in runs:
            if run.infrastructure_pid and not run.state.is_final():
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(int(run.infrastructure_pid)).kill()
            self.client.delete_flow_run(run.id)
        self.run("schedule", "rm", schedule)

    def runs(self, schedule: str) -> list[Any]:
        """Give the schedule's runs that were begun, the newest first."""
        from flows.scheduling.schedule_runs import begun
        from flows.scheduling.schedules import _find

        return begun(self.client, _find(self.client, schedule).id, 50)

    def begin(self, flow: str, entrypoint: str) -> Any:
        """Have the worker run a flow of the project; gives the id of its run."""
        deployment = self.client.create_deployment(
            flow_id=self.client.create_flow_from_name(flow),
            name="atelier", entrypoint=entrypoint, work_pool_name=POOL, work_queue_name="default",
        )  # fmt: skip
        return self.client.create_flow_run_from_deployment(deployment).id

    def run_of(self, flow: str) -> Any:
        """Give the one run of a flow."""
        from prefect.client.schemas.filters import FlowFilter, FlowFilterName

        wanted = FlowFilter(name=FlowFilterName(any_=[flow]))
        (run,) = self.client.read_flow_runs(flow_filter=wanted)
        return run

    def due(self, schedule: str) -> list[Any]:
        """Give every run of the schedule, begun or not, by the time at which it is due."""
        from prefect.client.schemas.objects import StateType

        from flows.scheduling.schedule_runs import runs_of
        from flows.scheduling.schedules import _find

        return runs_of(self.client, _find(self.client, schedule).id, [*StateType], 50, newest=False)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Have the worker take no run meanwhile."""
        from prefect.client.schemas.actions import WorkPoolUpdate

        self.client.update_work_pool(POOL, WorkPoolUpdate(is_paused=True))
        try:
            yield
        finally:
            self.client.update_work_pool(POOL, WorkPoolUpdate(is_paused=False))

    @cached_property
    def registry(self) -> Registry:
        return Registry(settings().mlflow_uri, self.folder / "fetched")

    def versions(self, stage: str) -> list[int]:
        """Give the numbers of a stage's versions."""
        name = f"{NAME}.{stage}"
        known = self.registry.names()
        return [one.number for one in self.registry.versions(name)] if name in known else []

    def states(self, run_id: Any) -> list[str]:
        """Give the names of all states that a run was in."""
        return [state.name or "" for state in self.client.read_flow_run_states(run_id)]

    def state(self, run_id: Any) -> str:
        return self.client.read_flow_run(run_id).state_name or ""

    def worker(self) -> psutil.Process:
        """Give the process that takes runs, below its supervisor."""
        (part,) = (one for one in parts() if one.name == "worker")
        assert part.daemon is not None
        supervisor = psutil.Process(part.daemon.pid)
        return wait_for("worker", lambda: next(iter(supervisor.children()), None))


@contextmanager
def scheduled_house(folder: Path, dvc_cache: Path) -> Iterator[ScheduledHouse]:
    """Make the project, and have the run's worker work for it."""
    from prefect import get_client

    make_project(folder, dvc_cache)
    recipe = Path(__file__).with_name("tiny.yaml").read_text()
    (folder / RECIPE).write_text(recipe.replace("name: tiny", f"name: {NAME}"))
    environment = {
        **os.environ,
        "ATELIER_PROJECT": str(folder),
        "ATELIER_DATABASE_URL": f"sqlite:///{folder / 'atelier.db'}",
        "COLUMNS": "200",
    }
    _end_worker()
    beat_file().unlink(missing_ok=True)
    with get_client(sync_client=True) as client:
        _start_worker(environment)
        wait_for("worker", beat_file().exists)
        yield ScheduledHouse(folder, environment, client)


def _start_worker(environment: Mapping[str, str]) -> None:
    """Start what alone is missing, for the house; `atelier up` would deploy a gateway, too, that nobody asks."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ATELIER_PROJECT", "ATELIER_DATABASE_URL"):
            patch.setenv(name, environment[name])
        patch.chdir(environment["ATELIER_PROJECT"])
        settings.cache_clear()
        up()
    settings.cache_clear()


def _end_worker() -> None:
    """End the run's worker; the house's, which takes its place, works until the stack ends."""
    (worker,) = (part for part in parts() if part.name == "worker")
    daemon = worker.daemon
    assert daemon is not None
    worker.record.unlink()  # or the keeper would start it again
    daemon.stop()
