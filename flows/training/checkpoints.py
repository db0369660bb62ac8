"""All that a training must remember to go on as if nothing had happened: tensors in safetensors, the rest in JSON."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from flows.training.best import Best
from flows.training.optimizers import AdamW, Average
from flows.training.ranks import Ranks
from infra.documents import read_json
from infra.storage import verify, write_json
from models.family import Trainable
from models.parts.lora import own

FORMAT: Final = 1


@dataclass
class State:
    """A training under way; `average` and the files are rank 0's alone."""

    model: Trainable
    optimizers: Mapping[str, AdamW]  # by player
    average: Average | None
    best: Best | None = None  # where the best weights are kept, and not the last
    step: int = 0  # steps done; the loader's position too
    means: dict[str, float] = field(default_factory=dict)  # the last metrics

    def write(self, directory: Path, generators: list[dict[str, Tensor]]) -> None:
        """Write the whole state into `directory`; `generators` has one entry a rank."""
        assert self.average is not None
        save_file(detached(own(self.model)), directory / "model.safetensors")
        save_file(detached(self.average.tensors()), directory / "average.safetensors")
        save_file(detached(dict(self._optimizer_tensors())), directory / "optimizer.safetensors")
        random_state = {
            f"{rank}/{name}": value
            for rank, row in enumerate(generators)
            for name, value in row.items()
        }
        save_file(random_state, directory / "generators.safetensors")
        document: dict[str, Any] = {
            "format": FORMAT,
            "step": self.step,
            "world": len(generators),
            "means": self.means,
        }
        if self.best is not None and self.best.weights:
            save_file(detached(self.best.weights), directory / "best.safetensors")
            document["best"] = self.best.document
        write_json(directory / "state.json", document)

    def read(self, directory: Path, ranks: Ranks, seed: int) -> None:
        """Take the state from a checkpoint, verified before it is parsed, and set this rank's generators.

        A rank that the checkpoint's world did not have starts its generators from (seed, rank, step).

        Raises:
            infra.storage.IntegrityError: the bytes are not those that were written.
            ValueError: a checkpoint of another format or network.
        """
        verify(directory)
        document: dict[str, Any] = read_json(directory / "state.json")
        if document["format"] != FORMAT:
            raise ValueError(f"{directory} is of format {document['format']}, expected {FORMAT}")
        if self.model.lora is None:
            self.model.load_state_dict(load_file(directory / "model.safetensors"))
        else:
            _fill(own(self.model), directory / "model.safetensors")
        _fill(dict(self._optimizer_tensors()), directory / "optimizer.safetensors")
        if self.average is not None:
            _fill(self.average.tensors(), directory / "average.safetensors")
        if self.best is not None and "best" in document:
            weights = load_file(directory / "best.safetensors", str(ranks.device))
            self.best.restore(document["best"], weights)
        self.step, self.means = document["step"], document["means"]
        if ranks.rank >= document["world"]:
            seed_generators(seed, ranks.rank, self.step)
            return
        with safe_open(directory / "generators.safetensors", "pt") as file:
            names = [name for name in file.keys() if name.startswith(f"{ranks.rank}/")]  # noqa: SIM118
            set_generators({n.partition("/")[2]: file.get_tensor(n) for n in names}, ranks.device)

    def _optimizer_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for player, optimizer in self.optimizers.items():
            for name, tensor in optimizer.tensors():
                yield f"{player}/{name}", tensor


def detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies that safetensors can write: on the CPU, contiguous, no two sharing memory."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _fill(into: Mapping[str, Tensor], path: Path) -> None:
    stored = load_file(path)
    if odd := sorted(stored.keys() ^ into.keys()):
        raise ValueError(f"{path} does not fit this network: {odd[0]} is on one side only")
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(stored[name])


def generators(device: torch.device) -> dict[str, Tensor]:
    """Return the state of every random generator of this process as CPU tensors of fixed shapes."""
    _, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, cached = legacy
    assert kind == "MT19937"
    out = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor(float("nan") if gauss is None else gauss, dtype=torch.float64),
        "numpy": torch.tensor([*keys.tolist(), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if device.type == "cuda":
        out["cuda"] = torch.cuda.get_rng_state(device)
    return out


def set_generators(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Set every random generator of this process to what `generators` returned."""
    gauss = float(state["python_gauss"])
    words = tuple(state["python"].tolist())
    random.setstate((3, words, None if np.isnan(gauss) else gauss))
    *keys, position, has_gauss = state["numpy"].tolist()
    array = np.array(keys, dtype=np.uint32)
    np.random.set_state(("MT19937", array, position, has_gauss, float(state["numpy_gauss"])))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_generators(seed: int, rank: int, step: int = 0) -> None:
    """Start every random generator of this process from (seed, rank), and from the step where it is not the first."""
    words = np.random.SeedSequence([seed, rank, *([step] if step else [])]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def all_generators(ranks: Ranks) -> list[dict[str, Tensor]]:
    """Return every rank's `generators`, in the order of ranks; every rank must call it."""
    mine = generators(ranks.device)
    gathered = {name: ranks.gathered(value) for name, value in sorted(mine.items())}
    return [{name: rows[rank] for name, rows in gathered.items()} for rank in range(ranks.world)]
