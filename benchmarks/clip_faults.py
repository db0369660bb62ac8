"""kill -9 in the middle of a clip, on a whole stack of its own.

python -m benchmarks.clip_faults                     # every fault
python -m benchmarks.clip_faults --only everything   # some

A gateway with its runner, a stage replica apart from it, and Make-A-Video's six stages, untrained and small, with
enough steps that a clip takes some seconds. Jobs of one seed are disturbed while D works (two stages are finished) or
while SR_h does (five are): the stage replica, the gateway with the runner in its process, Serve's proxy, and every
process of the stack at once are killed, after which the stack is started as a user does. Exit code 1 where a job did
not complete, a finished stage was made again, a stage's sealed output or the WebP differs from the undisturbed one's,
a job is missing in the list or an idempotency key forgotten, or a cancelled job's replica goes on.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Final

import openai
import psutil

from benchmarks.soak import TITLES, leave, own_stack, row, running
from infra import serving
from infra.stack import stack
from tests.integration.cascade_kit import Seen, asked, frames_of, publish_clips, seen
from tests.integration.serving_kit import House, wait_for

STEPS: Final = {"decoder": 40, "interpolation": 12, "upsampler": 12, "frames": 30}
SEED: Final = 7
KEY: Final = "the-first"
WORKS: Final = {2: "D", 5: "SR_h"}  # by the number of finished stages
INTO_S: Final = 0.3  # how long it has worked
LIMIT_S: Final = 600.0  # of a job, or a start of the stack
HEAD: Final = (
    *("kill -9 of", "while", "ended", "s after", "claims", "attempts ended by"),
    *("finished, made again", "sealed outputs equal", "WebP equal", "list and key kept"),
)
WINDOW_S: Final = 0.1
IDLE_S: Final = 0.02  # of CPU time in a window: no step of the network


def all_processes() -> list[psutil.Process]:
    """Every process of the stack, the keeper first, or it would start others again."""
    daemons = [part.daemon for part in reversed(stack.parts())]
    return [one for daemon in daemons if daemon for one in daemon.offspring()]


VICTIMS: Final = {
    "stage replica": 2,
    "gateway replica": 5,
    "Serve proxy": 2,
    "everything": 5,
}
"""How many stages are finished then."""


def killed(found: list[psutil.Process]) -> None:
    """Kill them, in this order."""
    for one in found:
        try:
            os.kill(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def ended(house: House, job: str) -> Seen:
    """Return a job once it is over."""

    def look() -> Seen | None:
        found = seen(house, job)
        return None if found.state in {"queued", "in_progress"} else found

    return wait_for("end of the job", look, LIMIT_S)


def up() -> None:
    """Start the stack again, as a user does, who tries again where a busy machine was too slow."""
    atelier, ends = Path(sys.executable).with_name("atelier"), time.monotonic() + LIMIT_S
    while subprocess.run([atelier, "up"], stdout=subprocess.DEVNULL, check=False).returncode:
        assert time.monotonic() < ends, f"`atelier up` fails for {LIMIT_S:.0f} s"


def whole(house: House) -> None:
    """Wait until the gateway and the stages answer."""

    def look() -> bool:
        try:
            house.client.models.list()
        except openai.OpenAIError:
            return False
        counts = [len(running(TITLES[name])) for name in ("gateway replica", "stage replica")]
        return counts == [1, 1]

    wait_for("stack that is whole", look, LIMIT_S)


def disturbed(house: House, name: str, finished: int) -> tuple[str, Seen, Seen, float]:
    """Kill somebody in the middle of a clip; returns the job, its rows then and at its end, and the seconds between."""
    whole(house)
    job = asked(house, SEED)

    def look() -> Seen | None:
        found = seen(house, job)
        return found if len(found.stages) == finished else None

    wait_for(f"{finished} finished stages", look, LIMIT_S)
    time.sleep(INTO_S)
    before = seen(house, job)
    found = all_processes() if name == "everything" else running(TITLES[name])
    assert found, f"nobody to kill: {name}"
    began = time.monotonic()
    killed(found)
    if name == "everything":
        up()
    return job, before, ended(house, job), time.monotonic() - began


def cancelled(house: House, step_s: float) -> bool:
    """Cancel a clip in the middle of D and print when its row says so, and when the replica, the same one, rests."""
    [replica] = running(TITLES["stage replica"])
    job = asked(house, SEED + 1)
    wait_for("two finished stages", lambda: len(seen(house, job).stages) == 2, LIMIT_S)
    time.sleep(INTO_S)
    began = time.monotonic()
    house.client.videos.delete(job)
    obeyed, rests = None, None
    while (obeyed is None or rests is None) and time.monotonic() - began < LIMIT_S:
        used, at = sum(replica.cpu_times()[:2]), time.monotonic()
        time.sleep(WINDOW_S)
        if obeyed is None and seen(house, job).state == "cancelled":
            obeyed = time.monotonic() - began
        if rests is None and sum(replica.cpu_times()[:2]) - used < IDLE_S:
            rests = at - began
    left = "decoder" not in seen(house, job).stages
    alive = running(TITLES["stage replica"]) == [replica]
    print(
        f"cancelled in D: its row says so after {1000 * (obeyed or -1):.0f} ms, the replica rests after"
        f" {1000 * (rests or -1):.0f} ms, a step takes {1000 * step_s:.0f} ms;"
        f" D was left unfinished: {left}, the same replica: {alive}\n"
    )
    return alive and left


def told(found: Seen) -> str:
    """Return how an attempt ended, and how often."""
    return ", ".join(f"{count} x {cause}" for cause, count in found.causes.items()) or "-"


def under_fire(house: House, names: list[str]) -> bool:
    """Print what comes of a clip under each fault; returns whether all is well."""
    first = asked(house, SEED, KEY)
    began = time.monotonic()
    plain = ended(house, first)
    assert plain.state == "completed", plain
    took, webp, jobs = time.monotonic() - began, frames_of(house, first), [first]
    print(
        f"\nundisturbed: {took:.1f} s, {len(plain.stages)} stages, load {os.getloadavg()[0]:.1f}\n"
    )
    well = cancelled(house, step_of(house, first))
    row(*HEAD)
    row(*["---"] * len(HEAD))
    for name in names:
        job, before, after, seconds = disturbed(house, name, VICTIMS[name])
        jobs.append(job)
        whole(house)
        same = sum(plain.digests[node] == digest for node, digest in after.digests.items())
        equal = after.state == "completed" and frames_of(house, job) == webp
        again, kept = after.again(before), listed(house, jobs)
        well &= equal and again == 0 and same == len(plain.stages) and kept
        how = (WORKS[VICTIMS[name]], after.state, f"{seconds:.1f}", after.attempt, told(after))
        made, sealed = f"{len(before.stages)}, {again}", f"{same} of {len(plain.stages)}"
        row(name, *how, made, sealed, equal, kept)
    return bool(well)


def listed(house: House, jobs: list[str]) -> bool:
    """Whether the list has these jobs in their order, and the first one's idempotency key names it still."""
    found = [one.id for one in house.client.videos.list(limit=100, order="asc")]
    return found == jobs and asked(house, SEED, KEY) == jobs[0]


def step_of(house: House, job: str) -> float:
    """Return the seconds of a step of D, of an undisturbed clip."""
    from infra.jobs.jobs import Jobs

    with Jobs(house.settings.database) as jobs:
        return jobs.stages(job)["decoder"].seconds / STEPS["decoder"]


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=VICTIMS, nargs="+", default=list(VICTIMS))
    only = parser.parse_args().only
    warnings.filterwarnings("ignore", "The Sora API")  # of the client, whose maker ends its own
    began, well = time.monotonic(), False
    with own_stack() as (house, folder):
        serving.deploy(house.settings, publish_clips(house, folder, STEPS), LIMIT_S)
        well = under_fire(house, only)
    leave(well, began)


if __name__ == "__main__":
    main()
