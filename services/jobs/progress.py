"""How far a job is: what its stages cost at earlier jobs says which part of it each of them is."""

import time
from collections.abc import Mapping, Sequence
from typing import Final

MOST: Final = 0.95  # of a stage that is not finished, however long it takes


class Progress:
    """A job's nodes, in the order they run, and which of them are done; 0 % until they are known."""

    def __init__(self) -> None:
        self._costs: Mapping[str, float] = {}
        self._weights: Mapping[str, float] = {}
        self._done: set[str] = set()
        self._began = time.monotonic()

    def plan(self, nodes: Sequence[str], costs: Mapping[str, float]) -> None:
        """Take in which nodes there are, and how many seconds those took that ran before."""
        known = [costs[node] for node in nodes if node in costs]
        usual = sum(known) / len(known) if known else 0.0
        # of a node that never ran, the others' mean; where none ever did, they count alike and nobody knows how long
        self._costs = {node: costs.get(node, usual) for node in nodes}
        self._weights = self._costs if usual else dict.fromkeys(nodes, 1.0)
        self._began = time.monotonic()

    def done(self, node: str) -> None:
        """Note that a node is finished, and the next begins."""
        self._done.add(node)
        self._began = time.monotonic()

    @property
    def percent(self) -> float:
        """What is done, in percent of the whole, the time that the running node has had among it."""
        whole = sum(self._weights.values())
        if not whole:
            return 0.0
        done = sum(weight for node, weight in self._weights.items() if node in self._done)
        running = next((node for node in self._weights if node not in self._done), None)
        if running is not None and (cost := self._costs[running]):
            part = min(MOST, (time.monotonic() - self._began) / cost)
            done += part * self._weights[running]
        return 100 * done / whole
