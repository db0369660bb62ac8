"""The journal lets each promotion take the steps there are, by one holder at a time, and every verdict counts once."""

import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from infra.ledger.leases import holding
from infra.ledger.ledger import Conflict, Ledger
from infra.ledger.promotions import (
    ENDS,
    HAND_OVER_S,
    LEASE_S,
    NEXT,
    LeaseLost,
    Promotion,
    PromotionError,
    Promotions,
    advance,
)
from tests.databases_kit import Database, Databases


@pytest.fixture
def journal(database: Database) -> Iterator[Promotions]:
    with closing(Promotions(database.url)) as journal:
        yield journal


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    with Ledger(database.url) as ledger:
        yield ledger


def intend(journal: Promotions, **other: Any) -> Promotion:
    asked: dict[str, Any] = {
        "kind": "promote",
        "name": "shapes",
        "place": "production",
        "version": 3,
        "digest": "d" * 64,
        "epoch": 0,
        "actor": "anna",
        "reason": "promoted",
        "forced": False,
        "holder": "one",
    }
    return journal.intend(**{**asked, **other})


def wait(journal: Promotions, *, count: int = 1, by: tuple[str, ...] = ()) -> Promotion:
    row = intend(journal)
    journal.advance(row.id, "one", "gated")
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    return journal.wait(row.id, "one", {"count": count, "by": list(by)}, tomorrow)


def later(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def test_a_promotion_walks_its_states_in_order(journal: Promotions) -> None:
    row = intend(journal)
    for state in ("gated", "loaded", "smoked", "committed", "done"):
        assert journal.get(row.id).state in NEXT
        assert [one.id for one in journal.open()] == [row.id]
        journal.advance(row.id, "one", state)
    assert journal.open() == []
    assert journal.get(row.id).ended


@pytest.mark.parametrize(
    ("walked", "state"),
    [
        ((), "smoked"),
        ((), "committed"),
        ((), "done"),
        (("gated",), "done"),
        (("loaded", "smoked", "committed"), "undone"),
        (("loaded", "smoked", "committed"), "superseded"),
    ],
)
def test_a_step_that_there_is_not_is_refused(
    journal: Promotions, walked: tuple[str, ...], state: str
) -> None:
    row = intend(journal)
    for one in walked:
        journal.advance(row.id, "one", one)
    with pytest.raises(PromotionError, match=f"cannot become {state}"):
        journal.advance(row.id, "one", state)


def test_a_lease_that_ran_out_is_taken_by_one_and_the_first_holder_s_next_step_fails(
    journal: Promotions,
) -> None:
    row = intend(journal)
    assert journal.forsaken(datetime.now(UTC)) == []
    assert not journal.take(row.id, "two", datetime.now(UTC))
    after = later(LEASE_S + 1)
    assert [one.id for one in journal.forsaken(after)] == [row.id]
    assert [journal.take(row.id, who, after) for who in ("two", "three")] == [True, False]
    assert not journal.renew(row.id, "one")
    with pytest.raises(LeaseLost, match="was taken over"):
        journal.advance(row.id, "one", "gated")
    assert journal.get(row.id).state == "intended"


def test_a_lease_from_a_clock_that_was_set_back_counts_as_run_out(journal: Promotions) -> None:
    row = intend(journal)
    assert [one.id for one in journal.forsaken(later(-HAND_OVER_S - 3600))] == [row.id]


def test_a_lease_is_renewed_beside_the_work_and_given_up_at_its_end(
    journal: Promotions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.ledger.leases.LEASE_S", 0.03)
    row = intend(journal)
    renewed = threading.Event()
    renew = journal.renew

    def watched(promotion: str, holder: str) -> bool:
        held = renew(promotion, holder)
        renewed.set()
        return held

    monkeypatch.setattr(journal, "renew", watched)
    with holding(journal, row.id, "one"):
        assert renewed.wait(10)
        assert journal.forsaken(datetime.now(UTC)) == []
    assert [one.id for one in journal.forsaken(later(0.001))] == [row.id]


def test_the_journal_is_committed_exactly_when_the_ledger_is(
    journal: Promotions, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:

    def commit(row: Promotion, holder: str) -> None:
        ledger.transition(
            name=row.name,
            stage="production",
            to_version=row.version,
            to_digest=row.digest,
            expected_epoch=row.epoch,
            key=row.id,
            actor=row.actor,
            within=lambda connection: advance(connection, row.id, holder, "committed"),
        )

    rows = [intend(journal, kind="rollback") for _ in range(2)]
    for row in rows:
        for state in ("loaded", "smoked"):
            journal.advance(row.id, "one", state)
    with pytest.raises(LeaseLost):
        commit(rows[0], "somebody else")
    monkeypatch.setenv("ATELIER_FAULT", "ledger.commit:enospc")
    with pytest.raises(OSError, match="No space left"):
        commit(rows[0], "one")
    monkeypatch.delenv("ATELIER_FAULT")
    assert (ledger.verify(), journal.get(rows[0].id).state) == (0, "smoked")
    commit(rows[0], "one")
    assert (ledger.verify(), journal.get(rows[0].id).state) == (1, "committed")
    with pytest.raises(Conflict, match="anna was first"):
        commit(rows[1], "one")
    assert journal.get(rows[1].id).state == "smoked"


def test_another_person_s_approval_lets_a_promotion_go_on(journal: Promotions) -> None:
    row = wait(journal, count=2)
    assert [one.id for one in journal.waiting()] == [row.id]
    assert journal.forsaken(later(3600)) == [], "who waits holds no lease"
    assert journal.approve(row.id, "berta", "looks good").state == "waiting"
    assert journal.approve(row.id, "carl", "agreed").state == "gated"
    assert [(one.actor, one.reason) for one in journal.verdicts(row.id)] == [
        ("berta", "looks good"),
        ("carl", "agreed"),
    ]
    assert [journal.take_up(row.id, who) for who in ("two", "three")] == [True, False]
    assert journal.advance(row.id, "two", "loaded").state == "loaded"


def test_an_approved_promotion_that_nobody_takes_up_is_forsaken(journal: Promotions) -> None:
    row = journal.approve(wait(journal).id, "berta", "")
    assert journal.forsaken(later(HAND_OVER_S - 5)) == []
    assert [one.id for one in journal.forsaken(later(HAND_OVER_S + 5))] == [row.id]


@pytest.mark.parametrize(
    ("actor", "says"),
    [
        ("anna", "anna asked for .*: another person must approve it"),
        ("eve", "eve may not decide on .*; one of berta, carl may"),
        ("berta", "berta approved .* already"),
    ],
)
def test_an_approval_that_may_not_count_is_refused(
    journal: Promotions, actor: str, says: str
) -> None:
    row = wait(journal, count=2, by=("berta", "carl"))
    journal.approve(row.id, "berta", "")
    with pytest.raises(PromotionError, match=says):
        journal.approve(row.id, actor, "")
    assert journal.get(row.id).state == "waiting"
    assert len(journal.verdicts(row.id)) == 1


@pytest.mark.parametrize("actor", ["berta", "anna"])
def test_a_rejection_ends_a_promotion_and_the_requester_may_withdraw(
    journal: Promotions, actor: str
) -> None:
    row = journal.reject(wait(journal, by=("berta",)).id, actor, "too blurred")
    assert (row.state, row.error) == ("rejected", f"{actor} rejected it: too blurred")
    with pytest.raises(PromotionError, match="does not wait for approval: it is rejected"):
        journal.approve(row.id, "berta", "")


def test_what_nobody_approves_in_time_expires_once(journal: Promotions) -> None:
    row = wait(journal)
    assert journal.expire(later(3600)) == []
    after = later(2 * 24 * 3600)
    assert [one.id for one in journal.forsaken(after)] == [row.id]
    assert [one.state for one in journal.expire(after)] == ["expired"]
    assert journal.expire(after) == []


def test_an_unknown_id_says_where_to_look(journal: Promotions) -> None:
    with pytest.raises(PromotionError, match=r"'nope'.*atelier approvals"):
        journal.get("nope")
    for id in ("no\0", "no\ud800"):
        with pytest.raises(PromotionError, match=r"no promotion has the id .*atelier approvals"):
            journal.get(id)


class JournalMachine(RuleBasedStateMachine):
    """Any order of steps, take-overs and verdicts leaves what a small model of one promotion would hold."""

    databases: Databases
    kind: str
    rows = Bundle("rows")

    @initialize()
    def opens(self) -> None:
        self.database = self.databases.migrated(self.kind)
        self.journal = Promotions(self.database.url)
        self.state: dict[str, str] = {}
        self.holder: dict[str, str | None] = {}
        self.spoken: dict[str, set[str]] = {}

    @rule(target=rows)
    def begins(self) -> str:
        row = intend(self.journal)
        self.state[row.id], self.holder[row.id] = "intended", "one"
        self.spoken[row.id] = set()
        return row.id

    @rule(row=rows, who=st.sampled_from(["one", "two"]))
    def walks_on(self, row: str, who: str) -> None:
        self.steps(row, who, sorted(NEXT.get(self.state[row], {"done"}))[-1])

    @rule(
        row=rows,
        who=st.sampled_from(["one", "two"]),
        to=st.sampled_from(sorted(NEXT.keys() | ENDS)),
    )
    def steps(self, row: str, who: str, to: str) -> None:
        state = self.state[row]
        ends = ENDS - {"done"} if state != "committed" else set()
        if self.holder[row] == who and state in NEXT and to in NEXT[state] | ends:
            if to == "waiting":
                policy = {"count": 2, "by": []}
                self.journal.wait(row, who, policy, later(60))
                self.holder[row] = None
            else:
                self.journal.advance(row, who, to)
            self.state[row] = to
        else:
            with pytest.raises(PromotionError):
                self.journal.advance(row, who, to)

    @rule(row=rows, who=st.sampled_from(["one", "two"]))
    def is_taken_over(self, row: str, who: str) -> None:
        open_ = self.state[row] in NEXT and self.state[row] != "waiting"
        assert self.journal.take(row, who, later(HAND_OVER_S + LEASE_S / 2)) == open_
        if open_:
            self.holder[row] = who
            self.journal.renew(row, who)

    @rule(row=rows, who=st.sampled_from(["anna", "berta", "carl"]), agrees=st.booleans())
    def is_judged(self, row: str, who: str, agrees: bool) -> None:
        judge = self.journal.approve if agrees else self.journal.reject
        spoken = self.spoken[row]
        if self.state[row] != "waiting" or who in spoken or (agrees and who == "anna"):
            with pytest.raises(PromotionError):
                judge(row, who, "")
            return
        judge(row, who, "")
        spoken.add(who)
        if not agrees:
            self.state[row] = "rejected"
        elif len(spoken) == 2:
            self.state[row] = "gated"

    @rule(row=consumes(rows))
    def is_forgotten(self, row: str) -> None:
        assert self.journal.get(row).state == self.state[row]

    @invariant()
    def agrees_with_the_model(self) -> None:
        held = {row.id: row for row in self.journal.open()}
        assert held.keys() == {row for row, state in self.state.items() if state in NEXT}
        for row, found in held.items():
            assert (found.state, found.holder) == (self.state[row], self.holder[row])

    def teardown(self) -> None:
        self.journal.close()
        self.databases.drop(self.database)


@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 40), ("postgresql", 15)])
def test_any_order_of_steps_and_verdicts_is_what_the_model_says(
    databases: Databases, kind: str, examples: int
) -> None:
    machine = type("Machine", (JournalMachine,), {"databases": databases, "kind": kind})
    quick = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine.TestCase.settings = quick
    machine.TestCase().runTest()
