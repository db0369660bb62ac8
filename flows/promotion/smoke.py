"""Smoke: a handful of answers by a version that is loaded but not yet served, asked for through the front door.

What comes back must be what the version promises, see `smoke_checks`: pictures of the right size, not flat and not
all the same; sound that is not silent; text that is there; embeddings. Its latency is measured beside
production's, request by request in turn, so that a busy machine is as hard on one as on the other.
"""

import os
import secrets
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final

from flows.evaluating.gate import Condition
from flows.promotion.smoke_checks import ANSWERS, MALFORMED, Candidate, SmokeFailed, tryout
from infra.serving import address
from infra.settings import settings
from infra.storage import atomic_write

if TYPE_CHECKING:
    import httpx

LONGEST_S: Final = 30.0  # of one answer, a full queue's waits included
LONGEST_JOB_S: Final = 600.0  # of one clip or mesh
ROUNDS: Final = 3  # of measuring, before a version is called slow


def draws_once(new: Candidate) -> None:
    """Check one answer: enough for a version that was served before.

    Raises:
        SmokeFailed: it is no good.
    """
    with _http() as http:
        tryout(new.pipeline).check(new, [_ask(http, new, 0)])


def smoke(new: Candidate, old: Candidate | None, max_slowdown: float) -> list[Condition]:
    """Return what the new version's answers and latency were like, as conditions of the gate's report.

    Args:
        new: The version to try.
        old: The version in production; None: there is none to compare with.
        max_slowdown: How many times production's median latency its own may be.

    Raises:
        SmokeFailed: an answer that is none, or is no good.
    """
    with _http() as http:
        made, ours, theirs = _round(http, new, old, warm=True)
        says = tryout(new.pipeline).check(new, made)
        found = [Condition(name="smoke", passed=True, value=len(made), says=says)]
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
    """Return the new version's answers and both versions' seconds, asked in turn.

    Production that cannot answer just now cannot be compared with: its seconds are then none.
    """
    made, ours, theirs = [], [], []
    beside = old
    for number in range(-1 if warm else 0, tryout(new.pipeline).answers):
        began = time.perf_counter()
        answer = _ask(http, new, number % (ANSWERS + 1))
        passed = time.perf_counter() - began
        beside, other = _timed(http, beside, number % (ANSWERS + 1))
        if number >= 0:  # the one before warms up
            made.append(answer)
            ours.append(passed)
            theirs.append(other)
    return made, ours, theirs if beside is not None else []


def _timed(
    http: "httpx.Client", old: Candidate | None, number: int
) -> tuple[Candidate | None, float]:
    """Return production and the seconds of one of its answers, or None once it gives none."""
    if old is None:
        return None, 0.0
    began = time.perf_counter()
    try:
        _ask(http, old, number)
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


def _ask(http: "httpx.Client", one: Candidate, number: int) -> Any:
    """Return one answer, read; a full queue is waited for."""
    import httpx

    how = tryout(one.pipeline)
    body = how.body(one, number)
    deadline = time.monotonic() + LONGEST_S
    try:
        answer = http.post(how.path, json=body)
        while answer.status_code in {429, 503} and time.monotonic() < deadline:
            time.sleep(0.25)
            answer = http.post(how.path, json=body)
    except httpx.HTTPError as error:
        why = type(error).__name__
        raise SmokeFailed(f"{one.ref} did not answer within {LONGEST_S:g} s ({why})") from None
    if answer.status_code == 401:
        raise SmokeFailed(
            "the gateway does not know a key that was made here: it reads another database than"
            " ATELIER_DATABASE_URL names"
        )
    if answer.status_code != 200:
        raise SmokeFailed(f"{one.ref} answered {answer.status_code}: {_message(answer)}")
    try:
        return how.read(_made(http, one, answer.json()["id"]) if how.job else answer.json())
    except MALFORMED as error:
        article = "an" if how.noun[0] in "aeiou" else "a"
        without = f"{one.ref} answered 200 without {article} {how.noun}"
        raise SmokeFailed(f"{without}: {error!r}") from None


def _made(http: "httpx.Client", one: Candidate, job: str) -> bytes:
    """Return the file that a job makes, and forget the job."""
    deadline = time.monotonic() + LONGEST_JOB_S
    path = f"{tryout(one.pipeline).path}/{job}"
    try:
        while (found := http.get(path).json())["status"] in {"queued", "in_progress"}:
            if time.monotonic() > deadline:
                raise SmokeFailed(f"{one.ref} was not done within {LONGEST_JOB_S:g} s")
            time.sleep(0.05)
        if found["status"] != "completed":
            raise SmokeFailed(f"{one.ref} failed: {found['error']['message']}")
        return http.get(f"{path}/content").content
    finally:
        http.delete(path)


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
    """Return a key of the platform's own, with which a version is tried before all that waits at the gateway.

    Whoever promotes writes the ledger, and may make a key in the same database.
    """
    from infra.keys import Keys

    here = settings()
    path = here.state / "smoke_key"
    with closing(Keys(here.database)) as keys:
        if path.is_file() and (known := keys.find(kept := path.read_text())) and known.ours:
            return kept
        made = keys.create_ours(f"smoke {secrets.token_hex(3)}")
    with atomic_write(path) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(made.encode())
    return made
