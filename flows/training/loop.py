"""The training loop of every family: several players in turn, accumulation, clipping, averaging, checkpoints.

It runs in one process of `Ranks`, and reads everything it needs from the spec, the prepared data and the run's folder.
With equal seeds and ranks, an interrupted training ends with the same bits as an undisturbed one on a CPU.
"""

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data.loaders import Loader
from flows.recipe import Optimizer
from flows.training import augmenting, halting, previews, starting, turns
from flows.training.best import Best
from flows.training.captured import Captured
from flows.training.checkpoints import State, all_generators, detached, seed_generators
from flows.training.gradients import Gradients
from flows.training.journal import Journal, repeated_steps, sign_in
from flows.training.optimizers import AdamW, Average, clip, rate_at
from flows.training.ranks import Ranks
from flows.training.rows import check_turns, rows_of
from flows.training.run_folder import Fenced, RunFolder
from flows.training.skips import SKIPPED, TOTAL, Skips
from flows.training.spec import TrainingSpec
from flows.training.validation import OnValidation, Validation
from infra.storage import IntegrityError, faultpoint, write_json
from models import describe, trainable
from models.family import heard
from models.parts.lora import own


class Diverged(ArithmeticError):
    """Loss or gradients are no longer finite numbers; trying again would give the same."""


PERMANENT: Final = (
    Diverged,
    Fenced,
    IntegrityError,
    ArithmeticError,
    AssertionError,
    LookupError,
    TypeError,
    ValueError,
)
"""What would happen again: no worker is started anew for these."""


class Loop:
    """One attempt at a training, on one rank."""

    def __init__(
        self,
        spec: TrainingSpec,
        folder: RunFolder,
        ranks: Ranks,
        lease: str,
        seconds: Mapping[str, float],
        on_validation: OnValidation | None = None,
    ) -> None:
        began, self._cpu = time.monotonic(), time.process_time()
        self.spec, self.folder, self.ranks, self.lease = spec, folder, ranks, lease
        self.on_validation = on_validation
        self.seconds = {**seconds, "checkpoints": 0.0, "pictures": 0.0, "validation": 0.0}
        self.rows = rows_of(spec, ranks.world)
        self.state = self._fresh()
        check_turns(self.state.model, self.rows, spec.training.accumulate)
        self.attempt = self._resume()
        first = ranks.rank == 0
        self.journal = Journal(folder.journal, self.attempt, self.state.step) if first else None
        sign_in(folder.journal, self.attempt, ranks.rank)
        if self.journal and self.left_out:
            self.journal.note(self.state.step, self.left_out)
        if self.journal and spec.base is not None and not self.state.step:
            self.journal.note(0, starting.told(self.state.model, spec, spec.base))
        self.model: Any = self.state.model
        if spec.training.compile:
            self.model = torch.compile(self.state.model)
        if spec.training.cuda_graph and ranks.device.type == "cuda":
            self.model = Captured(self.state.model, self.model)
        self.gradients = {
            player: Gradients(optimizer.parameters, ranks.world)
            for player, optimizer in self.state.optimizers.items()
        }
        self.running = [  # means and variances, which a forward pass moves
            buffer
            for module in self.state.model.modules()
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            for buffer in module.buffers()
        ]
        self.skips = Skips(spec.training, self.state.means)
        self.window: list[Tensor] = []  # one row of scalars a step since the last flush
        self.names: list[str] = []
        self.over = self._waited_enough()  # already, where the last attempt died at its end
        self.seconds["prepare"] = time.monotonic() - began

    def _fresh(self) -> State:
        spec = self.spec
        config = starting.config_of(spec, self._loader().facts)
        torch.manual_seed(heard(spec.seed))  # the same first weights on every rank
        model = trainable(spec.family)(config)
        if spec.base is not None:
            starting.load(model, spec, spec.base)
        model.to(self.ranks.device)
        if self.ranks.device.type == "cuda":
            for parameter in model.parameters():
                if parameter.ndim == 4:  # filters
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        seed_generators(spec.seed, self.ranks.rank)
        self.loader = self._loader(encode=model.encode, learner=model)
        self.left_out = model.left_out
        rules = spec.training.optimizers
        optimizers = {
            player: AdamW(model, model.player_parameters(player), rules.get(player, Optimizer()))
            for player in model.players
        }
        average = Average(model, spec.training.ema_decay) if self.ranks.rank == 0 else None
        if spec.training.validate_every is not None:
            self.validation = Validation(spec, model)
        keeps = spec.training.keep == "best" and average is not None
        return State(model, optimizers, average, Best() if keeps else None)

    def _loader(self, **reads: Any) -> Loader:
        return Loader(
            self.spec.prepared,
            "train",
            batch_size=self.rows,
            rank=self.ranks.rank,
            world=self.ranks.world,
            seed=self.spec.seed,
            image_size=self.spec.image_size,
            beside=self.spec.beside,
            stills=self.spec.stills,
            shuffle_captions=self.spec.training.shuffle_captions,
            **reads,
        )

    def _resume(self) -> int:
        """Claim the run, take the newest good checkpoint's state on every rank; returns the attempt's number."""
        attempt, written_by, step = 0, 0, 0
        if self.ranks.rank == 0:
            try:
                attempt = self.folder.claim(self.lease)
                newest = self.folder.newest()
            except (Fenced, IntegrityError):
                self.ranks.told([0, 0, 0])
                raise
            if newest is not None:
                written_by, step = (int(part) for part in newest.name.split("-")[1:])
        attempt, written_by, step = self.ranks.told([attempt, written_by, step])
        if not attempt:
            raise Fenced(f"rank 0 did not get {self.folder.path}")
        if step:
            faultpoint("checkpoint.read")
            checkpoint = self.folder.path / f"ckpt-{written_by}-{step}"
            self.state.read(checkpoint, self.ranks, self.spec.seed)
        return attempt

    def run(self) -> None:
        """Do the steps that are left, then publish."""
        rules = self.spec.training
        self.state.model.train()
        began, first = time.monotonic(), self.state.step
        self._since = began, first
        for batch in () if self.over else self._batches():
            halting.check()
            self._step(batch)
            step = self.state.step
            if step == first + 1:
                self.seconds["first_step"] = time.monotonic() - began
            if self.journal:
                self.journal.count(step)
            saves = step % rules.checkpoint_every == 0 or step == rules.steps
            every = rules.validate_every
            validates = every is not None and (step % every == 0 or step == rules.steps)
            if step % rules.log_every == 0 or saves or validates:
                self._flush(validates)
            if saves:
                self._save()
            if rules.sample_every and step % rules.sample_every == 0 and step < rules.steps:
                self._draw(batch)
            if self.over:
                break
        self.seconds["loop"] = time.monotonic() - began
        self._finish()

    def _finish(self) -> None:
        """Add up the CPU time of all ranks, of this attempt; publish."""
        spent = torch.tensor([time.process_time() - self._cpu], dtype=torch.float64)
        self.seconds["cpu"] = float(self.ranks.summed(spent))
        if self.journal:
            self._publish()

    def close(self) -> None:
        """Close the journal's files."""
        if self.journal:
            self.journal.close()

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield the batches from the current step on; a GPU's next one is read while it works."""
        steps = range(self.state.step, self.spec.training.steps)
        if self.ranks.device.type == "cpu":
            yield from map(self._augmented, map(self._read, steps))
            return
        with ThreadPoolExecutor(1, "batches") as reader:
            coming: Future[dict[str, Tensor]] | None = None
            for step in steps:
                batch = coming.result() if coming else self._pinned(step)
                coming = reader.submit(self._pinned, step + 1) if step + 1 < steps.stop else None
                if coming and step == steps.start and self.spec.training.cuda_graph:
                    coming.exception()  # nothing may pin memory while the first step is captured
                yield self._augmented(
                    {k: v.to(self.ranks.device, non_blocking=True) for k, v in batch.items()}
                )

    def _pinned(self, step: int) -> dict[str, Tensor]:
        return {name: value.pin_memory() for name, value in self._read(step).items()}

    def _read(self, step: int) -> dict[str, Tensor]:
        """Return the step's batch as it is in the data, with what is drawn for its rows where they are augmented."""
        batch = self.loader.batch(step)
        if self.spec.training.augment.asked:
            batch["drawn"] = augmenting.drawn(self.spec.seed, self.loader.places(step))
        return batch

    def _augmented(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        rules = self.spec.training.augment
        return augmenting.augmented(batch, batch.pop("drawn"), rules) if rules.asked else batch

    def _step(self, batch: Mapping[str, Tensor]) -> None:
        """The optimiser steps of every player, in turn, on this rank's rows of the batch."""
        state = self.state
        row: dict[str, Tensor] = {}
        state.model.steps_taken = state.step
        for player in state.optimizers:
            self._only(player)
            count = state.model.turns(player)
            for turn in range(count):
                part = {name: value[turn::count] for name, value in batch.items()}
                for name, scalar in self._turn(player, part).items():
                    row[name] = row[name] + scalar / count if turn else scalar / count
        if state.average is not None:
            skipped = [value for name, value in row.items() if name.endswith(SKIPPED)]
            state.average.update(state.step, (torch.stack(skipped).amax() == 0).float())
        state.step += 1
        self.names = list(row)
        self.window.append(torch.stack([value.float() for value in row.values()]))

    def _turn(self, player: str, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One optimiser step of one player; returns its scalars."""
        rules, state = self.spec.training, self.state
        parts = [
            {name: value[piece :: rules.accumulate] for name, value in batch.items()}
            for piece in range(rules.accumulate)
        ]
        before = [buffer.clone() for buffer in self.running]
        turn = turns.take(
            state.model,
            self.model,
            parts,
            player,
            self.gradients[player],
            self.ranks,
            self._precision,
        )
        norm = clip(turn.gradients, rules.clip_norm, turn.share)
        taken = norm.isfinite()
        optimizer = state.optimizers[player]
        optimizer.step(rate_at(state.step, rules.steps, optimizer.rule), taken.float())
        for buffer, value in zip(self.running, before, strict=True):
            buffer.copy_(torch.where(taken, buffer, value))
        if turn.seen:
            seen = {name: torch.where(taken, rows, 0) for name, rows in turn.seen.items()}
            state.model.follow(seen, taken.float())
        prefix = "" if len(state.optimizers) == 1 else f"{player}."
        scalars = {**turn.scalars, "gradient_norm": norm, SKIPPED: 1 - taken.float()}
        return {prefix + name: value for name, value in scalars.items()}

    def _only(self, player: str) -> None:
        """Let gradients reach this player's parameters alone."""
        if len(self.state.optimizers) == 1:
            return
        for name, optimizer in self.state.optimizers.items():
            for parameter in optimizer.parameters:
                parameter.requires_grad_(name == player)

    def _precision(self) -> AbstractContextManager[Any]:
        wanted, kind = self.spec.training.precision, self.ranks.device.type
        if wanted == "bf16" or (wanted == "auto" and kind == "cuda"):
            graphs = kind == "cuda" and self.spec.training.cuda_graph  # cast their weights anew
            return torch.autocast(kind, dtype=torch.bfloat16, cache_enabled=not graphs)
        return nullcontext()

    def _flush(self, validates: bool) -> None:
        """Average the window over steps and ranks, refuse what is not finite, note it; measure where it is time."""
        if not self.window:
            return
        rules, step = self.spec.training, self.state.step
        table = self.ranks.mean(torch.stack(self.window)).cpu()
        first = step - len(self.window) + 1
        self.window = []
        if trouble := self.skips.trouble(table, self.names, first):
            good = self.folder.checkpoints()
            raise Diverged(
                f"{trouble}; the last good checkpoint is {good[0] if good else 'none'}; lower"
                " training.optimizers.*.learning_rate or training.clip_norm"
            )
        self.state.means[TOTAL] = float(self.skips.total)
        means = self.skips.means(table, self.names)
        if not means and not validates:
            return
        # where no step was taken the weights are measured all the same
        means = means or dict(self.state.means)
        losses = [f"{player}.loss" for player in self.state.optimizers]
        if known := [means[name] for name in losses if name in means]:
            means["loss"] = sum(known)
        now = time.monotonic()
        then, done = self._since
        self._since = now, step
        means["samples_per_s"] = (step - done) * rules.batch_size / max(now - then, 1e-9)
        rule = next(iter(self.state.optimizers.values())).rule
        means["learning_rate"] = rate_at(step - 1, rules.steps, rule)
        self.state.means = means
        if validates:
            means["validation_loss"] = self._validate()
            self._since = time.monotonic(), step
        if self.journal:
            self.journal.metrics(step, means)
            if validates and self.on_validation is not None:
                self.on_validation(step, means["validation_loss"])

    def _validate(self) -> float:
        """Return the averaged weights' loss on the validation split; rank 0 measures while the others wait."""
        loss, best = float("nan"), self.state.best
        if self.state.average is not None:
            began = time.monotonic()
            with self.state.average.swapped_in(), self._precision():
                loss = self.validation.loss(self.state.model, self.ranks.device)
            if best is not None:
                best.look(self.state.step, loss, self.state.average)
            self.seconds["validation"] += time.monotonic() - began
        self.over = self._waited_enough()
        if self.journal and not math.isfinite(loss):
            raise Diverged(f"the validation loss is {loss} at step {self.state.step}")
        return loss

    def _waited_enough(self) -> bool:
        """Return whether the training's patience is over, as rank 0 knows; the others wait for it."""
        best, patience = self.state.best, self.spec.training.patience
        over = best is not None and patience is not None and best.worse >= patience
        return bool(self.ranks.told([over])[0])

    def _save(self) -> None:
        """Commit a checkpoint; no rank goes on before it is durable."""
        began = time.monotonic()
        generators = all_generators(self.ranks)
        if self.journal:
            facts = {"seed": self.spec.seed, "identity": self.spec.identity}
            self.folder.save(
                self.attempt,
                self.state.step,
                lambda directory: self.state.write(directory, generators),
                facts,
                self.spec.training.keep_checkpoints,
            )
        self.ranks.told([self.state.step])
        self.seconds["checkpoints"] += time.monotonic() - began

    def _draw(self, batch: Mapping[str, Tensor]) -> None:
        if self.journal:
            began = time.monotonic()
            if picture := self._picture(batch):
                self.journal.picture(self.state.step, picture)
            self.seconds["pictures"] += time.monotonic() - began
        self.ranks.told([self.state.step])

    def _picture(self, batch: Mapping[str, Tensor]) -> bytes | None:
        assert self.state.average is not None
        with self.state.average.swapped_in():
            return previews.png_of_samples(self.state.model, self.spec.prepared, batch)

    def _publish(self) -> None:
        """Seal the averaged weights, the config and a last grid as the result."""
        assert self.state.average is not None
        assert self.journal is not None
        if (best := self.state.best) is not None:
            best.put_back(self.state.average)
            self.state.means |= {"validation_loss": best.loss, "best_step": best.step}
            if self.state.step < self.spec.training.steps:
                waited = f"{best.worse} validation losses in a row were no lower"
                self.journal.note(self.state.step, f"{waited} than at step {best.step}: it ends")
        batch = self.loader.batch(0)
        on_device = {name: value.to(self.ranks.device) for name, value in batch.items()}
        began = time.monotonic()
        picture = self._picture(on_device)
        self.seconds["pictures"] += time.monotonic() - began
        if picture:
            self.journal.picture(self.state.step, picture)
        with self.state.average.swapped_in():
            weights = detached(own(self.state.model))

        def write(directory: Path) -> None:
            write_json(directory / "config.json", describe(self.state.model))
            save_file(weights, directory / "model.safetensors")
            if picture:
                (directory / "samples.png").write_bytes(picture)

        facts = {
            "identity": self.spec.identity,
            "seed": self.spec.seed,
            "steps": self.state.step,
            "metrics": {**self.state.means, "cpu_seconds": round(self.seconds["cpu"], 1)},
            "attempts": self.attempt,
            "repeated_steps": repeated_steps(self.folder.journal),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "ended": time.time(),
        }
        self.folder.finish(self.attempt, write, facts)
