"""Who is late has a beating heart; who is hung has not, while others have."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from flows.training.hearts import Hearts, beating
from tests.flows.training_kit import wait_until

LIMIT = 60.0


def told(hearts: Hearts, beats: dict[int, int], now: float, attempt: int = 1) -> str:
    """Return what is said of ranks whose hearts have beaten so often."""
    for rank, count in beats.items():
        (hearts.journal / f"{attempt}.rank{rank}.heart").write_text(str(count))
    return hearts.hung(attempt, LIMIT, now)


def test_a_heart_beats_while_its_rank_works_and_is_gone_when_it_ends(tmp_path: Path) -> None:
    heart = tmp_path / "3.rank1.heart"
    with beating(tmp_path, 3, 1):
        wait_until(lambda: heart.is_file() and heart.read_text() == "1")
    assert not heart.exists()


def test_a_rank_that_is_silent_beside_one_that_beats_is_hung_after_the_limit(
    tmp_path: Path,
) -> None:
    hearts = Hearts(tmp_path)
    assert [told(hearts, {0: second, 1: 7}, second) for second in range(60)] == [""] * 60
    assert told(hearts, {0: 60, 1: 7}, 60) == (
        "rank1 has not been heard of for 60 s and is taken for hung"
    )
    assert told(hearts, {0: 61, 1: 8}, 61) == "", "it was only late"


@given(skew=st.floats(0, 10_000))
def test_a_rank_that_beats_is_waited_for_however_late_it_is(
    tmp_path_factory: object, skew: float
) -> None:
    folder = tmp_path_factory.mktemp("journal")  # type: ignore[attr-defined]
    hearts = Hearts(folder)
    for beat in range(4):
        assert told(hearts, {0: beat, 1: beat}, beat * skew) == ""


def test_where_no_heart_beats_nobody_is_named(tmp_path: Path) -> None:
    """All workers were ended, and others start: that takes as long as it takes."""
    hearts = Hearts(tmp_path)
    told(hearts, {0: 1, 1: 1}, 0)
    assert told(hearts, {0: 1, 1: 1}, 1000) == ""


def test_hearts_of_an_attempt_before_are_of_nobody(tmp_path: Path) -> None:
    hearts = Hearts(tmp_path)
    told(hearts, {0: 1, 1: 1, 2: 1}, 0)
    told(hearts, {0: 1, 1: 1}, 100, attempt=2)
    assert told(hearts, {0: 2, 1: 2}, 170, attempt=2) == ""
    assert told(hearts, {0: 3}, 231, attempt=2).startswith("rank1")


def test_a_rank_that_has_ended_is_not_missed(tmp_path: Path) -> None:
    hearts = Hearts(tmp_path)
    told(hearts, {0: 1, 1: 1}, 0)
    (tmp_path / "1.rank1.heart").unlink()
    assert told(hearts, {0: 2}, 1000) == ""
