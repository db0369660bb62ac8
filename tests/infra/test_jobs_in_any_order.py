"""Whatever order jobs are asked for, claimed, written and called off in, the table says what a model of it says."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infra.jobs.jobs import MOST_TRIES, Full, Jobs
from infra.jobs.leases import Lease, LeaseLost
from tests.databases_kit import Databases
from tests.infra.jobs_kit import LEASE_S, RESULT, Clock, submit


class JobsMachine(RuleBasedStateMachine):
    """Two runners, an owner and a clock: what the table says is what a list of jobs would."""

    databases: Databases
    kind: str

    @initialize()
    def opens(self) -> None:
        self.clock = Clock()
        self.database = self.databases.migrated(self.kind)
        self.jobs = Jobs(
            self.database.url, lease_s=LEASE_S, most_open=3, kept_s=60, clock=self.clock
        )
        self.state: dict[str, str] = {}
        self.done: dict[str, list[str]] = {}
        self.ended: dict[str, int] = {}
        self.leases: list[Lease] = []
        self.live: dict[str, Lease] = {}  # the newest claim of each
        self.progress: dict[str, float] = {}

    @rule()
    def submits(self) -> None:
        held = sum(state in {"queued", "in_progress"} for state in self.state.values())
        try:
            made = submit(self.jobs)
        except Full:
            assert held >= 3
            return
        assert held < 3
        self.state[made.id], self.done[made.id] = "queued", []
        self.clock.now += 0.01  # whose turn it is does not hang on chance

    @rule()
    def claims(self) -> None:
        lease = self.jobs.claim("runner")
        if lease is None:
            return
        id = lease.job.id
        assert self.state[id] in {"queued", "in_progress"}
        if id in self.live and self.state[id] == "in_progress":
            assert self.live[id].fence < lease.fence
        self.state[id], self.live[id] = "in_progress", lease
        self.leases.append(lease)
        assert list(lease.stages()) == self.done[id]

    def valid(self, lease: Lease) -> bool:
        return self.live.get(lease.job.id) is lease and self.state[lease.job.id] == "in_progress"

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), act=st.sampled_from(["beat", "stage", "finish", "fail", "release"]))
    def writes(self, data: st.DataObject, act: str) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        id, valid = lease.job.id, self.valid(lease)
        wanted = valid and self.jobs.get(id).cancel
        after = {"finish": "completed", "release": "queued"}
        try:
            if act == "beat":
                assert lease.beat(data.draw(st.floats(0, 120))) is wanted
            elif act == "stage":
                node = f"s{len(self.done[id])}"
                lease.stage_done(node, "e" * 64, f"file:///{node}")
                self.done[id].append(node)
                self.clock.now += 0.001  # stages are told apart by when they ended
            elif act == "finish":
                lease.finish(RESULT)
            elif act == "release":
                lease.release()
            else:
                lease.fail("failed", "broken", again=False)
                after["fail"] = "cancelled" if wanted else "failed"
        except LeaseLost:
            assert not valid
        else:
            assert valid
            self.state[id] = after.get(act, self.state[id])

    @precondition(lambda self: self.state)
    @rule(data=st.data())
    def cancels(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(list(self.state)))
        found = self.jobs.cancel(id)
        if self.state[id] == "queued":
            self.state[id] = "cancelled"
        assert found.cancel is (self.state[id] == "in_progress")

    @rule(seconds=st.sampled_from([1.0, LEASE_S + 1]))
    def waits(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def sweeps(self) -> None:
        self.jobs.sweep()

    @invariant()
    def agrees_with_the_model(self) -> None:
        found = {one.id: one for one in self.jobs.page(limit=100).jobs}
        assert found.keys() == self.state.keys()
        for id, one in found.items():
            if self.state[id] == "in_progress" and one.state in {"failed", "cancelled"}:
                assert one.state == "cancelled" or one.causes["lost"] >= MOST_TRIES
                self.state[id] = one.state  # buried by a claim: its runner was lost
            if one.state == "expired":
                assert self.state[id] in {"completed", "failed", "cancelled", "expired"}
                self.state[id] = "expired"
            assert one.state == self.state[id]
            assert (one.ended is None) == (not one.over)
            assert (one.result is None) == (one.state != "completed")
            assert one.progress >= self.progress.get(id, 0.0)
            self.progress[id] = one.progress

    def teardown(self) -> None:
        self.jobs.close()
        self.databases.drop(self.database)


@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 15), ("postgresql", 4)])
def test_any_order_of_calls_is_what_the_model_says(
    databases: Databases, kind: str, examples: int
) -> None:
    machine: Any = type("Machine", (JobsMachine,), {"databases": databases, "kind": kind})
    quick = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine.TestCase.settings = quick
    machine.TestCase().runTest()
