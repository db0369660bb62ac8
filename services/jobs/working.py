"""The place of what works beside the requests of a gateway: between the start and the end of the server around it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.database import DatabaseError
from infra.jobs.leases import Lease

logger = logging.getLogger("ray.serve")

AGAIN_S: Final = 5.0  # before work that broke begins again
BEATS: Final = ThreadPoolExecutor(4, thread_name_prefix="beats")
"""Threads of their own: where those of requests are all busy for longer than a lease, no job is lost by that."""
UNHEARD_S: Final = 1.0  # before a database that did not answer is asked again


async def lasting(work: Callable[[], Coroutine[Any, Any, None]], what: str) -> None:
    """Do work that has no end, and begin it again where it breaks, whatever by: nobody waits for it who would see."""
    while True:
        task = asyncio.create_task(work())
        try:
            await asyncio.wait({task})
        finally:
            await ended(task)
        logger.error("%s broke and begins again", what, exc_info=task.exception())
        await asyncio.sleep(AGAIN_S)


async def ended(task: "asyncio.Task[Any]") -> None:
    """Cancel a task and wait until it has gone."""
    task.cancel()
    await asyncio.wait({task})


async def beaten(lease: Lease, progress: float) -> bool:
    """Renew a lease and return whether its job is to be cancelled.

    A database that does not answer now ends nothing: whoever claims the job meanwhile takes the lease, and who had it
    is told so when it answers again.

    Raises:
        LeaseLost: somebody else has the job.
    """
    try:
        return await asyncio.get_running_loop().run_in_executor(BEATS, lease.beat, progress)
    except DatabaseError as error:
        logger.warning("job %s goes on without a beat: %s", lease.job.id, error)
        await asyncio.sleep(UNHEARD_S)
        return False


class Beside(Protocol):
    """Works from start to stop, in the event loop that these are called in: a runner, a courier."""

    def start(self) -> None:
        """Begin."""
        ...

    async def stop(self) -> None:
        """End, and give back what it works on."""
        ...


class Working:
    """ASGI middleware around the gateway, which starts and stops what works beside it."""

    def __init__(self, app: ASGIApp, *beside: Beside) -> None:
        self._app, self._beside = app, beside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start and stop them as the server that runs the gateway starts and ends."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                for one in self._beside:
                    one.start()
            elif message["type"] == "lifespan.shutdown":
                for one in self._beside:
                    await one.stop()
            return message

        await self._app(scope, heard, send)
