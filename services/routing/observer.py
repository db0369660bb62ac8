"""What this gateway sees of the rollouts: counted by arm, written down every second, and judged after every request.

A verdict against the challenger holds here at once; the ledger's row, which ends the rollout for every gateway,
follows from a thread of its own, so that no request waits for the database.
"""

import hashlib
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from infra.ledger.ledger import Conflict, KeyReused, Ledger
from infra.ledger.rollout_metrics import Observations
from infra.ledger.rollout_rules import Arm, Tally, verdict
from infra.media.blank import FLAT, SILENT, contrast, swing
from infra.media.clips import Clip
from infra.media.meshes import SURFACE
from services.media.codecs import Sound, Volume
from services.pipelines.payload import Text
from services.pipelines.request import One
from services.routing.endpoints import Rollout

logger = logging.getLogger("ray.serve")

REMEMBERED: Final = 4096  # pictures of an arm, to see one again
ROLLOUTS: Final = 64  # kept in memory, the newest
AWRY: Final = (RuntimeError, ValueError, TypeError, LookupError, OSError)
SHAPES: Final = 32  # of requests, whose latencies are kept apart
SAME_SIGNS: Final = 16  # so many of one sign and no other are no text

Asked: TypeAlias = tuple[int, str]
"""What makes a sample different from others: its seed and its prompt."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a finished sample looks like, as far as a rollout cares."""

    flat: bool  # one colour, silence, or no text
    digest: bytes | None  # None: it may rightly come again for another request


def look(one: One) -> Look:
    """Return whether there is nothing in a sample, and a digest of it.

    A picture of one colour, a silent sound; a text that is empty or one sign over and over. Short texts come again
    rightly ("yes"), so a text has no digest.
    """
    if isinstance(one, Text):
        signs = "".join(one.text.split())
        return Look(len(set(signs)) <= 1 and len(signs) not in range(1, SAME_SIGNS), None)
    if isinstance(one, Clip):
        flat = contrast(one.frames.reshape(1, -1, one.frames.shape[3])) < FLAT
        return Look(flat, hashlib.blake2b(one.frames.tobytes(), digest_size=16).digest())
    if isinstance(one, Sound):
        levels = one.levels
        return Look(
            swing(levels) < SILENT, hashlib.blake2b(levels.tobytes(), digest_size=16).digest()
        )
    if isinstance(one, Volume):
        empty = bool(one.levels[3].max() <= SURFACE)
        return Look(empty, hashlib.blake2b(one.levels.tobytes(), digest_size=16).digest())
    return Look(contrast(one) < FLAT, hashlib.blake2b(one.tobytes(), digest_size=16).digest())


def asked(seed: int, prompt: str) -> Asked:
    """Return what was asked for; spelling that a tokenizer may drop makes no difference."""
    return seed, " ".join(prompt.casefold().split())


@dataclass(eq=False, slots=True)
class _State:
    rollout: Rollout
    own: dict[Arm, Tally] = field(
        default_factory=lambda: {"champion": Tally(), "challenger": Tally()}
    )
    others: dict[Arm, Tally] = field(
        default_factory=lambda: {"champion": Tally(), "challenger": Tally()}
    )
    pictures: OrderedDict[tuple[Arm, bytes], Asked] = field(default_factory=OrderedDict)
    unwritten: bool = False
    next_write: float = 0.0  # monotonic
    stopped: str | None = None  # why
    ended: bool = False  # in the ledger too


class Observer:
    """Counts, writes and judges; its methods may be called from any thread and wait for nothing."""

    def __init__(self, ledger: Ledger, observations: Observations, *, every_s: float = 1.0) -> None:
        self._ledger = ledger
        self._observations = observations
        self._every_s = every_s
        self._gateway = secrets.token_hex(8)
        self._states: OrderedDict[tuple[str, str, int], _State] = OrderedDict()
        self._changed = threading.Condition()
        self._closing = False
        self._writer: threading.Thread | None = None

    def stopped(self, rollout: Rollout) -> bool:
        """Return whether the challenger was judged, so that it gets no more requests whatever the ledger says yet."""
        found = self._states.get(rollout.key)
        return found is not None and found.stopped is not None

    def count(self, rollout: Rollout, arm: Arm, seen: Tally) -> None:
        """Add what an arm did with a request, then judge."""
        with self._changed:
            state = self._state(rollout)
            own = state.own[arm]
            if len(own.latencies) >= SHAPES:
                seen.latencies = {k: v for k, v in seen.latencies.items() if k in own.latencies}
            own.add(seen)
            fresh = not state.unwritten
            state.unwritten = True
            if self._judge(state) or fresh:
                self._start()
                self._changed.notify()

    def repeated(
        self, rollout: Rollout, arm: Arm, looks: Sequence[Look], wanted: Sequence[Asked]
    ) -> bool:
        """Return whether a picture (flat ones apart) is one that this arm drew before for another seed or prompt."""
        with self._changed:
            pictures, found = self._state(rollout).pictures, False
            for one, what in zip(looks, wanted, strict=True):
                if not one.flat and one.digest is not None:
                    found |= pictures.setdefault((arm, one.digest), what) != what
            while len(pictures) > REMEMBERED:
                pictures.popitem(last=False)
            return found

    def close(self) -> None:
        """Write what is left and stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._writer is not None:
            self._writer.join(10)

    def _state(self, rollout: Rollout) -> _State:
        if rollout.key not in self._states:
            while len(self._states) >= ROLLOUTS:
                self._states.popitem(last=False)
            self._states[rollout.key] = _State(rollout)
        return self._states[rollout.key]

    def _judge(self, state: _State) -> bool:
        """Return whether the challenger is stopped by what is known now and was not before."""
        if state.stopped is not None:
            return False
        both: dict[Arm, Tally] = {}
        for arm, tally in state.own.items():
            both[arm] = tally.model_copy(deep=True)
            both[arm].add(state.others[arm])
        limits = state.rollout.terms.limits
        state.stopped = verdict(limits, both["champion"], both["challenger"])
        if state.stopped is not None:
            state.next_write = 0.0
        return state.stopped is not None

    def _start(self) -> None:
        if self._writer is None and not self._closing:
            self._writer = threading.Thread(target=self._work, name="rollouts", daemon=True)
            self._writer.start()

    def _work(self) -> None:
        while not self._closing:
            for state in self._due():
                self._write(state)
        for state in self._left():
            self._write(state)

    def _left(self) -> list[_State]:
        return [
            state
            for state in self._states.values()
            if state.unwritten or (state.stopped is not None and not state.ended)
        ]

    def _due(self) -> list[_State]:
        """Wait until something is to be written; returns none when closing."""
        with self._changed:
            while not self._closing:
                now, left = time.monotonic(), self._left()
                if due := [state for state in left if state.next_write <= now]:
                    return due
                soonest = min((state.next_write for state in left), default=None)
                self._changed.wait(None if soonest is None else soonest - now)
        return []

    def _write(self, state: _State) -> None:
        """Write one rollout's tallies, learn what the other gateways counted, and end it where it is to be ended."""
        rollout = state.rollout
        with self._changed:
            own = {arm: tally.model_copy(deep=True) for arm, tally in state.own.items()}
            state.unwritten = False
            state.next_write = time.monotonic() + self._every_s
        try:
            self._observations.record(*rollout.key, self._gateway, own)
            others = self._observations.read(*rollout.key, without=self._gateway)
            with self._changed:
                state.others = others
                self._judge(state)
            if state.stopped is not None and not state.ended:
                self._end(state, state.stopped)
        except AWRY as error:  # DatabaseError among them; the thread goes on
            logger.warning("what a rollout showed cannot be written: %s", error)
            state.unwritten = True

    def _end(self, state: _State, reason: str) -> None:
        """Take the challenger out in the ledger, unless another gateway or a person did."""
        name, place, epoch = state.rollout.key
        logger.warning("the %s of %s is stopped: %s", place, name, reason)
        try:
            self._ledger.transition(
                name=name,
                stage=place,
                to_version=None,
                to_digest=None,
                expected_epoch=epoch,
                key=f"{name}/{place}/{epoch}/abort",
                actor="gateway",
                reason=reason,
            )
        except (Conflict, KeyReused) as error:
            logger.info("it was ended already: %s", error)
        state.ended = True
