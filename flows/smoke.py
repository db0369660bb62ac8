"""Smoke: a handful of pictures by a version that is loaded but not yet served, drawn through the front door.

What comes back must be pictures: of the right size, not flat, not all the same. Its latency is measured beside
production's, request by request in turn, so that a busy machine is as hard on one as on the other.
"""

import base64
import binascii
import io
import os
import secrets
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from flows.judging.gate import Condition
from flows.judging.pipeline import Pipeline
from infra.serving import address
from infra.settings import settings
from infra.storage import atomic_write

if TYPE_CHECKING:
    import httpx

PICTURES: Final = 4
LEVELS: Final = (
    4  # of 256: a picture is flat with less between darkest and brightest in every channel
)
LONGEST_S: Final = 30.0  # of one picture, a full queue's waits included
ROUNDS: Final = 3  # of measuring, before a version is called slow


class SmokeFailed(ValueError):
    """The version does not answer with pictures; the message says what came instead."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version by number, and its pipeline."""

    ref: str
    pipeline: Pipeline

    def prompt(self, number: int) -> str:
        """Return a prompt that it can read: one to try, or a word it knows."""
        if self.pipeline.stages[0].accepts.prompt == "none":
            return ""
        known = self.pipeline.try_prompts or self.pipeline.vocabulary or ("",)
        return known[number % len(known)]


def draws_once(new: Candidate) -> None:
    """Check one picture: enough for a version that was served before.

    Raises:
        SmokeFailed: it is none.
    """
    with _http() as http:
        _check([_paint(http, new, 0)], new)


def smoke(new: Candidate, old: Candidate | None, max_slowdown: float) -> list[Condition]:
    """Return what the new version's pictures and latency were like, as conditions of the gate's report.

    Args:
        new: The version to try.
        old: The version in production; None: there is none to compare with.
        max_slowdown: How many times production's median latency its own may be.

    Raises:
        SmokeFailed: an answer that is no picture, or pictures that are flat or repeat.
    """
    with _http() as http:
        pictures, ours, theirs = _round(http, new, old, warm=True)
        _check(pictures, new)
        size = "{}x{}".format(*_size(new))
        says = f"{len(pictures)} pictures of {size} drawn, none flat, all different"
        found = [Condition(name="smoke", passed=True, value=len(pictures), says=says)]
        if old is None:
            return found
        for _ in range(ROUNDS - 1):
            if not theirs or _slowdown(ours, theirs) <= max_slowdown:
                break
            _, more, beside = _round(http, new, old, warm=False)
            ours, theirs = ours + more, theirs + beside
    return [*found, _compared(ours, theirs, old, max_slowdown)]


def _round(
    http: "httpx.Client", new: Candidate, old: Candidate | None, *, warm: bool
) -> tuple[list[Any], list[float], list[float]]:
    """Return the new version's pictures and both versions' seconds, drawn in turn.

    Production that cannot draw just now cannot be compared with: its seconds are then none.
    """
    pictures, ours, theirs = [], [], []
    beside = old
    for number in range(-1 if warm else 0, PICTURES):
        began = time.perf_counter()
        picture = _paint(http, new, number % (PICTURES + 1))
        passed = time.perf_counter() - began
        beside, other = _timed(http, beside, number % (PICTURES + 1))
        if number >= 0:  # the one before warms up
            pictures.append(picture)
            ours.append(passed)
            theirs.append(other)
    return pictures, ours, theirs if beside is not None else []


def _timed(
    http: "httpx.Client", old: Candidate | None, number: int
) -> tuple[Candidate | None, float]:
    """Return production and the seconds of one of its pictures, or None once it does not draw."""
    if old is None:
        return None, 0.0
    began = time.perf_counter()
    try:
        _paint(http, old, number)
    except SmokeFailed:
        return None, 0.0
    return old, time.perf_counter() - began


def _slowdown(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(ours) / statistics.median(theirs)


def _compared(ours: list[float], theirs: list[float], old: Candidate, most: float) -> Condition:
    name = "slowdown"
    if not theirs:
        return Condition(name=name, passed=True, says=f"{old.ref} draws nothing to compare with")
    value = _slowdown(ours, theirs)
    mine, other = 1000 * statistics.median(ours), 1000 * statistics.median(theirs)
    verdict = f"{value:.2f} times, {'at most' if value <= most else 'above'} {most:g}"
    says = f"latency {mine:.0f} ms beside {old.ref}'s {other:.0f} ms: {verdict}"
    return Condition(name=name, passed=value <= most, value=value, at_most=most, says=says)


def _check(pictures: list[Any], new: Candidate) -> None:
    """Refuse pictures of another size, flat ones, and the same one for different prompts and seeds."""
    width, height = _size(new)
    for number, pixels in enumerate(pictures):
        asked = f"{new.ref}, prompt {new.prompt(number)!r} and seed {number}"
        if pixels.shape[:2] != (height, width):
            got = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise SmokeFailed(f"{asked}: the picture has {got} pixels, not {width}x{height}")
        spread = int((pixels.max(axis=(0, 1)).astype(int) - pixels.min(axis=(0, 1))).max())
        if spread < LEVELS:
            raise SmokeFailed(f"{asked}: the picture is flat, {spread} levels from dark to bright")
        for earlier in range(number):
            if (pictures[earlier] == pixels).all():
                raise SmokeFailed(f"{asked}: the same picture as with seed {earlier}")


def _size(one: Candidate) -> tuple[int, int]:
    if one.pipeline.image_size is None:
        raise SmokeFailed(f"{one.ref} draws no pictures: its answers are {one.pipeline.modality}")
    return one.pipeline.image_size


def _paint(http: "httpx.Client", one: Candidate, number: int) -> Any:
    """Return one picture's pixels (H, W, 3); a full queue is waited for."""
    import httpx
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    body = {"model": one.ref, "prompt": one.prompt(number), "seed": number}
    deadline = time.monotonic() + LONGEST_S
    try:
        answer = http.post("/v1/images/generations", json=body)
        while answer.status_code in {429, 503} and time.monotonic() < deadline:
            time.sleep(0.25)
            answer = http.post("/v1/images/generations", json=body)
    except httpx.HTTPError as error:
        why = type(error).__name__
        raise SmokeFailed(f"{one.ref} did not answer within {LONGEST_S:g} s ({why})") from None
    if answer.status_code == 401:
        raise SmokeFailed("the gateway asks for an API key: name its file in ATELIER_API_KEY_FILE")
    if answer.status_code != 200:
        raise SmokeFailed(f"{one.ref} answered {answer.status_code}: {_message(answer)}")
    try:
        file = base64.b64decode(answer.json()["data"][0]["b64_json"], validate=True)
        return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    except (ValueError, LookupError, TypeError, binascii.Error, UnidentifiedImageError) as error:
        raise SmokeFailed(f"{one.ref} answered 200 without a picture: {error!r}") from None


def _message(answer: "httpx.Response") -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return answer.text[:200]


@contextmanager
def _http() -> "Iterator[httpx.Client]":
    import httpx

    with httpx.Client(
        base_url=address(settings()),
        headers={"authorization": f"Bearer {own_key()}"},
        timeout=LONGEST_S,
        trust_env=False,
    ) as client:
        yield client


def own_key() -> str:
    """Return the caller's key or, where keys were made and none was named, one of the house's own.

    The worker has no key of a person. Whoever promotes writes the ledger, and may make a key in the same database.
    """
    from infra.keys import Keys

    here = settings()
    keys = Keys(here.database)
    if here.api_key_file is not None or not keys.any():
        return here.api_key.get_secret_value()
    path = here.state / "smoke_key"
    if path.is_file() and keys.check(kept := path.read_text()):
        return kept
    made = keys.create(f"smoke {secrets.token_hex(3)}")
    with atomic_write(path) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(made.encode())
    return made
