from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.ledger.intervals import wilson
from infra.ledger.rollout_metrics import Observations
from infra.ledger.rollout_rules import Limits, Tally, Terms, bucket, verdict
from tests.databases_kit import Database

COUNTS = st.integers(0, 1000)
TALLIES = st.builds(
    Tally,
    requests=COUNTS,
    failures=COUNTS,
    latencies=st.dictionaries(
        st.sampled_from(["1 picture", "4 pictures"]),
        st.dictionaries(st.integers(-90, 50), st.integers(1, 100), max_size=5),
    ),
)


def arm(*seconds: float, shape: str = "1 picture") -> Tally:
    tally = Tally()
    for one in seconds:
        tally.add(Tally(requests=1, latencies={shape: {bucket(one): 1}}))
    return tally


@given(st.lists(TALLIES, max_size=5))
def test_tallies_add_up_in_any_order(tallies: list[Tally]) -> None:
    forwards, backwards = Tally(), Tally()
    for one in tallies:
        forwards.add(one)
    for one in reversed(tallies):
        backwards.add(one)
    assert forwards == backwards
    assert forwards.requests == sum(one.requests for one in tallies)


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=50))
def test_a_median_is_known_within_a_bucket(seconds: list[float]) -> None:
    tally = arm(*seconds)
    median = tally.quantile("1 picture", 0.5)
    assert median is not None
    exact = float(np.quantile(seconds, 0.5, method="inverted_cdf"))
    assert median == pytest.approx(exact, rel=0.05)
    within = tally.median_within("1 picture")
    assert within is not None
    assert within[0] <= median <= within[1]


def test_the_slower_arm_is_found_only_where_it_is_surely_slower() -> None:
    usual = arm(*np.linspace(0.08, 0.12, 100))
    assert verdict(Limits(), usual, arm(*np.linspace(0.16, 0.24, 15))) is None  # too few
    assert verdict(Limits(), usual, arm(*np.linspace(0.08, 0.14, 100))) is None
    assert "as long" in str(verdict(Limits(), usual, arm(*np.linspace(0.16, 0.24, 40))))
    longer = arm(*np.linspace(0.4, 0.5, 100), shape="4 pictures")
    assert verdict(Limits(), usual, longer) is None  # another kind of request
    low, high = wilson(3, 100, z=1.96)
    assert (round(low, 4), round(high, 4)) == (0.0103, 0.0845)  # R: prop.test without correction


@pytest.mark.parametrize(
    ("challenger", "why"),
    [
        (
            Tally(requests=1, failures=1, not_finite=1),
            "1 of the challenger's 1 answers were not finite",
        ),
        (
            Tally(requests=9, flat=3),
            "3 of the challenger's 9 answers were of one colour or empty, at most 2",
        ),
        (Tally(requests=9, repeated=3), "were the same for different requests"),
        (Tally(requests=40, failures=12), "12 of the challenger's 40 requests failed"),
        (Tally(requests=19, failures=19), None),  # too few to speak of a rate
        (Tally(requests=40, failures=3), None),  # perhaps within 5 %
        (Tally(requests=9, flat=2, repeated=2), None),
    ],
)
def test_a_verdict_says_what_with_numbers(challenger: Tally, why: str | None) -> None:
    found = verdict(Limits(), Tally(requests=100), challenger)
    assert (found is None) if why is None else (found is not None and why in found)


def test_terms_are_read_from_a_ledger_row_s_report_or_are_none() -> None:
    terms = Terms(percent=10)
    assert Terms.of({"terms": terms.model_dump()}) == terms
    for report in (None, {}, {"terms": {"percent": 0}}, {"terms": {"percent": 5, "more": 1}}):
        assert Terms.of(report) is None


def test_gateways_write_beside_each_other_and_each_over_itself(database: Database) -> None:
    with closing(Observations(database.url)) as observations:
        check_that_each_gateway_writes_over_itself(observations)


def check_that_each_gateway_writes_over_itself(observations: Observations) -> None:
    for gateway, counts in (("a", (1, 5)), ("b", (3,))):
        for count in counts:
            tallies = {"champion": arm(0.1), "challenger": Tally(requests=count, flat=1)}
            observations.record("shapes", "canary", 4, gateway, tallies)  # type: ignore[arg-type]
    found = observations.read("shapes", "canary", 4)
    assert (found["challenger"].requests, found["challenger"].flat) == (8, 2)
    assert found["champion"].timed("1 picture") == 2
    assert observations.read("shapes", "canary", 4, without="a")["challenger"].requests == 3
    assert observations.read("shapes", "canary", 5)["champion"] == Tally()
