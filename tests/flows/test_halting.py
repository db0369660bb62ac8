"""Ctrl+C ends the trainings that run in threads, and the same command goes on from the last checkpoint."""

import signal
import threading
from pathlib import Path

import pytest

from flows.training.halting import Halted, check, ends_with_the_caller
from flows.training.journal import Progress
from flows.training.ray_train import Trained, fit
from tests.flows.training_kit import prepare, spec_of, weights_of


def test_an_interrupt_ends_the_training_in_its_thread_and_it_goes_on_later(tmp_path: Path) -> None:
    spec = spec_of(prepare(tmp_path / "shades", validation=8), validate_every=4)
    found: list[Trained | Halted] = []
    seen, interrupted = threading.Event(), threading.Event()
    told: list[Progress] = []

    def pause(step: int, loss: float) -> None:
        seen.set()
        assert interrupted.wait(60)

    def work() -> None:
        try:
            found.append(
                fit(
                    spec,
                    run_id=None,
                    tracking_uri=None,
                    runs=tmp_path / "runs",
                    on_progress=told.append,
                    on_validation=pause,
                )
            )
        except Halted as halted:
            found.append(halted)

    worker = threading.Thread(target=work)
    worker.start()
    assert seen.wait(60)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    with pytest.raises(KeyboardInterrupt), ends_with_the_caller():
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    interrupted.set()
    worker.join(60)
    assert [str(one) for one in found] == [
        "stopped; the same command goes on from the last checkpoint"
    ]
    with ends_with_the_caller():  # the next command
        [*_, last] = told
        told.clear()
        resumed = fit(
            spec, run_id=None, tracking_uri=None, runs=tmp_path / "runs", on_progress=told.append
        )
        undisturbed = fit(spec, run_id=None, tracking_uri=None, runs=tmp_path / "others")
    first, *others = told
    assert last.note == f"the same command goes on from step {first.step}"
    assert first.step > 0
    assert first.note == f"resumed at step {first.step} of {spec.training.steps}"
    assert min(one.step for one in others) > first.step, "a line of the attempt before"
    assert resumed.attempts == 2
    assert resumed.repeated_steps == 0
    assert weights_of(resumed.directory) == weights_of(undisturbed.directory)


def test_an_error_of_one_training_does_not_end_the_others() -> None:
    with pytest.raises(ValueError, match="one"), ends_with_the_caller():
        raise ValueError("one")
    check()
