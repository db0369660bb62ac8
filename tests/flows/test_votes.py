"""Blind votes: what is kept, and what the page lets through."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.comparing.voting import MOST_BYTES, Ballot, Booth, Pair, application
from infra.ledger.intervals import wilson
from infra.ledger.votes import VoteError, Votes, wins
from tests.databases_kit import Database

A, B = "a" * 64, "b" * 64
PAIRS = [Pair(f"prompt {i}", i, f"data:A{i}", f"data:B{i}") for i in range(6)]
ORIGIN = "http://127.0.0.1:4711"


@pytest.fixture
def url(database: Database) -> str:
    return database.url


@pytest.fixture
def votes(url: str) -> Iterator[Votes]:
    with closing(Votes(url, A, B)) as votes:
        yield votes


@pytest.fixture
def booth(votes: Votes) -> Booth:
    return Booth(PAIRS, votes, A, B, "ann")


def prefer(booth: Booth, letter: str) -> None:
    """Vote as somebody who sees only the pictures."""
    shown = booth.next()
    side = next(side for side in ("left", "right") if letter in shown[side])
    assert booth.cast(Ballot.model_validate({"pair": shown["pair"], "choice": side}))


def test_a_tie_counts_half_and_each_side_sees_its_own_wins(votes: Votes, url: str) -> None:
    for seed, winner in enumerate((A, A, A, None, B)):
        votes.cast("red", seed, winner, "ann")
    assert wins(url, A, B) == (3.5, 5)
    assert wins(url, B, A) == (1.5, 5)
    assert wins(url, A, "c" * 64) == (0, 0)
    assert wins(url, A, A) == (0, 0)


def test_a_vote_that_is_cast_twice_at_once_is_one(votes: Votes) -> None:
    together = threading.Barrier(8)

    def cast(_: int) -> None:
        together.wait()
        votes.cast("red", 1, A, "ann")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(cast, range(8)))
    assert votes.wins(A) == (1, 1)


def test_a_voter_has_one_vote_a_pair_and_may_change_it(votes: Votes, url: str) -> None:
    for winner in (A, None, B):
        votes.cast("red", 1, winner, "ann")
    votes.cast("red", 1, A, "bob")
    assert votes.wins(B) == (1, 2)
    assert votes.by("ann") == {("red", 1)}
    with pytest.raises(VoteError, match="cccccccccccc is neither"):
        votes.cast("red", 1, "c" * 64, "ann")
    with pytest.raises(VoteError, match="nothing to choose"):
        Votes(url, A, A)


@given(votes=st.integers(1, 5000), share=st.floats(0, 1))
def test_the_interval_holds_the_rate_and_narrows(votes: int, share: float) -> None:
    won = round(share * votes)
    low, high = wilson(won, votes)
    assert 0 <= low <= won / votes <= high <= 1
    assert low < high, "no number of votes is certainty"
    low4, high4 = wilson(4 * won, 4 * votes)
    assert high4 - low4 < high - low


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    import random

    chance, truth, inside = random.Random(0), 0.7, 0
    for _ in range(1000):
        low, high = wilson(sum(chance.random() < truth for _ in range(40)), 40)
        inside += low <= truth <= high
    assert 0.92 <= inside / 1000 <= 0.98


def test_who_likes_one_version_votes_for_it_wherever_it_stands(
    booth: Booth, votes: Votes, url: str
) -> None:
    while not booth.finished:
        prefer(booth, "B")
    assert wins(url, B, A) == (6, 6)
    assert booth.next() == {"done": 6, "of": 6}
    assert Booth(PAIRS, votes, A, B, "ann").finished, "a restart goes on"
    assert not Booth(PAIRS, votes, A, B, "bob").finished


def test_left_and_right_and_the_order_are_left_to_chance(votes: Votes) -> None:
    seen, orders = set(), set()
    for _ in range(40):
        booth = Booth(PAIRS, votes, A, B, "eve")
        shown = booth.next()
        seen.add("A" in shown["left"])
        orders.add(shown["pair"])
    assert seen == {True, False}
    assert len(orders) > 1


Send = Callable[..., httpx.Response]


@pytest.fixture
def send(booth: Booth) -> Send:
    app = application(booth, "t0ken", 4711, lambda: None)

    async def one(method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
            return await client.request(method, path, **options)

    return lambda method, path, **options: asyncio.run(one(method, path, **options))


def ballot(send: Send, **headers: str) -> httpx.Response:
    pair = send("GET", "/t0ken/pair").json()["pair"]
    content = json.dumps({"pair": pair, "choice": "alike"})
    return send("POST", "/t0ken/vote", content=content, headers=headers)


def test_the_page_votes_and_names_nobody(send: Send, url: str) -> None:
    page = send("GET", "/t0ken/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http" not in page.text, "something is fetched from elsewhere"
    shown = send("GET", "/t0ken/pair").text
    assert A not in shown
    assert B not in shown
    answer = ballot(send, origin=ORIGIN)
    assert answer.json()["done"] == 1
    assert wins(url, A, B) == (0.5, 1)


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/", {}, 404),
        ("GET", "/other/pair", {}, 404),
        ("GET", "/t0ken/pair", {"headers": {"host": "evil.example:4711"}}, 421),
        ("POST", "/t0ken/vote", {"content": '{"pair": 0, "choice": "left"}'}, 403),
        ("POST", "/t0ken/vote", {"headers": {"origin": "http://evil.example"}}, 403),
        ("POST", "/t0ken/vote", {"headers": {"origin": "null"}}, 403),
        ("POST", "/t0ken/vote", {"headers": {"origin": ORIGIN}, "content": "{}"}, 422),
        ("POST", "/t0ken/vote", {"headers": {"origin": ORIGIN}, "content": "x" * (MOST_BYTES + 1)}, 413),
        ("POST", "/t0ken/vote", {"headers": {"origin": ORIGIN}, "content": '{"pair": 99, "choice": "left"}'}, 409),
        ("POST", "/t0ken/vote", {"headers": {"origin": ORIGIN}, "content": '{"pair": 0, "choice": "C"}'}, 422),
    ],
)  # fmt: skip
def test_what_is_not_the_page_itself_cannot_vote(
    send: Send, url: str, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    assert send(method, path, **options).status_code == status
    assert wins(url, A, B) == (0, 0)
