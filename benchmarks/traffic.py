"""Latency under Poisson traffic: the step engine against batching of whole requests, and against none.

`python -m benchmarks.traffic` sends the same arrivals, of pictures with mixed steps and guidance, to three ways of
drawing with one network in one process: the step engine, a batcher that takes what waits and is alike (as bare servers
do: one call has one number of steps and one guidance), and one request after the other. Rates are shares of what the
step engine draws when its queue never empties, measured anew in each round, in which all ways take turns; medians of
the rounds, and of their ratios. One thread draws; a table row a rate and way.
"""

import argparse
import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Final, Protocol

import numpy as np
import torch

from benchmarks.sampling import PROMPT, network
from infra.placement import BATCHES
from models.diffusion.ddpm import DDPM
from models.request import Request
from services.stages.batch_invariance import agreeing
from services.stages.engine import Engine
from services.stages.scheduler import Failed, Finished, Result

KINDS: Final = tuple((steps, guidance) for steps in (4, 12, 30) for guidance in (1.0, 3.0))
"""Steps and guidance that requests ask for, each as often."""
MOST: Final = 16  # rows of a batch


class Way(Protocol):
    """How requests are drawn."""

    def submit(self, request: Request, done: Callable[[], None]) -> None:
        """Draw a request; `done` is called once it is, from another thread."""

    def close(self) -> None:
        """Stop."""


class Steps:
    """The step engine."""

    def __init__(self, model: DDPM) -> None:
        self._model, self._buckets = model, agreeing(model, BATCHES)
        self._engine = Engine(max_waiting=1_000_000)

    def submit(self, request: Request, done: Callable[[], None]) -> None:
        """See `Way`."""

        def deliver(result: Result) -> None:
            if isinstance(result, Failed):
                raise RuntimeError(result.message)
            if isinstance(result, Finished):
                done()

        self._engine.submit(self._model, request, deliver, buckets=self._buckets)

    def close(self) -> None:
        """See `Way`."""
        self._engine.close()


class Whole:
    """Batches of whole requests that are alike: the oldest, and those that wait and ask for the same."""

    def __init__(self, model: DDPM, most: int = MOST) -> None:
        self._model, self._most = model, most
        self._queue: SimpleQueue[tuple[Request, Callable[[], None]] | None] = SimpleQueue()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def submit(self, request: Request, done: Callable[[], None]) -> None:
        """See `Way`."""
        self._queue.put((request, done))

    def close(self) -> None:
        """See `Way`."""
        self._queue.put(None)
        self._worker.join()

    @torch.no_grad()
    def _work(self) -> None:
        torch.set_num_threads(1)
        waiting: list[tuple[Request, Callable[[], None]]] = []
        open_ = True
        while open_ or waiting:
            try:
                while (item := self._queue.get(block=open_ and not waiting)) is not None:
                    waiting.append(item)
                open_ = False
            except Empty:
                pass
            if waiting:
                asked = waiting[0][0].options
                alike = [one for one in waiting if one[0].options == asked][: self._most]
                waiting = [one for one in waiting if one not in alike]
                seeds = tuple(seed for request, _ in alike for seed in request.seeds)
                prompts = tuple(text for request, _ in alike for text in request.prompts)
                self._model.sample(Request(seeds=seeds, prompts=prompts, options=asked))
                for _, done in alike:
                    done()


@dataclass
class Run:
    """One way under one rate."""

    latencies_s: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Pictures a second, until the last was drawn."""
        return len(self.latencies_s) / self.seconds

    def quantile(self, share: float) -> float:
        """Seconds that so large a share of the requests took at most."""
        return float(np.quantile(self.latencies_s, share))


def arrivals(rate: float, count: int, seed: int) -> list[tuple[float, Request]]:
    """Return when requests come, in seconds from the first, and what they ask for."""
    lot, now, found = random.Random(seed), 0.0, []
    for number in range(count):
        steps, guidance = lot.choice(KINDS)
        request = Request(
            seeds=(number,), prompts=(PROMPT,), options={"steps": steps, "guidance": guidance}
        )
        found.append((now, request))
        now += lot.expovariate(rate)
    return found


def send(way: Way, coming: Sequence[tuple[float, Request]]) -> Run:
    """Send requests when they come, whatever is under way; returns once all are drawn."""
    run, left = Run(), threading.Semaphore(0)
    began = time.monotonic()
    for after, request in coming:
        due = began + after
        time.sleep(max(0.0, due - time.monotonic()))

        def done(due: float = due) -> None:
            run.latencies_s.append(time.monotonic() - due)
            left.release()

        way.submit(request, done)
    for _ in coming:
        left.acquire()
    run.seconds = time.monotonic() - began
    return run


def capacity(model: DDPM, count: int) -> float:
    """Return the pictures a second of the step engine when all requests come at once."""
    way = Steps(model)
    try:
        send(way, arrivals(1e9, MOST, 1))  # warm
        return send(way, arrivals(1e9, count, 2)).rate
    finally:
        way.close()


WAYS: Final[Mapping[str, Callable[[DDPM], Way]]] = {
    "steps": Steps,
    "whole requests": Whole,
    "one by one": lambda model: Whole(model, most=1),
}


def measured(model: DDPM, share: float, count: int, seed: int) -> dict[str, Run]:
    """Return each way under the same arrivals, at a share of what the step engine draws just now."""
    coming = arrivals(share * capacity(model, count), count, seed)
    runs = {}
    for name in list(WAYS) if seed % 2 else reversed(WAYS):
        way = WAYS[name](model)
        try:
            runs[name] = send(way, coming)
        finally:
            way.close()
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.8, 1.2])
    parser.add_argument("--requests", type=int, default=300, help="of one way in one round")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = network(given.preset)
    print("| share | way | pictures/s | of whole requests' | p50 s | p99 s | of whole requests' |")
    print("|---|---|---|---|---|---|---|")
    for share in given.shares:
        rounds = [measured(model, share, given.requests, number) for number in range(given.rounds)]
        for name in WAYS:
            runs = [one[name] for one in rounds]
            beside = [one["whole requests"] for one in rounds]
            pairs = list(zip(runs, beside, strict=True))
            rate, more, p50, p99, longer = (
                statistics.median(values)
                for values in (
                    [run.rate for run in runs],
                    [run.rate / other.rate for run, other in pairs],
                    [run.quantile(0.5) for run in runs],
                    [run.quantile(0.99) for run in runs],
                    [run.quantile(0.99) / other.quantile(0.99) for run, other in pairs],
                )
            )
            print(
                f"| {share:.0%} | {name} | {rate:.2f} | {more:.2f} | {p50:.3f} | {p99:.3f} | {longer:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
