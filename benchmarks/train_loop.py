"""Steps a second of the training loop under Ray Train, against the same network in a bare PyTorch DDP loop.

`python -m benchmarks.train_loop [--workers 1 2] [--rounds 3] [--steps 120] [--stock]` prints table rows. A round runs
one after the other, in fresh processes: the loop under Ray Train (checkpoints, averaging, metrics and progress on),
and the bare loop (loader, forward, backward, clipping, fused AdamW, nothing else). Both leave out their first steps.
Wall seconds depend on the neighbours; CPU seconds a step, of the ranks alone, hardly do. Start-up is shown apart.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from flows.recipe import Resources, Training, TrainingSpec

WARM: Final = 20  # steps that are not counted


@dataclass(frozen=True)
class Speed:
    """What one run gave in steady state."""

    steps_per_s: float
    cpu_ms_per_step: float  # all ranks together
    seconds: dict[str, float]
    beside: float = 0.0  # CPU of everything that is no rank, as a share of the ranks' CPU


def spec_of(prepared: Path, workers: int, steps: int, seed: int) -> TrainingSpec:
    """Return the demo's base model, batch 64 in all, with its checkpoints and metrics."""
    return TrainingSpec(
        name="benchmark.base",
        family="ddpm",
        preset="base",
        config={},
        image_size=16,
        seed=seed,
        training=Training(steps=steps, batch_size=64, log_every=WARM, checkpoint_every=200),
        resources=Resources(num_workers=workers, gpus_per_worker=0),
        dataset="shapes",
        prepared=prepared,
        data_identity="benchmark",
        code_identity="benchmark",
    )


class Meter:
    """CPU seconds of the ranks and of the rest of this process's offspring, noted at steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marks: list[tuple[float, int, float, float]] = []

    def mark(self, step: int) -> None:
        """Note the time, the step and the CPU seconds."""
        pids = {
            json.loads(path.read_bytes())["pid"]
            for path in self.folder.glob("*/journal/*.rank*.json")
        }
        ranks = rest = 0.0
        for process in psutil.Process().children(recursive=True):
            try:
                used = sum(process.cpu_times()[:2])
            except psutil.Error:
                continue
            ranks, rest = (ranks + used, rest) if process.pid in pids else (ranks, rest + used)
        self.marks.append((time.monotonic(), step, ranks, rest))

    def speed(self, seconds: dict[str, float]) -> Speed:
        """Return the speed between the first and the last note."""
        (t0, s0, c0, r0), (t1, s1, c1, r1) = self.marks[0], self.marks[-1]
        return Speed(
            (s1 - s0) / (t1 - t0), 1000 * (c1 - c0) / (s1 - s0), seconds, (r1 - r0) / (c1 - c0)
        )


def under_ray(prepared: Path, workers: int, steps: int, seed: int) -> Speed:
    """Train with `fit` on the private cluster of this process."""
    from flows.training.ray_train import fit

    with tempfile.TemporaryDirectory() as folder:
        meter = Meter(Path(folder))
        trained = fit(
            spec_of(prepared, workers, steps, seed),
            run_id=None,
            tracking_uri=None,
            runs=Path(folder),
            on_progress=lambda now: meter.mark(now.step) if not now.note else None,
        )
        return meter.speed(trained.seconds)


def bare(prepared: Path, workers: int, steps: int, seed: int) -> Speed:
    """Train in `workers` plain processes with DistributedDataParallel."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spec = spec_of(prepared, workers, steps, seed).model_dump_json()
    began = time.time()
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.train_loop", "--rank", str(rank), "--spec", spec],
            env=environment,
            stdout=subprocess.PIPE,
        )
        for rank in range(workers)
    ]
    rows = [json.loads(rank.communicate(timeout=600)[0]) for rank in ranks]
    first = rows[0]
    cpu = sum(row["cpu"] for row in rows) / first["steps"]
    return Speed(first["steps"] / first["wall"], 1000 * cpu, {"start": first["began"] - began})


def one_rank(spec: TrainingSpec, rank: int) -> dict[str, float]:
    """Be one rank of the bare loop; returns its steady seconds."""
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
    wall = cpu = began = 0.0
    for step in range(spec.training.steps):
        if step == 0:
            began = time.time()
        if step == WARM:
            wall, cpu = time.monotonic(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        wrapped(loader.batch(step)).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    counted = spec.training.steps - WARM
    end = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
    dist.destroy_process_group()
    return {**end, "steps": counted, "began": began}


def stock_start(workers: int) -> dict[str, float]:
    """Return the seconds of a no-op TorchTrainer with DDP and AdamW, as Ray's own guide writes it."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        result = TorchTrainer(
            _stock_step,
            scaling_config=ScalingConfig(num_workers=workers),
            run_config=RunConfig(name="stock", storage_path=folder),
        ).fit()
        stepped = result.return_value
        return {"to the first step's end": stepped - began, "fit": time.time() - began}


def _stock_step() -> float:
    import ray.train.torch
    import torch

    model = ray.train.torch.prepare_model(torch.nn.Linear(4, 4))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return time.time()


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
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--prepared", type=Path, default=Path("data/prepared/shapes"))
    options.add_argument("--stock", action="store_true", help="time Ray's own TorchTrainer too")
    options.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options.add_argument("--spec", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.spec:
        print(json.dumps(one_rank(TrainingSpec.model_validate_json(given.spec), given.rank)))
        return
    compare(given)


def compare(given: argparse.Namespace) -> None:
    """Run the rounds and print the rows."""
    from infra.cluster import connect

    began = time.monotonic()
    connect(None, cpus=max(given.workers))
    print(f"a private Ray cluster starts in {time.monotonic() - began:.1f} s")
    watch, prepared = Processes(), given.prepared.resolve()
    print(
        "| workers | steps/s ours | bare DDP | ratio | CPU-ms a step ours | bare | ratio | CPU beside |"
    )
    print("|---|---|---|---|---|---|---|---|")
    starts = []
    for workers in given.workers:
        pairs = []
        for seed in range(given.rounds):
            before = dict(watch.used)
            ours = under_ray(prepared, workers, given.steps, seed)
            starts.append((workers, ours.seconds, watch.since(before)))
            pairs.append((ours, bare(prepared, workers, given.steps, seed)))
        print(_row(workers, pairs))
    for workers, seconds, processes in starts:
        print(
            f"start-up, {workers} workers: {json.dumps(seconds)}; CPU seconds: {json.dumps(processes)}"
        )
    for workers in given.workers if given.stock else []:
        before = dict(watch.used)
        seconds = stock_start(workers)
        print(
            f"stock, {workers} workers: {json.dumps(seconds)}; CPU seconds: {json.dumps(watch.since(before))}"
        )


def _row(workers: int, pairs: list[tuple[Speed, Speed]]) -> str:
    def median(values: list[float]) -> float:
        return statistics.median(values)

    rate = median([ours.steps_per_s for ours, _ in pairs])
    peer = median([other.steps_per_s for _, other in pairs])
    cpu = median([ours.cpu_ms_per_step for ours, _ in pairs])
    peer_cpu = median([other.cpu_ms_per_step for _, other in pairs])
    ratio = median([ours.steps_per_s / other.steps_per_s for ours, other in pairs])
    cpu_ratio = median([other.cpu_ms_per_step / ours.cpu_ms_per_step for ours, other in pairs])
    beside = median([ours.beside for ours, _ in pairs])
    return (
        f"| {workers} | {rate:.2f} | {peer:.2f} | {ratio:.3f} | {cpu:.1f} | {peer_cpu:.1f}"
        f" | {cpu_ratio:.3f} | {beside:.1%} |"
    )


if __name__ == "__main__":
    main()
