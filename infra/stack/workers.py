"""Whether a worker of ours lives: what finishes promotions, takes up killed runs and watches data.

Beside a Prefect of our own `up` keeps one. Elsewhere it is a service that somebody has to run, `atelier worker`; it
shows itself in Prefect's work pool under this name, also where the pool's runs are another worker's.
"""

import socket
from typing import Final

from infra.stack.spec import POOL, parts

NAMED: Final = "atelier on "
SHOWN_S: Final = 15
"""How often a worker shows itself; Prefect takes it for offline after three times that."""


def name() -> str:
    """Return this machine's worker's name; its runs carry it, so that a pid is looked for on the right machine."""
    return f"{NAMED}{socket.gethostname()}"


def living() -> list[str]:
    """Return the names of the workers that showed themselves lately.

    Raises:
        PrefectException, httpx.HTTPError: Prefect refuses or does not answer.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import WorkerStatus

    with get_client(sync_client=True) as client:
        try:
            found = client.read_workers_for_work_pool(POOL)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 404:  # no pool: no worker has ever been here
                return []
            raise
    return [
        one.name
        for one in found
        if one.name.startswith(NAMED) and one.status == WorkerStatus.ONLINE
    ]


def missing() -> str | None:
    """Return what to tell who needs a worker and has none; None where one lives or `up` keeps it."""
    if not any(part.name == "prefect" and part.external for part in parts()):
        return None
    import httpx
    from prefect.exceptions import PrefectException

    try:
        if living():
            return None
    except (PrefectException, httpx.HTTPError, ValueError) as error:  # or it is no Prefect
        why = " ".join(str(error).split()) or type(error).__name__
        return f"whether a worker lives is not known: {why[:200]}"
    return (
        f"no worker lives in the work pool {POOL!r}: nothing finishes a killed promotion, takes up a killed run or"
        " watches data until `atelier worker` runs somewhere as a service"
    )
