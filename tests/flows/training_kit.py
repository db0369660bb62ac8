"""A small prepared dataset, a spec over it, and a world of processes without Ray to compare with.

Run as a script it is one rank of such a world: `training_kit.py SPEC_JSON RUN_FOLDER RANK WORLD STORE_FILE`.
"""

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor, nn

import models
from flows.recipe import Resources, Training
from flows.training.spec import TrainingSpec
from models.family import Batch, Losses, Trainable
from tests.command_kit import commands

ROOT = Path(__file__).parents[2]
WORDS = ("dark", "light")


TOY = "tests.flows.training_kit:Toy"
SICK = "tests.flows.training_kit:Sick"


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    image_size: int = 8
    channels: int = 3


class Toy(Trainable):
    """Two players without noise, one with two turns, a buffer that counts, a parameter that nothing reaches."""

    Config = ToyConfig
    presets: ClassVar[Mapping[str, ToyConfig]] = {"tiny": ToyConfig()}
    players = ("critic", "generator")

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        size = config.channels * config.image_size**2
        self.generator, self.critic = nn.Linear(4, size), nn.Linear(size, 1)
        self.critic.register_parameter("idle", nn.Parameter(torch.ones(3, 3)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def player_parameters(self, player: str) -> list[nn.Parameter]:
        return list(getattr(self, player).parameters())

    def turns(self, player: str) -> int:
        return 2 if player == "critic" else 1

    def forward(self, batch: Batch, player: str = "critic") -> Losses:
        self.seen += 1
        real = batch["pixels"].flatten(1)
        fake: Tensor = self.generator(real[:, :4])
        if player == "generator":
            assert not self.critic.weight.requires_grad
            return Losses(-self.critic(fake).mean(), len(real))
        assert not fake.requires_grad
        return Losses((self.critic(fake) - self.critic(real)).square().mean(), len(real))


@dataclass(frozen=True, kw_only=True)
class SickConfig:
    image_size: int = 8
    channels: int = 3
    sick: tuple[int, ...] = ()  # steps whose gradient is not a number, on the last worker alone


class Sick(Trainable):
    """Has all that a step changes: weights, the means of a batch norm and a buffer that follows."""

    Config = SickConfig
    presets: ClassVar[Mapping[str, SickConfig]] = {"tiny": SickConfig()}
    taken: Tensor

    def __init__(self, config: SickConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.BatchNorm1d(config.channels * config.image_size**2)
        self.out = nn.Linear(config.channels * config.image_size**2, 1)
        self.register_buffer("taken", torch.zeros(()))

    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002
        x = batch["pixels"].flatten(1)
        last = not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1
        if self.training and last and self.steps_taken in self.config.sick:
            x = x * float("nan")
        loss = self.out(self.norm(x)).square().mean()
        return Losses(loss, len(x), seen={"rows": x})

    def follow(self, seen: Mapping[str, Tensor], taken: Tensor) -> None:
        assert bool(seen["rows"].isfinite().all())
        self.taken += taken


def prepare(
    folder: Path, rows: int = 64, side: int = 8, validation: int = 0, test: int = 0
) -> Path:
    """Write `rows` pictures, dark or light with a gradient, as the data contract says, and some to validate on."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    splits: dict[str, Any] = {}
    for split, count in (("train", rows), ("validation", validation), ("test", test)):
        table = []
        for index in range(count):
            light = index % 2
            down = np.linspace(0, 40, side)[:, None, None] + generator.integers(0, 40, (1, 1, 3))
            ramp = down + np.linspace(0, 20, side)[None, :, None]
            pixels = (ramp + 150 * light).astype(np.uint8)
            row = {"pixels": pixels.tobytes(), "caption": WORDS[light], "attributes": [light]}
            digest = hashlib.sha256(row["pixels"] + bytes([index])).hexdigest()
            table.append({"id": digest, **row})
        splits[split] = {"rows": count, "shards": []}
        if table:
            path = folder / f"{split}-00000.parquet"
            pq.write_table(pa.Table.from_pylist(table), path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            splits[split]["shards"] = [{"file": path.name, "rows": count, "sha256": digest}]
    document = {
        "format": 1,
        "name": "shades",
        "maker": "shades",
        "modality": "image",
        "image_size": side,
        "channels": 3,
        "vocabulary": list(WORDS),
        "max_words": 1,
        "attributes": {"shade": list(WORDS)},
        "captions": list(WORDS),
        "held_out": [],
        "splits": splits,
    }
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def spec_of(
    prepared: Path,
    *,
    family: str = "ddpm",
    config: dict[str, Any] | None = None,
    workers: int = 0,
    seed: int = 0,
    **training: Any,
) -> TrainingSpec:
    """Return a spec of a tiny network; `training` overrides twelve steps of eight rows."""
    rules = {"steps": 12, "batch_size": 8, "log_every": 2, "checkpoint_every": 4, **training}
    return TrainingSpec(
        name="shades.base",
        family=family,
        preset="tiny",
        config=config or {},
        image_size=8,
        seed=seed,
        training=Training(**rules),
        resources=Resources(num_workers=workers, gpus_per_worker=0),
        dataset="shades",
        prepared=prepared,
        data_identity="0" * 32,
        code_identity="1" * 12,
    )


def weights_of(directory: Path) -> str:
    """Return the sha256 of a result's weights."""
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def wait_until(condition: Callable[[], Any], seconds: float = 600) -> Any:
    """Return the condition's first true value; fail after `seconds`, many more than it takes on a slow machine."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        pause.wait(0.02)
    return found


def train_without_ray(spec: TrainingSpec, runs: Path, *, succeeds: bool = True) -> Path:
    """Train in `num_workers` plain processes; returns the sealed result, if it `succeeds`."""
    folder = runs / spec.identity
    folder.mkdir(parents=True, exist_ok=True)
    document, store = folder / "spec.json", folder / f"store-{os.urandom(4).hex()}"
    document.write_text(spec.model_dump_json())
    world = spec.resources.num_workers
    ranks = [
        (str(document), str(folder), str(rank), str(world), str(store)) for rank in range(world)
    ]
    ended = commands.together(Path(__file__), *ranks)
    assert (ended == [0] * world) is succeeds
    return folder / "final"


def _rank(document: Path, folder: Path, rank: int, world: int, store: Path) -> None:
    from flows.training.attempt import train
    from flows.training.ranks import Ranks
    from flows.training.run_folder import RunFolder

    torch.set_num_threads(1)
    vars(models)["FAMILIES"].update(toy=TOY, sick=SICK)
    dist.init_process_group(
        "gloo", f"file://{store}", timedelta(seconds=60), rank=rank, world_size=world
    )
    run = RunFolder(folder)
    lease = run.lease() if rank == 0 else ""
    train(
        TrainingSpec.model_validate_json(document.read_text()),
        run,
        Ranks.joined(torch.device("cpu")),
        lease=lease,
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    _rank(
        Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])
    )
