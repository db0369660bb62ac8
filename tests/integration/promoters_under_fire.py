"""Promotions and rollbacks that are killed where they stand, beside a worker that reconciles; test_promotion runs it.

python promoters_under_fire.py CASES; CASES is a JSON list of {"verb", "name", "ref", "fault"}. Each case runs in a
process of its own, forked from this one so that nobody imports anything twice, and dies by kill -9. Prints a JSON
list: {"case", "killed" (seconds since the epoch), "by" (the signal)}; then waits until the journal is empty.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

RECONCILE_EVERY_S = 2.0
LONGEST_S = 600.0


def forked(work: Callable[[], None]) -> int:
    """Start a process that does `work` and ends; returns its id."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child


def carry_out(case: dict[str, Any]) -> None:
    """Promote or roll back, with the fault in force."""
    from flows.promotion.procedure import request, roll_back

    os.environ["ATELIER_FAULT"] = f"{case['fault']}:kill"
    if case["verb"] == "promote":
        request(case["ref"])
    else:
        roll_back(case["name"])


def reconcile_for_ever() -> None:
    """Do what the worker does."""
    from flows.promotion.reconcile import reconcile

    while True:
        for line in reconcile():
            print(line, file=sys.stderr, flush=True)  # noqa: T201
        time.sleep(RECONCILE_EVERY_S)


def main() -> None:
    """Kill each case, then wait until nothing is open any more."""
    import flows.promotion.procedure
    import flows.promotion.reconcile
    from models.judges import (
        metrics,  # what a gate imports, and what smoke and registry import late
    )

    for late in ("httpx", "mlflow", "numpy", "PIL.Image", "torch", "flows.provenance.cards"):
        __import__(late)
    assert flows.promotion.procedure
    assert flows.promotion.reconcile
    assert metrics
    worker = forked(reconcile_for_ever)
    killed = []
    for case in json.loads(sys.argv[1]):
        child = forked(lambda case=case: carry_out(case))  # type: ignore[misc]
        _, status = os.waitpid(child, 0)
        by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        killed.append({"case": case, "killed": time.time(), "by": by})
    from flows.context import promotions

    deadline = time.monotonic() + LONGEST_S
    while promotions().open() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    print(json.dumps(killed))  # noqa: T201


if __name__ == "__main__":
    main()
