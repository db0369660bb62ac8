"""kill -9 in the middle of a clip, on a whole stack of its own.

python -m benchmarks.clip_faults                     # every fault
python -m benchmarks.clip_faults --only everything   # some

Two gateways, each with a runner in its process, a stage replica apart from them, and Make-A-Video's six stages,
untrained and small, with enough steps that a clip takes some seconds. Jobs of one seed are disturbed: the stage replica
is killed, the gateway whose runner has the job, the other gateway, Serve's proxy, and every process of the stack at
once, each while D works (two stages are finished) and while SR_h does (five are). Exit code 1 where a job did not
complete, a finished stage was made again, a stage's sealed output or the WebP differs from the undisturbed one's, a job
is missing in the list or an idempotency key forgotten, or a cancelled job's replica goes on.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import openai
import psutil

from benchmarks.soak import TITLES, own_stack, row, running
from infra.stack import stack
from tests.integration.cascade_kit import Seen, asked, frames_of, hold, publish_clips, seen
from tests.integration.serving_kit import House, wait_for

PLACEMENT: Final = "{layout: staged, gateway: {replicas: {min: 2, max: 2}}}"
STEPS: Final = {"decoder": 40, "interpolation": 12, "upsampler": 12, "frames": 30}
SEED: Final = 7
KEY: Final = "the-first"
MOMENTS: Final = {2: "D", 5: "SR_h"}  # finished stages, and who works then
INTO_S: Final = 0.3  # how long it has worked
LIMIT_S: Final = 240.0  # of a job
HEAD: Final = (
    *("kill -9 of", "while", "ended", "s after", "claims", "attempts ended by"),
    *("finished, made again", "sealed outputs equal", "WebP equal"),
)
WINDOW_S: Final = 0.1
IDLE: Final = 0.5  # of a core in a window: less is no step of the network


def all_processes() -> list[psutil.Process]:
    """Every process of the stack, the keeper first, or it would start others again."""
    daemons = [part.daemon for part in reversed(stack.parts())]
    return [one for daemon in daemons if daemon for one in daemon.offspring()]


def victims(name: str, job: Seen) -> list[psutil.Process]:
    """Return whom to kill."""
    if name == "everything":
        return all_processes()
    if name in TITLES:
        return running(TITLES[name])
    gateways = running(TITLES["gateway replica"])
    return [one for one in gateways if (one.pid == job.pid) == (name == "its gateway and runner")]


VICTIMS: Final = (
    "stage replica",
    "its gateway and runner",
    "the other gateway",
    "Serve proxy",
    "everything",
)


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
    """Start the stack again, as a user does."""
    atelier = Path(sys.executable).with_name("atelier")
    subprocess.run([atelier, "up"], check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL)


def whole(house: House) -> None:
    """Wait until both gateways and the stages answer."""

    def look() -> bool:
        try:
            house.client.models.list()
        except openai.OpenAIError:
            return False
        counts = [len(running(TITLES[name])) for name in ("gateway replica", "stage replica")]
        return counts == [2, 1]

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
    found = victims(name, before)
    assert found, f"nobody to kill: {name}"
    began = time.monotonic()
    killed(found)
    if name == "everything":
        up()
    return job, before, ended(house, job), time.monotonic() - began


def cancelled(house: House) -> tuple[float, float, bool]:
    """Cancel a clip in the middle of D; returns the seconds until its row says so, and until the replica rests.

    And whether it is the same replica still.
    """
    whole(house)
    [replica] = running(TITLES["stage replica"])
    job = asked(house, SEED + 1)
    wait_for("two finished stages", lambda: len(seen(house, job).stages) == 2, LIMIT_S)
    time.sleep(INTO_S)
    began = time.monotonic()
    house.client.videos.delete(job)
    obeyed, rests = None, None
    while (obeyed is None or rests is None) and time.monotonic() - began < 10:
        used, at = sum(replica.cpu_times()[:2]), time.monotonic()
        time.sleep(WINDOW_S)
        if obeyed is None and seen(house, job).state == "cancelled":
            obeyed = time.monotonic() - began
        share = (sum(replica.cpu_times()[:2]) - used) / (time.monotonic() - at)
        rests = at - began if share < IDLE and rests is None else rests
    return obeyed or -1, rests or -1, running(TITLES["stage replica"]) == [replica]


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
    row(*HEAD)
    row(*["---"] * len(HEAD))
    well = True
    for name in names:
        for finished, who in MOMENTS.items():
            job, before, after, seconds = disturbed(house, name, finished)
            jobs.append(job)
            whole(house)
            same = sum(plain.digests[node] == digest for node, digest in after.digests.items())
            equal = after.state == "completed" and frames_of(house, job) == webp
            again = after.again(before)
            well &= equal and again == 0 and same == len(plain.stages)
            made = f"{len(before.stages)}, {again}"
            sealed = f"{same} of {len(plain.stages)}"
            row(
                name,
                who,
                after.state,
                f"{seconds:.1f}",
                after.attempt,
                told(after),
                made,
                sealed,
                equal,
            )
    listed = [one.id for one in house.client.videos.list(limit=100, order="asc")]
    same = asked(house, SEED, KEY) == first
    print(f"\nthe list: {len(listed)} of {len(jobs)} jobs, in their order: {listed == jobs}")
    print(f"the first one's idempotency key names it still: {same}")
    obeyed, rests, alive = cancelled(house)
    step = 1000 * step_of(house, first)
    print(
        f"cancelled: its row after {1000 * obeyed:.0f} ms, the replica rests after {1000 * rests:.0f} ms,"
        f" a step of D takes {step:.0f} ms, the same replica: {alive}"
    )
    return bool(well and listed == jobs and same and alive and 0 <= rests < 1)


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
    began, well = time.monotonic(), False
    with own_stack(PLACEMENT) as (house, folder):
        hold(house, publish_clips(house, folder, STEPS))
        well = under_fire(house, only)
    print(f"\n{'all well' if well else 'NOT WELL'} after {time.monotonic() - began:.0f} s")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
