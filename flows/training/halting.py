"""Ends the trainings that this process does or waits for, between two steps, where whoever asked for them is ended.

They run in threads of Prefect's, which no signal reaches, and Prefect waits for its threads: without this, Ctrl+C would
end a command when its training is done.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_halted = threading.Event()


class Halted(RuntimeError):
    """The training was ended on request; the same work goes on from its last checkpoint."""


@contextmanager
def ends_with_the_caller() -> Iterator[None]:
    """Let Ctrl+C, a signal or an exit inside the block end the trainings too; an error of one ends no other."""
    _halted.clear()
    try:
        yield
    finally:
        reason = sys.exception()
        if reason is not None and not isinstance(reason, Exception):
            _halted.set()


def check() -> None:
    """Go on, or raise.

    Raises:
        Halted: the caller was ended.
    """
    if _halted.is_set():
        raise Halted("stopped; the same command goes on from the last checkpoint")
