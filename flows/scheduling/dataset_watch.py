"""Watched datasets: a change of their data becomes one Prefect event, also a change made while nobody looked.

What was seen last is a Prefect variable beside the schedules, so a worker that starts again, anywhere, knows it.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from data import watch

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

CHANGED: Final = "atelier.data.changed"
REST_S: Final = 1e-3
"""After a glance, a file: a million are glanced at each quarter of an hour. Not a share of the time that a glance took,
for one on a busy machine would put off the next for minutes."""
DRIFTED: Final = "atelier.drift.detected"


class Watch:
    """One dataset under watch."""

    def __init__(self, dataset: str, project: Path) -> None:
        self.dataset = dataset
        self.project = project
        self._settled = ""  # the glance at which nothing was to do
        self._last = ""
        self._not_before = 0.0

    def look(self, client: "SyncPrefectClient") -> bool:
        """Glance at the files, and where they moved and then rested for a look, at their bytes; say whether it told.

        The event is with the server before the state is written: a crash between the two tells twice, never not
        at all, and a run that finds nothing new repeats no step.

        Raises:
            data.params.CatalogError: the dataset is gone from params.yaml, or its entry cannot be used.
        """
        if time.monotonic() < self._not_before:
            return False
        now, files = watch.glance(self.dataset, self.project)
        self.rest(REST_S * files)
        moved, self._last = now != self._last, now
        if now == self._settled:
            return False
        known = seen(client, self.dataset)
        if known is not None and known["glance"] == now:
            self._settled = now
            return False
        if known is not None and moved:
            return False  # being copied, perhaps: what moves is not data yet
        content = watch.content(self.dataset, self.project)
        told = known is not None and known["content"] != content
        if known is not None and told:
            payload = {"before": known["content"], "now": content}
            emit(client, CHANGED, f"atelier.dataset.{self.dataset}", payload)
        remember(client, self.dataset, now, content)
        self._settled = now
        return told

    def rest(self, seconds: float) -> None:
        """Look at nothing for so long."""
        self._not_before = time.monotonic() + seconds


def begin(client: "SyncPrefectClient", dataset: str, project: Path) -> None:
    """Take the data as they are for seen, unless they are watched already."""
    if seen(client, dataset) is None:
        now = watch.glance(dataset, project).digest
        remember(client, dataset, now, watch.content(dataset, project))


def forget(client: "SyncPrefectClient", dataset: str) -> None:
    """Drop what was seen: nobody watches the dataset any more."""
    from prefect.exceptions import ObjectNotFound

    try:
        client.delete_variable_by_name(_variable(dataset))
    except ObjectNotFound:
        return


def seen(client: "SyncPrefectClient", dataset: str) -> dict[str, Any] | None:
    """Return the glance and the content that were seen last, or None."""
    found = client.read_variable_by_name(_variable(dataset))
    if found is None or not isinstance(found.value, dict):
        return None
    return dict(found.value)


def remember(client: "SyncPrefectClient", dataset: str, glance: str, content: str) -> None:
    """Write what was seen."""
    from prefect.client.schemas.actions import VariableCreate, VariableUpdate

    name, value = _variable(dataset), {"glance": glance, "content": content}
    if client.read_variable_by_name(name) is None:
        client.create_variable(VariableCreate(name=name, value=value, tags=["atelier"]))
    else:
        client.update_variable(VariableUpdate(name=name, value=value, tags=["atelier"]))


def emit(client: "SyncPrefectClient", event: str, resource: str, payload: dict[str, Any]) -> None:
    """Hand an event to the server; it is there when this returns."""
    from prefect.events import Event, Resource

    told = Event(event=event, resource=Resource({"prefect.resource.id": resource}), payload=payload)
    client.request("POST", "/events", json=[told.model_dump(mode="json")]).raise_for_status()


def _variable(dataset: str) -> str:
    return f"atelier-seen-{dataset}"
