"""A stage: a deployment that holds versions of one kind of model on one device and draws with them.

Two deployments run this class: `Generate` (models that start from a prompt or from nothing) and `Upscale` (models
that take a low-resolution picture). torch is imported with the first replica, not with this module, so that the
gateway starts without it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.work import Drawn, Event, Pictures, Pin, Preview, Refused, Work

if TYPE_CHECKING:
    from infra.registry import Registry
    from services.engine import Result
    from services.versions import Held

logger = logging.getLogger("ray.serve")


class StageArguments(BaseModel):
    """What a stage is built with; JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tracking_uri: str
    cache: Path
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1, le=64)  # of one step
    buckets: tuple[int, ...] = (1, 2, 4, 8, 16)
    max_waiting: int = Field(default=256, ge=1)  # rows
    max_bytes: int = Field(default=4 * 2**30, ge=1)  # of loaded versions


class Stage:
    """Draws pictures with pinned versions; a plain class, so that tests need no cluster."""

    def __init__(
        self,
        role: Literal["generate", "upscale"],
        arguments: Mapping[str, Any],
        registry: "Registry | None" = None,
    ) -> None:
        import torch

        from infra.registry import Registry
        from services.engine import Engine
        from services.versions import Versions

        given = StageArguments.model_validate(arguments)
        device = given.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._role = role
        self._engine = Engine(max_waiting=given.max_waiting, threads=given.threads)
        self._versions = Versions(
            registry or Registry(given.tracking_uri, given.cache),
            upscales=role == "upscale",
            device=device,
            max_bytes=given.max_bytes,
            buckets=given.buckets,
            threads=given.threads,
        )
        self._not_ours: set[str] = set()
        self._problems: dict[str, str] = {}

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Load the listed versions beside those that run; one that cannot be loaded is reported, not fatal.

        An exception here would make Serve stop this replica and the next ones, with all that they serve.
        """
        pins = [Pin(**version) for version in user_config["versions"]]
        self._versions.pin({pin.digest for pin in pins})
        self._problems = {}
        for pin in pins:
            await self._load(pin)

    async def draw(self, work: Work) -> Drawn | Refused:
        """Return the pictures of `work`, or why there are none."""
        last: Event | None = None
        async for event in self.watch(work):
            last = event
        assert isinstance(last, Drawn | Refused)
        return last

    async def watch(self, work: Work) -> AsyncIterator[Event]:
        """Yield previews as they come, then the pictures or why there are none."""
        held = await self._load(work.pin)
        if held is None:
            why = self._problems.get(work.pin.digest, "another kind of stage runs it")
            yield Refused("missing", f"{work.pin.ref}: {why}")
            return
        if refused := _check(held, work):
            yield refused
            return
        async for event in self._follow(held, work):
            yield event

    async def status(self) -> dict[str, Any]:
        """Return what is loaded, what could not be, and how many rows wait."""
        return {
            "role": self._role,
            "loaded": self._versions.digests,
            "not_ours": sorted(self._not_ours),
            "problems": dict(self._problems),
            "waiting": self._engine.waiting,
        }

    def check_health(self) -> None:
        """Tell Serve to replace this replica when its engine has died.

        Raises:
            RuntimeError: it has.
        """
        if not self._engine.alive:
            raise RuntimeError("the step engine has stopped")

    def close(self) -> None:
        """Stop the engine; what is under way fails as `stopped`."""
        self._engine.close()

    async def _load(self, pin: Pin) -> "Held | None":
        from services.versions import Unloadable, WrongRole

        if (held := self._versions.held(pin.digest)) is not None:
            return held
        if pin.digest in self._not_ours:
            return None
        try:
            held = await asyncio.to_thread(self._versions.load, pin)
        except WrongRole:
            self._not_ours.add(pin.digest)
            return None
        except Unloadable as error:
            logger.warning("%s", error)
            self._problems[pin.digest] = str(error)
            return None
        self._problems.pop(pin.digest, None)
        return held

    async def _follow(self, held: "Held", work: Work) -> AsyncIterator[Event]:
        import torch

        from models.family import Request
        from services.engine import Failed, Finished, Full, Shown

        loop = asyncio.get_running_loop()
        results: asyncio.Queue[Result] = asyncio.Queue()

        def deliver(result: "Result") -> None:
            loop.call_soon_threadsafe(results.put_nowait, result)

        request = Request(
            seeds=work.seeds,
            prompts=work.prompts,
            steps=work.steps,
            guidance=work.guidance,
            low_BCHW=None if work.low is None else torch.from_numpy(work.low.copy()),
        )
        try:
            ticket = self._engine.submit(
                held.model, request, deliver, previews=work.previews, buckets=held.buckets
            )
        except Full as full:
            yield Refused("full", str(full), full.retry_after_s)
            return
        except RuntimeError as error:
            yield Refused("stopped", str(error))
            return
        pictures: dict[int, Pictures] = {}
        try:
            while len(pictures) < len(work.seeds):
                result = await results.get()
                if isinstance(result, Failed):
                    yield Refused(result.kind, result.message)
                    return
                if isinstance(result, Shown):
                    yield Preview(row=result.row, index=result.index, picture=result.picture)
                elif isinstance(result, Finished):
                    pictures[result.row] = result.picture
            yield Drawn(_stack([pictures[row] for row in range(len(work.seeds))]))
        finally:
            self._engine.cancel(ticket)  # the client has gone, or it is over anyway


def _check(held: "Held", work: Work) -> Refused | None:
    """Refuse what the model cannot draw before it waits in the queue."""
    if not held.model.capabilities.stepwise:
        for param, value in (("steps", work.steps), ("guidance", work.guidance)):
            if value is not None:
                message = f"{param}: this model draws in one go and takes none"
                return Refused("invalid", message, param=param)
    if work.prompts:
        try:
            held.model.encode(work.prompts)
        except ValueError as error:
            return Refused("invalid", str(error), param="prompt")
    return None


def _stack(pictures: Sequence[Pictures]) -> Pictures:
    import numpy as np

    return np.stack(pictures)
