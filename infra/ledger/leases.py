"""A lease on a promotion: renewed beside the work, given up at its end, free for others when its holder is lost."""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from infra.database import DatabaseError
from infra.ledger.promotions import LEASE_S, Promotions
from infra.repeating import repeating


@contextmanager
def holding(journal: Promotions, id: str, holder: str) -> Iterator[None]:
    """Renew a lease beside the block's work; it is given up at the block's end, unless the process is killed."""

    def renew() -> bool:
        try:
            return journal.renew(id, holder)  # taken over: the holder's next step says so
        except DatabaseError:
            return True  # the next turn comes before the lease is over

    try:
        with repeating(renew, LEASE_S / 3, f"lease {id}"):
            yield
    finally:
        with suppress(DatabaseError):  # it runs out by itself
            journal.release(id, holder)


def new_holder() -> str:
    """Return a name for this process's work on one promotion."""
    return f"{socket.gethostname()[:30]}/{os.getpid()}/{secrets.token_hex(6)}"
