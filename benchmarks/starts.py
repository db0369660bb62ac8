"""How long a training takes to start on Ray and to return: the lean controller beside Ray's own TorchTrainer.

`python -m benchmarks.starts [--workers 1 2] [--rounds 2]` prints table rows: medians of a training of one step on a
private Ray cluster that has trained before. "public" is `TorchTrainer.fit` in this process with every public setting
that helps; "plain" is the same in an actor, so that it can be ended, which is what trains when Ray has changed inside.
CPU-seconds are of all of the cluster's processes, to a second after the return; walls depend on who else works here.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil

from flows.training.controllers import Running
from flows.training.orders import RAY_TRAIN_SETTINGS, Order

MARK: Final = 77  # bytes of memory, by which the placement group is known


class Processes(threading.Thread):
    """Watches how much CPU this process and its offspring use."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.used: dict[tuple[int, float], float] = {}
        self.start()

    def run(self) -> None:
        """Look ten times a second."""
        me = psutil.Process()
        while True:
            for process in [me, *me.children(recursive=True)]:
                try:
                    key = process.pid, process.create_time()
                    self.used[key] = sum(process.cpu_times()[:2])
                except psutil.Error:
                    continue
            time.sleep(0.1)

    @property
    def total(self) -> float:
        """CPU-seconds so far."""
        return sum(self.used.values())


def one_step(config: dict[str, Any]) -> None:
    """Join the others and take a step of AdamW; a worker's whole work."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from flows.training.worker import _join

    ranks = _join(torch.device("cpu"))
    torch.set_num_threads(1)
    model: Any = torch.nn.Linear(4, 4)
    if ranks.world > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    Path(config["folder"], f"rank{ranks.rank}").write_text(str(time.time()))
    if ranks.world > 1:
        torch.distributed.destroy_process_group()


def lean(order: Order) -> None:
    """Train by the lean controller."""
    from flows.training import lean_trainer

    _to_the_end(Running(order, *lean_trainer.start(order)))


def plain(order: Order) -> None:
    """Train by Ray's trainer in an actor."""
    from flows.training import plain_trainer

    _to_the_end(Running(order, *plain_trainer.start(order)))


def public(order: Order) -> None:
    """Train by Ray's trainer in this process, from where nothing ends it."""
    from flows.training.plain_trainer import PlainTrainer

    assert not PlainTrainer().fit(order)


def _to_the_end(running: Running) -> None:
    trouble = running.trouble()
    running.release()
    assert not trouble, trouble


def seconds_of(
    train: Callable[[Order], None], workers: int, watch: Processes
) -> tuple[float, float, float]:
    """Return the seconds to the last worker's first step and to the return, and the CPU-seconds."""
    from ray.train import RunConfig, ScalingConfig

    with tempfile.TemporaryDirectory() as folder:
        order = Order(
            one_step,
            config={"folder": folder},
            scaling=ScalingConfig(
                num_workers=workers, resources_per_worker={"CPU": 1, "memory": MARK}
            ),
            run=RunConfig(name=uuid.uuid4().hex, storage_path=f"{folder}/ray"),
        )
        cpu, began = watch.total, time.time()
        train(order)
        ended = time.time()
        stepped = max(float(path.read_text()) for path in Path(folder).glob("rank*"))
        time.sleep(1)  # what still ends
        return stepped - began, ended - began, watch.total - cpu


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options.add_argument("--rounds", type=int, default=2)
    given = options.parse_args()
    from infra.stack.cluster import connect

    os.environ.update(RAY_TRAIN_SETTINGS)
    connect(None, cpus=max(given.workers))
    watch = Processes()
    seconds_of(lean, 1, watch)
    print("| workers | trainer | s to the first step | s to the return | CPU-s |")
    print("|---|---|---|---|---|")
    for workers in given.workers:
        ways = (lean, public, plain)
        found = [[seconds_of(way, workers, watch) for way in ways] for _ in range(given.rounds)]
        for way, rows in zip(ways, zip(*found, strict=True), strict=True):
            first, whole, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"| {workers} | {way.__name__} | {first:.1f} | {whole:.1f} | {cpu:.1f} |")


if __name__ == "__main__":
    main()
