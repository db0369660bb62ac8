"""What watches a rollout: whatever goes awry while it writes, it goes on."""

import threading
from pathlib import Path
from typing import Any

from infra.ledger.ledger import Ledger
from infra.ledger.rollout_metrics import Observations
from infra.ledger.rollout_rules import Tally, Terms
from services.routing.endpoints import Rollout
from services.routing.observer import Observer


class Once(Ledger):
    """A ledger that fails once, and not by its database."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.failed, self.ended = threading.Event(), threading.Event()

    def transition(self, **what: Any) -> Any:
        if not self.failed.is_set():
            self.failed.set()
            raise ValueError("a row that cannot be read")
        found = super().transition(**what)
        self.ended.set()
        return found


def test_a_fault_in_writing_leaves_the_challenger_to_be_stopped_the_next_time(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'atelier.db'}"
    terms = Terms(percent=100, limits={"max_flat": 0})
    row = {"stage": "canary", "to_version": 2, "to_digest": "0" * 64, "expected_epoch": 0}
    Ledger(url).transition(
        name="walk", key="begin", actor="test", report={"terms": terms.model_dump()}, **row
    )
    ledger = Once(url)
    observer = Observer(ledger, Observations(url), every_s=0.01)
    for _ in range(5):
        observer.count(
            Rollout("walk", "canary", 1, terms), "challenger", Tally(requests=1, flat=True)
        )
    assert ledger.ended.wait(20)
    observer.close()
    head = ledger.head("walk", "canary")
    assert head is not None
    assert (ledger.failed.is_set(), head.to_version, head.actor) == (True, None, "gateway")
