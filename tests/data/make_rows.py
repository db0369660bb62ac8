"""One of several processes that want the same rows at once: `make_rows.py KEY LOG`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.reading.mapped import Array, mapped


def main(key: str, log: Path) -> None:
    def make() -> Iterator[dict[str, Array]]:
        with log.open("a") as file:
            file.write("made\n")
        for part in range(4):
            yield {"numbers": np.arange(part * 100_000, (part + 1) * 100_000)}

    column = mapped(key, {}, make).columns["numbers"]
    assert np.array_equal(column[:], np.arange(400_000))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
