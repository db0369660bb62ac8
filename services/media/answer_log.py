"""A share of the answers, kept for the drift check where the version's recipe asks for it.

They are the very files that were answered, with their receipts, below one folder a name; the newest thousand stay.
Prompts are what people wrote: nothing is kept of a version whose recipe does not say so.
"""

import random
import secrets
from pathlib import Path
from typing import Final

from infra.storage import atomic_write, oldest_first
from services.gateway.errors import logger

MOST: Final = 1000  # files a name
PRUNE_EVERY: Final = 50


class Samples:
    """The kept answers below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept = 0

    def keep(self, name: str, share: float, file: bytes) -> None:
        """Keep an answered picture with probability `share`; where the disk is full, none."""
        if random.random() >= share:
            return
        folder = self._folder / name
        try:
            with atomic_write(folder / f"{secrets.token_hex(12)}.png") as target:
                target.write(file)
            self._kept += 1
            if self._kept % PRUNE_EVERY == 1:
                _prune(folder)
        except OSError as error:
            logger.warning("an answer of %s was not kept for its drift check: %s", name, error)


def _prune(folder: Path) -> None:
    """Remove the oldest files beyond the newest thousand."""
    for path, _ in oldest_first(folder, "*.png")[:-MOST]:
        path.unlink(missing_ok=True)
