"""Four processes that promote the same model, killed and replaced all the time: the ledger's chaos test runs it.

python promoters.py DATABASE_URL LOG_FOLDER KILLS TRANSITIONS; goes on until there were as many of both, and prints
how many were killed. Each promotion is written into the journal first and committed with its ledger row, as
`flows.promotion.procedure` does it.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from infra.ledger.ledger import Conflict, Ledger, Row
from infra.ledger.promotions import Promotions, advance


def promote(url: str, log: Path, first: int) -> None:
    """Move production on for ever; repeat each call, as a client whose answer was lost does."""
    ledger, journal, me = Ledger(url), Promotions(url), f"promoter {first}"
    answers = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for version in range(first, first + 10**6):
        head = ledger.head("shapes", "production")
        intent = journal.intend(
            kind="rollback",
            name="shapes",
            place="production",
            version=version,
            digest=f"{version:064x}",
            epoch=head.epoch if head else 0,
            actor=me,
            reason="",
            forced=False,
            holder=me,
        )
        for state in ("loaded", "smoked"):
            journal.advance(intent.id, me, state)

        def call(intent=intent) -> Row:  # noqa: ANN001
            return ledger.transition(
                name=intent.name,
                stage="production",
                to_version=intent.version,
                to_digest=intent.digest,
                expected_epoch=intent.epoch,
                key=intent.id,
                actor=intent.actor,
                within=lambda connection: advance(connection, intent.id, me, "committed"),
            )

        try:
            row = call()
        except Conflict as conflict:
            winner = conflict.winner
            said = winner is not None and f"{winner.actor} was first" in str(conflict)
            number = winner.id if winner else 0
            os.write(answers, f"conflict {number} {intent.epoch} {said}\n".encode())
            journal.advance(intent.id, me, "superseded", error=str(conflict))
            continue
        os.write(answers, f"moved {version} {row.id}\n".encode())
        assert call() == row
        journal.advance(intent.id, me, "done")


def main() -> None:
    """Fork, kill and replace until there were enough kills and transitions, as fast as this machine does them."""
    url, folder = sys.argv[1], Path(sys.argv[2])
    kills_wanted, rows_wanted = int(sys.argv[3]), int(sys.argv[4])
    draw, kills, started, moved_before = random.Random(0), 0, 0, 0
    running: dict[int, Path] = {}  # their logs
    try:
        while kills < kills_wanted:
            while len(running) < 4:
                started += 1
                log = folder / f"promoter-{started}.log"
                child = os.fork()
                if child == 0:
                    promote(url, log, started * 10**6)
                running[child] = log
            due = rows_wanted * (kills + 1) // kills_wanted
            while moved_before + _moved(running.values()) < due:
                time.sleep(0.02)
                _expect_alive(running)
            time.sleep(draw.uniform(0, 0.05))  # anywhere in a transition
            _expect_alive(running)
            killed = list(running)[draw.randrange(4)]
            _kill(killed)
            moved_before += _moved([running.pop(killed)])
            kills += 1
    finally:
        for child in running:
            _kill(child)
    print(kills)  # noqa: T201


def _expect_alive(running: dict[int, Path]) -> None:
    for child in running:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            del running[child]
            raise SystemExit(f"promoter {child} ended by itself")


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _moved(logs: Iterable[Path]) -> int:
    """Return how many transitions were answered, as logs say; those of the dead are counted once."""
    return sum(log.read_text().count("moved") for log in logs if log.exists())


if __name__ == "__main__":
    main()
