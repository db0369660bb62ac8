"""Something small, done again and again beside work that takes long: a lease renewed, a sign of life given."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(act: Callable[[], object], every_s: float, name: str) -> Iterator[None]:
    """Call `act` every so many seconds while the block runs, in a thread called `name`; False ends it early.

    No call is under way when the block has ended.
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every_s) and act() is not False:
            pass

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
