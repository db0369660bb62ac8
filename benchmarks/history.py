"""How the ledger and the registry grow: the price of a step with 10, 1,000 and 10,000 versions behind it.

`python -m benchmarks.history` fills a ledger (SQLite, WAL, every commit synced) and an MLflow registry (SQLite, in this
process) and prints a row a size: transitions a second, the gateway's look at what stands, `history`, checking the whole
chain, and finding a version. Medians of 30 calls.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from infra.ledger.ledger import Ledger
from infra.registry.registry import Registry
from infra.storage import seal

NAME = "bench"


def milliseconds(call: Callable[[], object], rounds: int = 30) -> float:
    """Return the median time of a call."""
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        spent.append(1000 * (time.perf_counter() - began))
    return statistics.median(spent)


def move(ledger: Ledger, epoch: int) -> None:
    """Append the transition that follows `epoch`."""
    ledger.transition(
        name=NAME,
        stage="production",
        to_version=epoch + 1,
        to_digest=f"{epoch + 1:064x}",
        expected_epoch=epoch,
        key=f"{NAME}/{epoch}",
        actor="benchmark",
        reason="promoted",
        report={"passed": True, "conditions": [{"says": "alignment 0.97 >= 0.85"}] * 8},
    )


def ledger_rows(folder: Path, sizes: list[int]) -> None:
    """Print a row a size of the ledger's table."""
    print(
        "| transitions | transitions/s | standing ms | fallback ms | history ms | whole chain checked ms |"
    )
    print("|---|---|---|---|---|---|")
    ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}")
    rows = 0
    for size in sizes:
        began, before = time.perf_counter(), rows
        while rows < size:
            move(ledger, rows)
            rows += 1
        rate = (rows - before) / (time.perf_counter() - began)
        standing = milliseconds(lambda: ledger.standing(NAME))
        fallback = milliseconds(lambda: ledger.fallback(NAME, "production"), 5)
        history = milliseconds(lambda: ledger.history(NAME), 5)
        chain = milliseconds(ledger.verify, 5)
        print(
            f"| {size} | {rate:.0f} | {standing:.2f} | {fallback:.1f} | {history:.1f} | {chain:.0f} |",
            flush=True,
        )


def registry_rows(folder: Path, sizes: list[int]) -> None:
    """Print a row a size of the registry's table."""
    print("| versions | publish ms | newest ms | by number ms | by key ms | aliases ms |")
    print("|---|---|---|---|---|---|")
    registry = Registry(f"sqlite:///{folder / 'mlflow.db'}", folder / "versions")
    versions = 0
    for size in sizes:
        spent = []
        while versions < size:
            directory = folder / f"made-{versions}"
            directory.mkdir()
            (directory / "pipeline.json").write_text(f'{{"number": {versions}}}')
            seal(directory, {"kind": "pipeline", "name": NAME, "number": versions})
            began = time.perf_counter()
            registry.publish(NAME, directory, key=f"{NAME}-{versions}", tags={})
            spent.append(1000 * (time.perf_counter() - began))
            versions += 1
        publish = statistics.median(spent[-30:])
        newest = milliseconds(lambda: registry.get(NAME))
        number = milliseconds(lambda at=size: registry.get(f"{NAME}:{at}"))  # type: ignore[misc]
        key = milliseconds(lambda at=size: registry.find(NAME, f"{NAME}-{at - 1}"))  # type: ignore[misc]
        turn = iter(range(10_000))
        aliases = milliseconds(
            lambda at=size, turn=turn: registry.project(NAME, {"production": at - next(turn) % 2})  # type: ignore[misc]
        )
        row = (publish, newest, number, key, aliases)
        print(f"| {size} | " + " | ".join(f"{value:.1f}" for value in row) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 1_000, 10_000])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ledger_rows(Path(folder), given.sizes)
        print()
        registry_rows(Path(folder), given.sizes)


if __name__ == "__main__":
    main()
