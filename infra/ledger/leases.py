"""A lease on a promotion: renewed beside the work, given up at its end, free for others when its holder is lost."""

import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from infra.database import DatabaseError
from infra.ledger.promotions import LEASE_S, Promotions


@contextmanager
def holding(journal: Promotions, id: str, holder: str) -> Iterator[None]:
    """Renew a lease beside the block's work; it is given up at the block's end, unless the process is killed."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(LEASE_S / 3):
            try:
                if not journal.renew(id, holder):
                    return  # taken over: the holder's next step says so
            except DatabaseError:
                continue  # the next turn comes before the lease is over

    thread = threading.Thread(target=renew, name=f"lease {id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(DatabaseError):  # it runs out by itself
            journal.release(id, holder)


def new_holder() -> str:
    """Return a name for this process's work on one promotion."""
    return f"{socket.gethostname()[:30]}/{os.getpid()}/{secrets.token_hex(6)}"
