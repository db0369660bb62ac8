"""Four processes that promote the same model, killed and replaced all the time: the ledger's chaos test runs it.

python promoters.py DATABASE_URL LOG_FOLDER SECONDS; prints how many were killed.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from infra.ledger import Conflict, Ledger, Row


def promote(url: str, log: Path, first: int) -> None:
    """Move production on for ever; repeat each call, as a client whose answer was lost does."""
    ledger = Ledger(url)
    answers = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for version in range(first, first + 10**6):
        head = ledger.head("shapes", "production")
        epoch = head.epoch if head else 0

        def call(version: int = version, epoch: int = epoch) -> Row:
            return ledger.transition(
                name="shapes",
                stage="production",
                to_version=version,
                to_digest=f"{version:064x}",
                expected_epoch=epoch,
                key=f"promotion-{version}",
                actor=f"promoter {first}",
            )

        try:
            row = call()
        except Conflict:
            os.write(answers, b"conflict\n")
            continue
        os.write(answers, f"moved {version} {row.id}\n".encode())
        assert call() == row


def main() -> None:
    """Fork, kill and replace until the time is over."""
    url, folder, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    draw, kills, started = random.Random(0), 0, 0
    running: list[int] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        while len(running) < 4:
            started += 1
            child = os.fork()
            if child == 0:
                promote(url, folder / f"promoter-{started}.log", started * 10**6)
            running.append(child)
        time.sleep(draw.uniform(0, 0.2))
        victim = running.pop(draw.randrange(4))
        if os.waitpid(victim, os.WNOHANG) != (0, 0):
            raise SystemExit(f"promoter {victim} ended by itself")
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        kills += 1
    for child in running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(kills)  # noqa: T201


if __name__ == "__main__":
    main()
