"""A search from its plan to its best trial, in one MLflow run with a child run for every trial."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.training.journal import Progress
from flows.training.run_folder import locked
from flows.training.shipping import Shipper
from flows.tuning.plan import Plan, Records, Trial
from infra.registry.mlflow_client import RegistryError
from infra.storage import write_json

if TYPE_CHECKING:
    from infra.registry.registry import Registry


class SearchFailed(RuntimeError):
    """No trial came to its end."""


@dataclass(frozen=True)
class Outcome:
    """A search that is over."""

    run_id: str  # MLflow's
    trials: tuple[Trial, ...]  # best first
    best: Trial  # of those that went to the end
    steps_spent: int
    steps_in_full: int  # without a scheduler


def search(
    plan: Plan,
    *,
    registry: "Registry",
    tracking_uri: str,
    experiment: str,
    runs: Path,
    ray_url: str,
    on_result: Callable[[int, Progress], None],
) -> Outcome:
    """Run the trials that have not ended and return all of them; a killed search goes on from where it was.

    The best trial's training is moved to `runs`, where an equal training finds it; the others are deleted.

    Raises:
        SearchFailed: every trial failed; says how the first did.
        infra.stack.cluster.Unreachable, infra.stack.cluster.TooSmall: no such cluster, or one that never has room for
            a trial.
        infra.registry.registry.RegistryError: MLflow refuses or does not answer; call again.
    """
    folder = runs.resolve() / plan.identity
    with locked(folder / "search.lock"):
        records = Records(folder / "ended")
        memory = _Memory(plan, registry, tracking_uri, experiment, folder)
        ended = {n: trial for n, trial in records.all().items() if n < len(plan.specs)}
        with memory.opened(ended):
            died: dict[int, str] = {}
            if len(ended) < len(plan.specs):
                from flows.tuning import asha
                from infra.stack.cluster import connect

                def told(number: int, progress: Progress) -> None:
                    if not progress.note:
                        memory.tell(number, progress.step, progress.loss)
                    on_result(number, progress)

                connect(ray_url)
                died = asha.run(plan, folder, ended, told, records.write)
                ended = {n: trial for n, trial in records.all().items() if n < len(plan.specs)}
            for trial in [trial for trial in ended.values() if not trial.run_id]:
                ended[trial.number] = memory.settle(trial)
                records.write(ended[trial.number])
            for number, why in died.items():  # not kept: the next call tries them again
                values = plan.values[number]
                lost = Trial(number=number, values=values, state="failed", curve=(), why=why)
                ended[number] = memory.settle(lost)
            outcome = _outcome(plan, memory.run_id, ended)
            memory.close(outcome)
        _clear(plan, folder, runs.resolve(), outcome.best.number)
    return outcome


def _outcome(plan: Plan, run_id: str, ended: dict[int, Trial]) -> Outcome:
    trials = sorted(ended.values(), key=_rank)
    if not trials or trials[0].state != "finished":
        why = next((trial.why for trial in trials if trial.why), "none was let to its end")
        raise SearchFailed(f"no trial of {plan.identity} came to its end: {why}")
    return Outcome(
        run_id,
        tuple(trials),
        trials[0],
        sum(trial.step for trial in trials),
        sum(spec.training.steps for spec in plan.specs),
    )


def _rank(trial: Trial) -> tuple[int, int, float]:
    """Return what is less for the better trial: of those that were not let to their end the longest come first."""
    order = {"finished": 0, "stopped": 1, "failed": 2}
    return order[trial.state], 0 if trial.state == "finished" else -trial.step, trial.loss


def _clear(plan: Plan, folder: Path, runs: Path, best: int) -> None:
    """Keep the best trial's training for whoever trains the same in full, and nothing of the others."""
    trained = folder / "trials" / plan.specs[best].identity
    kept = runs / trained.name
    if trained.is_dir() and not kept.exists():
        trained.rename(kept)
    shutil.rmtree(folder / "trials", ignore_errors=True)


class _Memory:
    """A search in MLflow. Curves go there while it runs, by threads that a dead server does not stop."""

    def __init__(
        self, plan: Plan, registry: "Registry", tracking_uri: str, experiment: str, folder: Path
    ) -> None:
        self.plan, self.registry, self.experiment = plan, registry, experiment
        self.tracking_uri, self.folder = tracking_uri, folder
        self.run_id = ""
        self._children: dict[int, str] = {}
        self._shippers: dict[int, Shipper] = {}

    @contextmanager
    def opened(self, ended: dict[int, Trial]) -> Iterator[None]:
        """Open the search's run and those of trials that MLflow has not in full; an error ends what is open then."""
        self._open(ended)
        try:
            yield
        except (KeyboardInterrupt, SystemExit, RuntimeError, ValueError, OSError, LookupError):
            for run_id in (*self._children.values(), self.run_id):
                with suppress(RegistryError):  # what went wrong may be MLflow itself
                    self.registry.end_run(run_id, "KILLED")
            raise

    def _open(self, ended: dict[int, Trial]) -> None:
        plan, rules = self.plan, self.plan.rules
        tags = {
            "atelier.identity": plan.identity,
            "atelier.kind": "search",
            "atelier.data_identity": plan.specs[0].data_identity,
            "atelier.code_identity": plan.specs[0].code_identity,
        }
        self.run_id = self.registry.start_run(self.experiment, plan.identity, tags, reopen=True)
        budget = {"max_steps", "grace_steps", "reduction", "validate_every"}
        params = {
            "stage": plan.specs[0].name,
            "seed": plan.specs[0].seed,
            "scheduler": "ASHA",
            **rules.model_dump(include=budget),
            **{
                f"space.{field}": space.model_dump_json(exclude_none=True)
                for field, space in rules.space.items()
            },
        }
        self.registry.log_params(self.run_id, params)
        for number in range(len(plan.specs)):
            if not (number in ended and ended[number].run_id):
                self._children[number] = self._child(number)

    def _child(self, number: int) -> str:
        tags = {
            "atelier.identity": f"{self.plan.identity}/{number}",
            "atelier.kind": "trial",
            "mlflow.parentRunId": self.run_id,
        }
        run_id = self.registry.start_run(self.experiment, f"trial {number}", tags, reopen=True)
        self.registry.log_params(run_id, self.plan.values[number] or {"values": "the recipe's own"})
        return run_id

    def tell(self, number: int, step: int, loss: float) -> None:
        """Note a validation; returns at once."""
        if number not in self._shippers:
            journal = self.folder / "sent" / f"{number:04d}"
            journal.mkdir(parents=True, exist_ok=True)
            cache = self.folder / "cache"
            run_id = self._children[number]
            self._shippers[number] = Shipper(self.tracking_uri, run_id, journal, cache)
        self._shippers[number].line({"step": step, "metrics": {"validation_loss": loss}})

    def settle(self, trial: Trial) -> Trial:
        """Say how a trial ended; returns it with its run's id, or without where MLflow lacks a part of its curve."""
        for step, loss in trial.curve:
            self.tell(trial.number, step, loss)  # what was sent is not sent again
        left = self._shippers[trial.number].close() if trial.curve else 0
        run_id = self._children.pop(trial.number)
        says = f"{trial.state} at step {trial.step}" + (f": {trial.why}" if trial.why else "")
        self.registry.tag_run(run_id, {"atelier.ended": says[:500]})
        self.registry.end_run(run_id, "FAILED" if trial.state == "failed" else "FINISHED")
        return trial if left else trial.model_copy(update={"run_id": run_id})

    def close(self, outcome: Outcome) -> None:
        """Add what was found to the search's run, with a picture, and end it."""
        from flows.tuning.picture import draw_search

        write_json(self.folder / "search.json", document(outcome))
        picture = self.folder / "search.png"
        draw_search(outcome.trials, self.plan.rules, picture)
        for path in (self.folder / "search.json", picture):
            self.registry.log_file(self.run_id, path)
        best = {
            "validation_loss": outcome.best.loss,
            "steps_spent": outcome.steps_spent,
            "steps_in_full": outcome.steps_in_full,
        }
        self.registry.log_metrics(self.run_id, best, step=len(outcome.trials))
        self.registry.tag_run(self.run_id, {"atelier.best": f"trial {outcome.best.number}"})
        self.registry.end_run(self.run_id, "FINISHED")


def document(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as JSON: {"run", "best", "steps_spent", "steps_in_full", "trials": best first}."""
    rows = [
        {
            **trial.model_dump(mode="json", exclude={"curve"}),
            "step": trial.step,
            "validation_loss": trial.loss if trial.curve else None,
        }
        for trial in outcome.trials
    ]
    return {
        "run": outcome.run_id,
        "best": outcome.best.number,
        "steps_spent": outcome.steps_spent,
        "steps_in_full": outcome.steps_in_full,
        "trials": rows,
    }
