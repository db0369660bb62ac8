"""The training of a family that counts: every training row is absorbed once a pass, and the sums settle.

A step is a pass over the training split, all workers together, so `training.steps` is the number of passes that the
family takes. Optimisers, averaging of weights, clipping, accumulation and precision have no part in it. Each pass ends
in a checkpoint, so an interrupted one is done again from its start. Sums do not depend on the order of rows or on the
number of workers, but for the rounding of float64.
"""

import math
import time

import torch

from data.loaders import DatasetError, Loader
from flows.recipe import Stage
from flows.training import halting
from flows.training.loop import Diverged, Loop
from flows.training.spec import TrainingSpec
from models.family import Trainable


class CountingLoop(Loop):
    """One attempt at a counting, on one rank."""

    def run(self) -> None:
        """Do the passes that are left, then measure and publish.

        Raises:
            ValueError: `training.steps` is not the number of passes, or settling finds too little in the sums.
            Diverged: the model gives some validation row no likelihood.
        """
        state, rules = self.state, self.spec.training
        check_passes(self.spec, state.model)
        state.model.eval()
        began = time.monotonic()
        while state.step < rules.steps:
            started, done = time.monotonic(), state.step
            self._pass(done)
            state.step += 1
            if self.journal:
                self.journal.count(state.step)
            if done == 0:
                self.seconds["first_step"] = time.monotonic() - began
            if state.step == rules.steps:
                self._measure(self.loader.rows / max(time.monotonic() - started, 1e-9))
            self._save()
        self.seconds["loop"] = time.monotonic() - began
        self._finish()

    def _pass(self, number: int) -> None:
        """Absorb this rank's rows, add up the pass's sums over ranks, put gathered rows together, settle."""
        model = self.state.model
        for batch in self.loader.once():
            halting.check()
            model.absorb({k: v.to(self.ranks.device) for k, v in batch.items()}, number)
        for name in model.sums[number]:
            own = model.get_buffer(name)
            own.copy_(self.ranks.summed(own))
        for name in model.gathers[number]:
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, self.ranks.collected(model.get_buffer(name)))
        model.settle(number)

    def _measure(self, rate: float) -> None:
        """Note -log p(x) and the accuracy on the validation split, and on some training rows."""
        if self.journal is None:
            return
        began = time.monotonic()
        losses = self.state.model(
            {k: v.to(self.ranks.device) for k, v in self.loader.batch(0).items()}
        )
        means = {"loss": float(losses.total), "samples_per_s": rate}
        means |= {name: float(value) for name, value in losses.parts.items()}
        means |= self._on_validation()
        if bad := [name for name, value in means.items() if not math.isfinite(value)]:
            raise Diverged(
                f"{bad[0]} is {means[bad[0]]} after {self.state.step} passes; raise the smoothing or the"
                f" shrinkage of {self.spec.family}"
            )
        self.seconds["validation"] += time.monotonic() - began
        self.state.means = means
        self.journal.metrics(self.state.step, means)
        wanted = self.spec.training.validate_every is not None
        if wanted and self.on_validation is not None:
            self.on_validation(self.state.step, means["validation_loss"])

    def _on_validation(self) -> dict[str, float]:
        """Return the means over the whole validation split, each batch weighed by what it counts; empty: nothing."""
        model, spec = self.state.model, self.spec
        try:
            loader = Loader(
                spec.prepared,
                "validation",
                batch_size=self.rows,
                image_size=spec.image_size,
                encode=model.encode,
                learner=model,
                beside=spec.beside,
                stills=spec.stills,
            )
        except DatasetError:
            if spec.training.validate_every is not None:
                raise
            return {}
        total, count = dict[str, float](), 0.0
        with torch.no_grad():
            for batch in loader.once():
                losses = model({k: v.to(self.ranks.device) for k, v in batch.items()})
                found = {"loss": losses.total, **losses.parts}
                count += float(losses.count)
                for name, value in found.items():
                    total[name] = total.get(name, 0.0) + float(value * losses.count)
        return {f"validation_{name}": value / count for name, value in total.items() if count}


def check_passes(spec: Stage | TrainingSpec, model: Trainable) -> None:
    """Refuse a number of steps that is not the family's number of passes.

    Raises:
        ValueError: says how many passes it takes.
    """
    if spec.training.steps != len(model.sums):
        raise ValueError(
            f"{spec.family} counts in {len(model.sums)} pass(es) over the data, got training.steps"
            f" {spec.training.steps}: set it to {len(model.sums)}"
        )
