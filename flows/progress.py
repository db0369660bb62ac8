"""Where long work shows how far it is: lines in the flow's log, or bars on the terminal that asked."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.training.journal import Progress

Show = Callable[[str, "Progress"], None]
_shown_by: list[Show] = []


@contextmanager
def shown_by(show: Show) -> Iterator[None]:
    """Send every training's progress to `show(name, progress)` while the block runs."""
    _shown_by.append(show)
    try:
        yield
    finally:
        _shown_by.remove(show)


def reporter(name: str) -> "Callable[[Progress], None]":
    """Return the callback of one training: to the terminal where one listens, else to the flow's log."""
    if _shown_by:
        show = _shown_by[-1]
        return lambda now: show(name, now)
    return _to_log(name)


def say(text: str) -> None:
    """Say a line to whoever waits: in the flow's log, and on the terminal where one listens."""
    from prefect import get_run_logger

    get_run_logger().info(text)
    if _shown_by:
        sys.stderr.write(f"  {text}\n")


def _to_log(name: str) -> Callable[[Any], None]:
    from prefect import get_run_logger

    logger = get_run_logger()
    last = 0.0

    def log(now: "Progress") -> None:
        nonlocal last
        if now.note:
            logger.info("%s: %s", name, now.note)
        elif time.monotonic() - last > 10 or now.step == now.steps:
            last = time.monotonic()
            logger.info(
                "%s: step %d of %d, loss %.4f, %.0f samples/s, %.0f s left",
                name, now.step, now.steps, now.loss, now.samples_per_s, now.seconds_left,
            )  # fmt: skip

    return log
