"""Schedules: recipes that are trained again by the clock, when their data change, or when an endpoint drifts.

A schedule is a Prefect deployment of `flows.lifecycle.retrain`, named after recipe and trigger; one that waits for an
event has an automation of the same name that runs it. Adding it again replaces it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.recipe import Recipe
from flows.recipes.loader import load
from flows.scheduling.dataset_watch import CHANGED, DRIFTED, begin, forget
from flows.scheduling.deployments import (
    TRAINING_QUEUE,
    Collision,
    Deployment,
    make_pool,
    put,
    put_automation,
)
from flows.scheduling.schedule_runs import begun, coming, runs_of, shown_run
from infra.settings import settings

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
    from prefect.events import AutomationCore

FLOW: Final = "retrain"
TAG: Final = "schedule"
DATA_TAG: Final = "on data change: "
DRIFT_TAG: Final = "on drift: "
LEAST_S: Final = (
    15  # above the 10 s that the worker takes a run before it is due: else a later one goes first
)
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class ScheduleError(ValueError):
    """A schedule that cannot be made or found, in one line with the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trigger:
    """When a recipe is trained again; one of the four is given."""

    cron: str = ""
    timezone: str = ""
    every: str = ""  # "6h", "30m"
    on_data_change: str = ""  # a dataset
    on_drift: str = ""  # an endpoint

    def __post_init__(self) -> None:
        given = [self.cron, self.every, self.on_data_change, self.on_drift]
        if sum(map(bool, given)) != 1:
            raise ScheduleError("give one of --cron, --every, --on-data-change and --on-drift")
        if self.timezone and not self.cron:
            raise ScheduleError(f"--timezone {self.timezone} goes with --cron alone")

    @property
    def name(self) -> str:
        """What it adds to the recipe's name."""
        if self.on_data_change:
            return f"on-data-{self.on_data_change}"
        return f"on-drift-{self.on_drift}" if self.on_drift else "cron" if self.cron else "every"

    @property
    def schedule(self) -> "CronSchedule | IntervalSchedule | None":
        """The clock's part.

        Raises:
            ScheduleError: not a cron line, not a length of time, or an unknown time zone.
        """
        from prefect.client.schemas.schedules import IntervalSchedule

        if self.every:
            return IntervalSchedule(interval=length(self.every))
        return _cron(self.cron, self.timezone or "UTC") if self.cron else None

    @property
    def collision(self) -> Collision:
        """What becomes of a run that is due while another of the schedule is at work.

        The clock's is dropped: the same work is being done. An event's waits: the run before it may have read the
        data as they were.
        """
        return "CANCEL_NEW" if self.cron or self.every else "ENQUEUE"

    @property
    def tag(self) -> str:
        """How a list shows what it waits for; empty for a clock."""
        if self.on_data_change:
            return DATA_TAG + self.on_data_change
        return DRIFT_TAG + self.on_drift if self.on_drift else ""


def deployment(
    recipe: str, overrides: Sequence[str], trigger: Trigger, *, to_production: bool = False
) -> Deployment:
    """Return the deployment of a schedule.

    Raises:
        ScheduleError: the trigger cannot be used.
        flows.recipe.RecipeError: the recipe cannot be used.
    """
    wanted = load(settings().project / recipe, overrides)
    return Deployment(
        flow=FLOW,
        name=f"{wanted.name}-{trigger.name}",
        entrypoint="flows/lifecycle.py:retrain",
        queue=TRAINING_QUEUE,
        description=wanted.description,
        parameters={
            "recipe": recipe,
            "overrides": list(overrides),
            "to_production": to_production,
        },
        tags=tuple(filter(None, ("atelier", TAG, trigger.tag))),
        schedule=trigger.schedule,
        collision=trigger.collision,
    )


def drift_check(endpoint: str) -> Deployment:
    """Return the hourly look at an endpoint's kept answers, which tells Prefect when they drifted."""
    from prefect.client.schemas.schedules import IntervalSchedule

    return Deployment(
        flow="drift",
        name=endpoint,
        entrypoint="flows/drift.py:drift",
        parameters={"name": endpoint},
        description=f"Looks at the kept answers of {endpoint}.",
        tags=("atelier",),
        schedule=IntervalSchedule(interval=timedelta(hours=1)),
        collision="CANCEL_NEW",
    )


def check(recipe: Path, overrides: Sequence[str], trigger: Trigger) -> Recipe:
    """Return the recipe, if a schedule with it could be made; needs no server.

    Raises:
        ScheduleError: the trigger cannot be used.
        flows.recipe.RecipeError: the recipe cannot be used, or would fail later.
        data.params.CatalogError: the trigger names an unknown dataset.
    """
    from data.params import entry
    from flows.checking import checked

    wanted, _ = checked(recipe, overrides, settings().project)
    if trigger.on_data_change:
        entry(trigger.on_data_change, settings().project)
    if trigger.on_drift and not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", trigger.on_drift):
        raise ScheduleError(f"{trigger.on_drift!r} is no endpoint's name, which is like a recipe's")
    if trigger.on_drift == wanted.name and wanted.drift is None:
        raise ScheduleError(
            f"--on-drift {wanted.name}: its recipe has no answers kept, so that drift would never show; give"
            " --set drift.sample=0.1, or write it there"
        )
    _ = trigger.schedule
    return wanted


def add(
    recipe: Path, overrides: Sequence[str], trigger: Trigger, *, to_production: bool = False
) -> str:
    """Make the schedule, or replace the one of its name; returns the name.

    Raises:
        ValueError: as `check`.
    """
    from prefect import get_client

    check(recipe, overrides, trigger)
    shown = _in_project(recipe)
    wanted = deployment(shown, overrides, trigger, to_production=to_production)
    with get_client(sync_client=True) as client:
        make_pool(client)
        if trigger.on_data_change:
            begin(client, trigger.on_data_change, settings().project)
        found = put(client, wanted)
        if trigger.on_data_change:
            resource = f"atelier.dataset.{trigger.on_data_change}"
            put_automation(client, _automation(wanted, found, CHANGED, resource))
        elif trigger.on_drift:
            resource = f"atelier.endpoint.{trigger.on_drift}"
            put(client, drift_check(trigger.on_drift))
            put_automation(client, _automation(wanted, found, DRIFTED, resource))
    return wanted.name


def listed() -> list[dict[str, Any]]:
    """Return every schedule: its trigger, whether it is paused, its next runs and its last."""
    from prefect import get_client

    with get_client(sync_client=True) as client:
        return [_listed(client, one) for one in _schedules(client)]


def pause(name: str) -> None:
    """Let a schedule start nothing until it is resumed; a run at work goes on.

    Raises:
        ScheduleError: there is no such schedule.
    """
    from prefect import get_client

    with get_client(sync_client=True) as client:
        found = _find(client, name)
        client.pause_deployment(found.id)
        for automation in client.read_automations_by_name(_rule(name)):
            client.pause_automation(automation.id)


def resume(name: str) -> None:
    """Let a paused schedule start runs again. What it missed by the clock is not made up for.

    Raises:
        ScheduleError: there is no such schedule.
    """
    from prefect import get_client

    with get_client(sync_client=True) as client:
        found = _find(client, name)
        client.resume_deployment(found.id)
        for automation in client.read_automations_by_name(_rule(name)):
            client.resume_automation(automation.id)


def remove(name: str) -> None:
    """Remove a schedule; its runs and what they made stay.

    Raises:
        ScheduleError: there is no such schedule, or a run of it is at work: Prefect would let it end no more, for
            the lease that it holds goes with the deployment. The schedule is paused then.
    """
    from prefect import get_client
    from prefect.client.schemas.objects import StateType

    pause(name)
    with get_client(sync_client=True) as client:
        found = _find(client, name)
        at_work = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
        if runs_of(client, found.id, at_work, 1, newest=True):
            raise ScheduleError(
                f"a run of {name} is at work: it is paused now; remove it when the run has ended"
            )
        for automation in client.read_automations_by_name(_rule(name)):
            client.delete_automation(automation.id)
        client.delete_deployment(found.id)
        left = {tag for one in _schedules(client) for tag in one.tags}  # paused ones', too
        dataset = _after(DATA_TAG, found.tags)
        if dataset and DATA_TAG + dataset not in left:
            forget(client, dataset)
        endpoint = _after(DRIFT_TAG, found.tags)
        if endpoint and DRIFT_TAG + endpoint not in left:
            client.delete_deployment(
                client.read_deployment_by_name(drift_check(endpoint).full_name).id
            )


def runs(name: str, limit: int = 20) -> list[dict[str, Any]]:
    """Return a schedule's runs, the newest first: when, state, the version made and what its gate said, the page.

    Raises:
        ScheduleError: there is no such schedule.
    """
    from prefect import get_client

    with get_client(sync_client=True) as client:
        return [shown_run(run) for run in begun(client, _find(client, name).id, limit)]


def watched(client: "SyncPrefectClient") -> set[str]:
    """Return the datasets that a schedule waits for."""
    found = (_after(DATA_TAG, one.tags) for one in _schedules(client) if not one.paused)
    return {name for name in found if name}


def length(text: str) -> timedelta:
    """Return the length of time that "6h", "30m", "90s" or "1d" names.

    Raises:
        ScheduleError: it names none, or one under `LEAST_S`.
    """
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        raise ScheduleError(f"--every takes a number and s, m, h or d, like 6h; got {text!r}")
    seconds = int(found[1]) * UNITS[found[2]]
    if seconds < LEAST_S:
        raise ScheduleError(f"--every {text}: at least {LEAST_S}s")
    return timedelta(seconds=seconds)


def _cron(line: str, timezone: str) -> "CronSchedule":
    from prefect.client.schemas.schedules import CronSchedule, is_valid_timezone
    from pydantic import ValidationError

    if len(line.split()) != 5:
        raise ScheduleError(
            f'--cron takes five fields (minute hour day month weekday), like "0 3 * * *"; got {line!r}'
        )
    if not is_valid_timezone(timezone):
        raise ScheduleError(f"unknown time zone {timezone!r}; one is like Europe/Berlin")
    try:
        return CronSchedule(cron=line, timezone=timezone)
    except ValidationError:
        raise ScheduleError(f'{line!r} is no cron line; one is like "0 3 * * *"') from None


def _automation(
    wanted: Deployment, deployment_id: "UUID", event: str, resource: str
) -> "AutomationCore":
    from prefect.events import AutomationCore, EventTrigger, Posture, ResourceSpecification
    from prefect.events.actions import RunDeployment

    return AutomationCore(
        name=_rule(wanted.name),
        description=f"Runs {wanted.full_name} on {event} of {resource}.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            expect={event},
            match=ResourceSpecification({"prefect.resource.id": resource}),
            threshold=1,
            within=timedelta(0),
        ),
        actions=[RunDeployment(deployment_id=deployment_id, source="selected")],
    )


def _rule(name: str) -> str:
    return f"atelier: {name}"


def _in_project(recipe: Path) -> str:
    found, root = recipe.expanduser().resolve(), settings().project.resolve()
    return (found.relative_to(root) if found.is_relative_to(root) else found).as_posix()


def _schedules(client: "SyncPrefectClient") -> "list[DeploymentResponse]":
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

    tags = DeploymentFilterTags(all_=[TAG])
    found = client.read_deployments(deployment_filter=DeploymentFilter(tags=tags), limit=200)
    return sorted(found, key=lambda one: one.name)


def _find(client: "SyncPrefectClient", name: str) -> "DeploymentResponse":
    known = {one.name: one for one in _schedules(client)}
    if name not in known:
        choices = f"choose one of {', '.join(known)}" if known else "none was added"
        raise ScheduleError(f"no schedule {name!r}; {choices}")
    return known[name]


def _after(prefix: str, tags: Sequence[str]) -> str:
    return next((tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix)), "")


def _listed(client: "SyncPrefectClient", found: "DeploymentResponse") -> dict[str, Any]:
    due = [] if found.paused else coming(client, found.id)
    last = next(iter(begun(client, found.id, 1)), None)
    return {
        "name": found.name,
        "recipe": found.parameters.get("recipe"),
        "trigger": _shown(found),
        "paused": bool(found.paused),
        "next": due,
        "last": None if last is None else shown_run(last),
    }


def _shown(found: "DeploymentResponse") -> str:
    for one in found.schedules:
        clock: Any = one.schedule
        if hasattr(clock, "cron"):
            return f"{clock.cron} {clock.timezone}"
        if hasattr(clock, "interval"):
            return f"every {clock.interval}"
    return next((tag for tag in found.tags if tag.startswith((DATA_TAG, DRIFT_TAG))), "")
