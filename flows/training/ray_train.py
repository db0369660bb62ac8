"""`fit`: train what a spec says, in this process or on Ray, to the end; equal work done before is recognised."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flows.training import halting
from flows.training.journal import Progress, Reader, Reporter
from flows.training.run_folder import RunFolder, locked
from flows.training.spec import TrainingSpec
from infra.storage import IntegrityError, atomic_write, verify

FOLLOW_S: Final = 0.2
"""How often the journal is read while training goes on elsewhere."""

_in_process = threading.Lock()  # the random generators of a process are one


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training."""

    directory: Path  # sealed: config.json, model.safetensors (averaged weights), samples.png
    steps: int
    metrics: dict[str, float]
    repeated_steps: int  # done twice because a process died
    attempts: int
    seconds: dict[str, float]


def fit(
    spec: TrainingSpec,
    *,
    run_id: str | None,
    tracking_uri: str | None,
    runs: Path,
    ray_url: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_validation: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train to the end and return the sealed result; resumes what an earlier call of equal identity left.

    Args:
        spec: what to train; `resources.num_workers` 0 trains in this process, with the same result and checkpoints.
        run_id: the MLflow run that metrics and sample grids go to; None for none.
        tracking_uri: its server.
        runs: the folder of all runs, on storage that every worker sees.
        ray_url: the running cluster's address; None for a private one in this process tree.
        on_progress: called at every `log_every`, and with a note while training waits; from another thread.
        on_validation: called with step and loss between two steps of a training in this process; what it raises
            ends the training there, to be resumed by another call.

    Raises:
        ValueError: a spec that cannot be trained.
        infra.stack.cluster.TooSmall: the cluster never has what the spec asks; says both.
        flows.training.loop.Diverged: the loss is no longer a number.
        infra.storage.IntegrityError: every checkpoint was altered.
    """
    from flows.training.rows import check_rows

    began = time.monotonic()
    check_rows(spec)
    folder = RunFolder(runs.resolve() / spec.identity)
    reporter = Reporter(on_progress or _silent, spec.training.steps, spec.training.batch_size)
    busy = "the same training runs in another process; waiting for it"
    with locked(folder.path / "fit.lock", lambda: reporter.note(busy)):
        _drop_damaged(folder)
        if (step := folder.step()) and not folder.final.is_dir():
            reporter.resumed(step)
        seconds: dict[str, float] = {}
        try:
            with _following(folder, reporter, run_id, tracking_uri, runs):
                if not folder.final.is_dir():
                    with atomic_write(folder.path / "spec.json") as file:
                        file.write(spec.model_dump_json(indent=1).encode())
                    seconds = _to_the_end(spec, folder, ray_url, reporter, on_validation)
                    seconds["end"] = time.time() - verify(folder.final)["ended"]
        except halting.Halted:  # after the journal's last line
            reporter.note(f"the same command goes on from step {folder.step()}")
            raise
        return _trained(folder, {**seconds, "fit": time.monotonic() - began})


def _to_the_end(
    spec: TrainingSpec,
    folder: RunFolder,
    ray_url: str | None,
    reporter: Reporter,
    on_validation: Callable[[int, float], None] | None,
) -> dict[str, float]:
    """Train here or on Ray; returns the seconds of joining the cluster."""
    if spec.resources.num_workers == 0:
        _here(spec, folder, on_validation)
        return {}
    from flows.training.supervisor import train_on_ray

    return train_on_ray(spec, folder, ray_url, reporter)


def _here(
    spec: TrainingSpec, folder: RunFolder, on_validation: Callable[[int, float], None] | None
) -> None:
    import torch

    from flows.training.attempt import train
    from flows.training.checkpoints import generators, set_generators
    from flows.training.ranks import Ranks

    wants_gpu = spec.resources.gpus_per_worker != 0 and torch.cuda.is_available()
    device = torch.device("cuda" if wants_gpu else "cpu")
    with _in_process:
        before, threads = generators(device), torch.get_num_threads()
        torch.set_num_threads(max(1, int(spec.resources.cpus_per_worker)))
        try:
            train(
                spec,
                folder,
                Ranks(device=device),
                lease=folder.lease(),
                on_validation=on_validation,
            )
        finally:
            torch.set_num_threads(threads)
            set_generators(before, device)


def _drop_damaged(folder: RunFolder) -> None:
    """Move a result whose bytes were altered aside, so that it is made again from the last checkpoint."""
    if folder.final.is_dir():
        try:
            verify(folder.final)
        except IntegrityError:
            folder.set_aside(folder.final)


def _trained(folder: RunFolder, seconds: dict[str, float]) -> Trained:
    facts = verify(folder.final)
    return Trained(
        directory=folder.final,
        steps=facts["steps"],
        metrics=facts["metrics"],
        repeated_steps=facts["repeated_steps"],
        attempts=facts["attempts"],
        seconds={**facts["seconds"], **{name: round(value, 3) for name, value in seconds.items()}},
    )


@contextmanager
def _following(
    folder: RunFolder, reporter: Reporter, run_id: str | None, tracking_uri: str | None, runs: Path
) -> Iterator[None]:
    """Pass the journal's lines on inside the block: to `on_progress` and to MLflow."""
    told: list[tuple[Reader, Any]] = [(Reader.from_now(folder.journal), reporter)]
    shipper = None
    if run_id is not None and tracking_uri is not None:
        from flows.training.shipping import Shipper

        folder.journal.mkdir(parents=True, exist_ok=True)
        shipper = Shipper(tracking_uri, run_id, folder.journal, runs / "cache")
        told.append((Reader(folder.journal), shipper))  # it sends what was never sent
    stop = threading.Event()

    def follow() -> None:
        last = False
        while not last:
            last = stop.wait(FOLLOW_S)
            for reader, sink in told:
                for line in reader.lines():
                    sink.line(line)

    thread = threading.Thread(target=follow, name="journal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if shipper and (left := shipper.close()):
            reporter.note(f"{left} metric lines wait for the tracking server ({shipper.trouble})")


def _silent(_: Progress) -> None:
    """Tell nobody."""
