"""Steps a second of the training loop under Ray Train, against the same network in a bare PyTorch DDP loop.

`python -m benchmarks.train_loop [--workers 1 2] [--steps 300]` prints table rows. Both trainings live at the
same time and take turns of a few seconds: while one runs, the processes of the other are stopped. So neighbours on
the machine slow both alike. Ours has checkpoints, averaging, metrics, progress and Ray's controller beside it; the bare
loop has loader, forward, backward, clipping and fused AdamW, nothing else. First steps are left out; start-up is apart.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from flows.recipe import Resources, Training
from flows.training.spec import TrainingSpec
from tests.ports_kit import free_ports

WARM: Final = 20  # steps that are not counted


@dataclass
class Side:
    """One of the two trainings: its processes, and what they did in their turns."""

    counter: Path  # a file with the number of steps done
    ranks: list[psutil.Process]
    others: list[psutil.Process] = field(default_factory=list)
    steps: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    cpu_beside: float = 0.0  # of `others`
    least: int = 0  # steps that would have filled the turn in which training ended

    def turn(self, seconds: float, over: Callable[[], bool]) -> None:
        """Run for a while, and count; a turn in which training ended does not count."""
        self.signal(signal.SIGCONT)
        step, began = self.done(), time.monotonic()
        last, moved = step, began
        cpu, beside = cpu_of(self.ranks), cpu_of(self.others)
        while time.monotonic() < began + seconds and not over():
            time.sleep(0.02)
            if self.done() > last:
                last, moved = self.done(), time.monotonic()
        if over():
            rate = (last - step) / max(0.02, moved - began)
            self.least = step + math.ceil(rate * seconds) + 1
        else:
            self.steps += self.done() - step
            self.wall += time.monotonic() - began
            self.cpu += cpu_of(self.ranks) - cpu
            self.cpu_beside += cpu_of(self.others) - beside
            self.signal(signal.SIGSTOP)

    def done(self) -> int:
        """Return the steps done, 0 before there is a counter."""
        return (
            int.from_bytes(self.counter.read_bytes()[:8], "little") if self.counter.exists() else 0
        )

    def signal(self, number: int) -> None:
        """Send a signal to all processes that are left."""
        for process in [*self.ranks, *self.others]:
            with suppress(psutil.Error):
                process.send_signal(number)

    def warm_up(self) -> None:
        """Wait for the first steps, then stop."""
        while self.done() < WARM:
            time.sleep(0.02)
        self.signal(signal.SIGSTOP)


def cpu_of(processes: list[psutil.Process]) -> float:
    """Return the CPU seconds that processes have used."""
    with suppress(psutil.Error):  # one has ended: the turn will not count
        return float(sum(sum(process.cpu_times()[:2]) for process in processes))
    return 0.0


def spec_of(prepared: Path, workers: int, steps: int) -> TrainingSpec:
    """Return the demo's base model, batch 64 in all, with its checkpoints and metrics."""
    return TrainingSpec(
        name="benchmark.base",
        family="ddpm",
        preset="base",
        config={},
        image_size=16,
        seed=0,
        training=Training(steps=steps, batch_size=64),
        resources=Resources(num_workers=workers, gpus_per_worker=0),
        dataset="shapes",
        prepared=prepared,
        data_identity="benchmark",
        code_identity="benchmark",
    )


def offspring(word: str) -> list[psutil.Process]:
    """Return this process's descendants whose command line has `word` in it."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if word in " ".join(process.cmdline()):
                found.append(process)
    return found


def bare(prepared: Path, workers: int, folder: Path) -> Side:
    """Start the bare loop in `workers` plain processes; it trains until it is killed."""
    [port] = free_ports(1)
    spec = spec_of(prepared, workers, 10**6).model_dump_json()
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        psutil.Popen(
            [sys.executable, "-m", "benchmarks.train_loop", "--rank", str(rank), "--spec", spec],
            env={**os.environ, **place, "COUNTER": str(folder / f"bare{rank}")},
            stderr=subprocess.DEVNULL,  # it ends by a signal
        )
        for rank in range(workers)
    ]
    return Side(folder / "bare0", ranks)


def ours(folder: Path) -> Side:
    """Return the training under Ray whose processes have signed in below `folder`."""
    while not (counters := list(folder.glob("*/journal/1.step"))):
        time.sleep(0.02)
    side = Side(counters[0], [])
    while side.done() < WARM:
        time.sleep(0.02)
    files = counters[0].parent.glob("1.rank*.json")
    side.ranks = [psutil.Process(json.loads(path.read_bytes())["pid"]) for path in files]
    side.others = offspring("TrainController")
    return side


def take_turns(prepared: Path, workers: int, steps: int, seconds: float) -> tuple[Side, Side, Any]:
    """Train both ways until ours has ended; returns both sides and ours' result."""
    from flows.training.ray_train import Trained, fit

    found: list[Trained] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def train() -> None:
            spec = spec_of(prepared, workers, steps)
            found.append(fit(spec, run_id=None, tracking_uri=None, runs=folder))

        thread = threading.Thread(target=train)
        thread.start()
        mine = ours(folder)
        mine.warm_up()
        peer = bare(prepared, workers, folder)
        try:
            peer.warm_up()
            while thread.is_alive():
                mine.turn(seconds, lambda: not thread.is_alive())
                if thread.is_alive():
                    peer.turn(seconds, lambda: False)
        finally:
            mine.signal(signal.SIGCONT)
            peer.signal(signal.SIGKILL)
            for rank in peer.ranks:
                rank.wait()
            thread.join()
    return mine, peer, found[0]


def one_rank(spec: TrainingSpec, rank: int) -> None:
    """Be one rank of the bare loop."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from data.loaders import Loader
    from models import configure, trainable

    torch.set_num_threads(1)
    world = spec.resources.num_workers
    dist.init_process_group("gloo", rank=rank, world_size=world)
    rows = spec.training.batch_size // world
    place: dict[str, Any] = {"batch_size": rows, "rank": rank, "world": world, "image_size": 16}
    config = configure(spec.family, spec.preset, {}, Loader(spec.prepared, "train", **place).facts)
    torch.manual_seed(spec.seed)
    model = trainable(spec.family)(config)
    loader = Loader(spec.prepared, "train", encode=model.encode, **place)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    counter = os.open(os.environ["COUNTER"], os.O_RDWR | os.O_CREAT)
    for step in range(spec.training.steps):
        optimizer.zero_grad(set_to_none=True)
        wrapped(loader.batch(step)).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        os.pwrite(counter, (step + 1).to_bytes(8, "little"), 0)


class Processes(threading.Thread):
    """Watches which of this process's offspring uses how much CPU."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.used: dict[int, tuple[str, float]] = {}
        self.start()

    def run(self) -> None:
        """Look four times a second."""
        while True:
            for process in psutil.Process().children(recursive=True):
                try:
                    name = process.cmdline()[0].partition(".")[0][:40]
                    self.used[process.pid] = name, sum(process.cpu_times()[:2])
                except (psutil.Error, IndexError):
                    continue
            time.sleep(0.25)

    def since(self, before: dict[int, tuple[str, float]]) -> dict[str, float]:
        """Return CPU seconds by process name since `before`, half a second and more."""
        total: dict[str, float] = {}
        for pid, (name, used) in self.used.items():
            if name.startswith("ray::"):
                total[name] = total.get(name, 0.0) + used - before.get(pid, (name, 0.0))[1]
        return {name: round(used, 1) for name, used in total.items() if used >= 0.5}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options.add_argument("--steps", type=int, default=300, help=f"more than {WARM}")
    options.add_argument("--turn", type=float, default=4.0, help="seconds a turn")
    options.add_argument("--prepared", type=Path, default=Path("data/prepared/shapes"))
    options.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options.add_argument("--spec", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.steps <= WARM:
        options.error(
            f"--steps {given.steps}: the first {WARM} do not count; give {WARM + 1} at least"
        )
    if given.spec:
        one_rank(TrainingSpec.model_validate_json(given.spec), given.rank)
        return
    from data.reading.mapped import DatasetError
    from data.reading.splits import read_header

    try:
        read_header(given.prepared)
    except DatasetError as error:
        sys.exit(str(error))
    compare(given)


def compare(given: argparse.Namespace) -> None:
    """Train in turns and print the rows, then where the seconds of start-up went."""
    from infra.stack.cluster import connect

    began = time.monotonic()
    connect(None, cpus=max(given.workers))
    print(f"a private Ray cluster starts in {time.monotonic() - began:.1f} s")
    watch, starts = Processes(), []
    print(
        "| workers | steps/s ours | bare DDP | ratio | CPU-ms a step ours | bare | ratio | controller's |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for workers in given.workers:
        mine, peer, trained = take_turns(given.prepared.resolve(), workers, given.steps, given.turn)
        if not mine.wall:
            sys.exit(
                f"--steps {given.steps} were done by {workers} workers before a turn of {given.turn:g} s"
                f" was over: give {mine.least} or more, or a shorter --turn"
            )
        starts.append((workers, trained.seconds))
        print(_row(workers, mine, peer), flush=True)
    for workers, seconds in starts:
        print(f"seconds, {workers} workers: {json.dumps(seconds)}")
    for workers in given.workers:
        print(
            f"start-up, {workers} workers: {_start(given.prepared.resolve(), workers, watch)}",
            flush=True,
        )


def _start(prepared: Path, workers: int, watch: Processes) -> str:
    """Return the seconds of a training of two steps, and the CPU seconds of Ray's processes."""
    from flows.training.ray_train import fit

    before = dict(watch.used)
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_of(prepared, workers, 2)
        trained = fit(spec, run_id=None, tracking_uri=None, runs=Path(folder))
    return f"{json.dumps(trained.seconds)}, CPU s {json.dumps(watch.since(before))}"


def _row(workers: int, mine: Side, peer: Side) -> str:
    rate, peer_rate = mine.steps / mine.wall, peer.steps / peer.wall
    beside = 1000 * mine.cpu_beside / mine.steps
    cpu, peer_cpu = 1000 * mine.cpu / mine.steps, 1000 * peer.cpu / peer.steps
    return (
        f"| {workers} | {rate:.2f} | {peer_rate:.2f} | {rate / peer_rate:.3f}"
        f" | {cpu:.1f} | {peer_cpu:.1f} | {peer_cpu / cpu:.3f} | {beside:.1f} |"
    )


if __name__ == "__main__":
    main()
