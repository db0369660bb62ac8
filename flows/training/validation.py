"""The loss on rows that are not learned: the same batches with the same noise at every step and for every network."""

import math
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

import torch

from data.loaders import Loader
from flows.training.checkpoints import generators, seed_generators, set_generators
from flows.training.spec import TrainingSpec
from models.family import Trainable

OnValidation: TypeAlias = Callable[[int, float], None]
ROWS: Final = 64  # a batch
BATCHES: Final = 16  # at most


class Validation:
    """Some batches of the validation split, held on the CPU.

    Neither the recipe's seed nor its batch size has a part in it, so losses of different trainings can be compared.

    Raises:
        data.loaders.DatasetError: the dataset has no validation rows.
    """

    def __init__(self, spec: TrainingSpec, model: Trainable) -> None:
        loader_of = partial(
            Loader,
            spec.prepared,
            "validation",
            image_size=spec.image_size,
            encode=model.encode,
            learner=model,
            beside=spec.beside,
            stills=spec.stills,
        )
        loader = loader_of(batch_size=ROWS)
        if (rows := loader.rows) < ROWS:
            loader = loader_of(batch_size=rows)
        self._batches = [loader.batch(step) for step in range(min(BATCHES, math.ceil(rows / ROWS)))]

    @torch.no_grad()
    def loss(self, model: Trainable, device: torch.device) -> float:
        """Return the sum of the players' losses on all rows; every random generator is left as it was."""
        before, training = generators(device), model.training
        seed_generators(0, 0)
        model.eval()
        players = [player for player in model.players if model.turns(player)]
        sums = torch.zeros(2, len(players), dtype=torch.float64, device=device)
        for batch in self._batches:
            on_device = {name: value.to(device) for name, value in batch.items()}
            for number, player in enumerate(players):
                losses = model(on_device, player)
                sums[0, number] += losses.total * losses.count
                sums[1, number] += losses.count
        model.train(training)
        set_generators(before, device)
        return float((sums[0] / sums[1].clamp(min=1)).sum())
