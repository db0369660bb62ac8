"""Promotion and rollback of a served pipeline: seconds from the word to the first answer by the other version.

`python -m benchmarks.promotion shapes:1 shapes:2 --rounds 5`, on a running installation (`atelier up`) where both
versions pass their gate. A client asks for pictures without a pause while the versions are exchanged; a promotion is
`flows.promotion.procedure.request` (gate, load beside, smoke, ledger), a rollback `roll_back`. The gate's time is that
of the report over the stored evaluation, the judging's that of drawing and scoring all its prompts again.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable

from flows.cli.client import paint
from flows.cli.terminal import use_stack
from infra.receipts.receipts import read


class Watcher:
    """A client that notes when which version first answered."""

    def __init__(self, name: str, prompt: str) -> None:
        self._name, self._prompt = name, prompt
        self._over = threading.Event()
        self.answers: list[tuple[float, str]] = []  # (when it arrived, version)
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        while not self._over.is_set():
            version = read(paint(self._name, self._prompt, seed=1, steps=2)).version
            self.answers.append((time.perf_counter(), version))

    def first(self, version: str, since: float) -> float:
        """Return the seconds from `since` to the first answer by a version."""
        while True:
            for at, answered in self.answers:
                if at > since and answered == version:
                    return at - since
            time.sleep(0.002)

    def stop(self) -> None:
        """End it."""
        self._over.set()
        self._thread.join()


def timed(watcher: Watcher, version: str, act: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds until `act` returned and until `version` first answered."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began, watcher.first(version, began)


def row(what: str, seconds: list[float]) -> None:
    """Print a row of the table."""
    print(f"| {what} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    use_stack()
    from flows.context import registry
    from flows.evaluation import evaluate
    from flows.promotion.gate_report import gate_report
    from flows.promotion.procedure import request, roll_back
    from infra.pipelines import read_pipeline

    name = given.first.partition(":")[0]
    second = registry().get(given.second)
    prompt = next(iter(read_pipeline(registry().fetch(second)).try_prompts), "")
    request(given.first)
    print("| seconds | median | slowest |\n|---|---|---|")
    watcher = Watcher(name, prompt)
    spent: dict[str, list[float]] = {}
    try:
        for _ in range(given.rounds):
            for verb, version, act in (
                ("promotion", given.second, lambda: request(given.second)),
                ("rollback", given.first, lambda: roll_back(name)),
            ):
                returned, answered = timed(watcher, version, act)
                spent.setdefault(f"{verb}, until it returns", []).append(returned)
                spent.setdefault(f"{verb}, until the first answer", []).append(answered)
    finally:
        watcher.stop()
    for what, seconds in spent.items():
        row(what, seconds)
    began = time.perf_counter()
    report = gate_report(second)
    row(f"gate report, {len(report.conditions)} conditions", [time.perf_counter() - began])
    began = time.perf_counter()
    judged = evaluate(given.second)
    count = max(metric["count"] for metric in judged["evaluation"]["metrics"].values())
    row(f"judging {count} pictures anew", [time.perf_counter() - began])
    print(f"{len(watcher.answers)} answers, 0 failed")


if __name__ == "__main__":
    main()
