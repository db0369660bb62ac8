"""The trials of a search on Ray Tune: ASHA (Li et al. 2020, arXiv:1810.05934) stops what falls behind.

A trial is the one training loop in a Ray actor, which several trials use in turn. Ray Tune decides who goes on; it
remembers nothing for us (its own snapshot is a pickle, and the killed driver's last seconds are not in it). A trial's
checkpoints and its curve lie in its run folder, an ended trial in `Records`; a search that is started again tells Tune
the old curves anew, so that ASHA compares with them, and trains only what is left.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import ASHAScheduler

from flows.training.journal import Progress, Reader, Reporter
from flows.training.ray_train import fit
from flows.training.room import Patience, Request, bring
from flows.training.run_folder import RunFolder
from flows.training.spec import TrainingSpec
from flows.tuning.plan import Plan, Trial
from infra.settings import settings
from infra.stack.cluster import capacity

PROCESS_FAILURES: Final = 2  # of one trial, which goes on from its checkpoint
SETTINGS: Final = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files that nobody reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl+C ends the command, not only the trials
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has no loss to report
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
Curve = tuple[tuple[int, float], ...]


def run(
    plan: Plan,
    folder: Path,
    ended: Mapping[int, Trial],
    on_result: Callable[[int, Progress], None],
    on_end: Callable[[Trial], None],
) -> dict[int, str]:
    """Run the trials that have not ended, to their ends; returns why those are missing whose processes died.

    Args:
        plan: what is searched.
        folder: the search's, on storage that every node sees.
        ended: trials that are known; they are compared with and not repeated.
        on_result: called with a trial's number and how far it is, at every validation; a note while none begins.
        on_end: called once for every trial that ends.

    Raises:
        infra.stack.cluster.TooSmall: a trial would not fit the cluster were it idle, and no node for it comes in time.
        RuntimeError: the cluster or Tune itself broke.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    specs = [spec.model_dump_json() for spec in plan.specs]
    known = {n: trial.curve for n, trial in ended.items() if trial.state != "failed"}
    left = [number for number in range(len(specs)) if number not in ended]

    def trial(config: dict[str, Any]) -> None:
        number = config["number"]
        _trial(specs[number], folder / "trials", known.get(number))

    asked = plan.specs[0].resources
    gpus = asked.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if capacity().gpus >= 1 else 0.0
    reporter = Reporter(partial(on_result, left[0]), plan.specs[0].training.steps, 1)
    bring(Patience(Request(1, asked.cpus_per_worker, gpus), reporter, settings().scale_s))
    follower = _Follower(plan, folder / "trials", ended, on_result, on_end)
    shutil.rmtree(folder / "tune", ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": asked.cpus_per_worker, "GPU": gpus}),
        param_space={"number": tune.grid_search([*sorted(known), *left])},
        tune_config=tune.TuneConfig(
            metric="validation_loss", mode="min", scheduler=_scheduler(plan), reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name=plan.identity,
            storage_path=str(folder / "tune"),
            callbacks=[follower],
            failure_config=tune.FailureConfig(max_failures=PROCESS_FAILURES),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except (tune.TuneError, RayError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RuntimeError(
            f"Ray Tune gave up ({lines[-1]}); search again, what has ended is kept"
        ) from error
    shutil.rmtree(folder / "tune", ignore_errors=True)
    return follower.died


def _scheduler(plan: Plan) -> ASHAScheduler:
    rules = plan.rules
    return ASHAScheduler(
        time_attr="step",
        max_t=rules.max_steps,
        grace_period=rules.grace_steps,
        reduction_factor=rules.reduction,
        stop_last_trials=False,  # the loop itself ends there
    )


def _trial(document: str, runs: Path, known: Curve | None) -> None:
    """Train one trial in this process, telling Tune every validation; Tune may end it in `report`."""
    if known is not None:
        for step, loss in known:
            tune.report({"step": step, "validation_loss": loss})
        return
    from flows.training.loop import PERMANENT

    spec = TrainingSpec.model_validate_json(document)
    folder = RunFolder(runs / spec.identity)

    def tell(step: int, loss: float) -> None:
        if step < spec.training.steps:
            tune.report({"step": step, "validation_loss": loss})

    reached = folder.step()  # what was measured after the newest checkpoint is measured again
    for step, loss in _measured(folder).items():
        if step <= reached:
            tell(step, loss)
    try:
        trained = fit(spec, run_id=None, tracking_uri=None, runs=runs, on_validation=tell)
    except PERMANENT as error:
        tune.report({"failed": f"{type(error).__name__}: {error}"})
        return
    # told after the result is sealed, because Tune may end the process then; of the weights that are the result
    loss = trained.metrics["validation_loss"]
    tune.report({"step": trained.steps, "validation_loss": loss, "whole": True})


def _measured(folder: RunFolder) -> dict[int, float]:
    """Return the validation losses that all attempts of a trial have measured, by step."""
    losses = {
        line["step"]: line["metrics"]["validation_loss"]
        for line in Reader(folder.journal).lines()
        if "validation_loss" in line.get("metrics", {})
    }
    return dict(sorted(losses.items()))


class _Follower(tune.Callback):
    """Turns Tune's events into ended trials."""

    def __init__(
        self,
        plan: Plan,
        runs: Path,
        ended: Mapping[int, Trial],
        on_result: Callable[[int, Progress], None],
        on_end: Callable[[Trial], None],
    ) -> None:
        self.plan, self.runs, self.ended = plan, runs, ended
        self.on_result, self.on_end = on_result, on_end
        self.died: dict[int, str] = {}
        self._curves: dict[int, dict[int, float]] = {}
        self._began: dict[int, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Give Tune nothing to keep: it pickles its callbacks, and this one belongs to the driver alone."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:  # noqa: ARG002
        self._began.setdefault(trial.config["number"], time.monotonic())

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: Any,  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        number = trial.config["number"]
        if number in self.ended or "step" not in result:
            return
        step, loss = int(result["step"]), float(result["validation_loss"])
        self._curves.setdefault(number, {})[step] = loss
        rules = self.plan.specs[number].training
        seconds = max(time.monotonic() - self._began[number], 1e-9)
        left = (rules.steps - step) * seconds / step
        rate = step * rules.batch_size / seconds
        self.on_result(number, Progress(step, rules.steps, loss, rate, left))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:  # noqa: ARG002
        number = trial.config["number"]
        if number in self.ended:
            return
        spec, told = self.plan.specs[number], self._curves.get(number, {})
        # an attempt of a killed driver may have come further than where ASHA now stops the trial
        curve = tuple(sorted((_measured(RunFolder(self.runs / spec.identity)) | told).items()))
        why = str(trial.last_result.get("failed", ""))
        whole = bool(trial.last_result.get("whole"))  # perhaps by its own patience
        self.on_end(
            Trial(
                number=number,
                values=self.plan.values[number],
                state="failed" if why else "finished" if whole else "stopped",
                curve=curve,
                why=why,
                at=time.time(),
            )
        )

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:  # noqa: ARG002
        if trial.config["number"] not in self.ended:
            lines = str(trial.get_error() or "its process died").strip().splitlines()
            self.died[trial.config["number"]] = lines[-1]
