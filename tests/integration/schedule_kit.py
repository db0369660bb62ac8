"""A house with its own project, Prefect and worker, on the run's MLflow and Ray."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from infra.registry.registry import Registry
from tests.command_kit import commands
from tests.integration.project_kit import make_project
from tests.integration.serving_kit import wait_for

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

RECIPE = "tiny.yaml"
NAME = "scheduled"  # the registry is shared: versions of "tiny" are other tests'
UP = "import json; from infra.stack.stack import environment, up; up(); print(json.dumps(environment()))"


@dataclass(frozen=True)
class ScheduledHouse:
    folder: Path
    environment: dict[str, str]
    api: str

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
        with self.client() as client:
            for run in runs:
                if run.infrastructure_pid and not run.state.is_final():
                    with suppress(psutil.NoSuchProcess):
                        psutil.Process(int(run.infrastructure_pid)).kill()
                client.delete_flow_run(run.id)
        self.run("schedule", "rm", schedule)

    @contextmanager
    def client(self) -> "Iterator[SyncPrefectClient]":
        from prefect import get_client, settings

        ours = {
            settings.PREFECT_API_URL: self.api,
            settings.PREFECT_CLIENT_CUSTOM_HEADERS: json.loads(
                self.environment["PREFECT_CLIENT_CUSTOM_HEADERS"]
            ),
        }
        with settings.temporary_settings(ours), get_client(sync_client=True) as one:
            yield one

    def runs(self, schedule: str) -> list[Any]:
        """Give the schedule's runs that were begun, the newest first."""
        from flows.scheduling.schedule_runs import begun
        from flows.scheduling.schedules import _find

        with self.client() as client:
            return begun(client, _find(client, schedule).id, 50)

    def first_due(self, schedule: str) -> Any:
        """Give the run of the schedule that was due first, begun or not."""
        from prefect.client.schemas.objects import StateType

        from flows.scheduling.schedule_runs import runs_of
        from flows.scheduling.schedules import _find

        with self.client() as client:
            found = _find(client, schedule).id
            return runs_of(client, found, [*StateType], 1, newest=False)[0].id

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.environment["ATELIER_TRACKING_URI"], self.folder / "fetched")

    def versions(self, stage: str) -> list[int]:
        """Give the numbers of a stage's versions."""
        name = f"{NAME}.{stage}"
        known = self.registry.names()
        return [one.number for one in self.registry.versions(name)] if name in known else []

    def states(self, run_id: Any) -> list[str]:
        """Give the names of all states that a run was in."""
        with self.client() as client:
            return [state.name or "" for state in client.read_flow_run_states(run_id)]

    def state(self, run_id: Any) -> str:
        with self.client() as client:
            return client.read_flow_run(run_id).state_name or ""

    def worker(self) -> psutil.Process:
        """Give the process that takes runs, below its supervisor."""
        record = self.folder / ".atelier" / "run" / "worker.json"
        supervisor = psutil.Process(json.loads(record.read_text())["pid"])
        return wait_for("worker", lambda: next(iter(supervisor.children()), None))

    def log(self, part: str) -> str:
        return (self.folder / ".atelier" / "logs" / f"{part}.log").read_text()


@contextmanager
def scheduled_house(folder: Path, prefect_port: int, dvc_cache: Path) -> Iterator[ScheduledHouse]:
    """Make the project, start its Prefect and worker, and stop them."""
    make_project(folder, dvc_cache)
    recipe = Path(__file__).with_name("tiny.yaml").read_text()
    (folder / RECIPE).write_text(recipe.replace("name: tiny", f"name: {NAME}"))
    api = f"http://127.0.0.1:{prefect_port}/api"
    environment = {
        **os.environ,
        "ATELIER_PROJECT": str(folder),
        "ATELIER_HOME": ".atelier",
        "ATELIER_PREFECT_PORT": str(prefect_port),
        "ATELIER_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"],
        "ATELIER_RAY_ADDRESS": os.environ["RAY_ADDRESS"],
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / ".atelier" / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(folder / ".atelier" / "prefect" / "results"),
        "COLUMNS": "200",
    }
    house = ScheduledHouse(folder, environment, api)
    try:
        environment |= json.loads(house.python("-c", UP))  # its own Prefect has its own credential
        beat = folder / ".atelier" / "run" / "worker.beat"
        wait_for("worker", beat.exists)
        yield house
    finally:
        house.run("down")
