"""Trainings that begin together and the room that there is for them."""

import threading
from collections.abc import Sequence

import pytest

from flows.training import room
from flows.training.room import asked, lined_up, wait_for_turn

PATIENCE_S = 60


def order_of(started: Sequence[str], line: Sequence[str]) -> list[str]:
    """Return in which order trainings ask for room that start in another."""
    found: list[str] = []
    waiting = threading.Barrier(len(started) + 1)

    def ask(name: str) -> None:
        waiting.wait(PATIENCE_S)
        wait_for_turn(name)
        found.append(name)
        asked(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in started]
    for thread in threads:
        thread.start()
    with lined_up(line):
        waiting.wait(PATIENCE_S)
        for thread in threads:
            thread.join(PATIENCE_S)
    return found


def test_trainings_ask_for_room_in_the_order_of_the_recipe_whoever_comes_first() -> None:
    line = ("shapes.base", "shapes.upsampler", "shapes.judge")
    for started in (line, line[::-1], (line[1], line[2], line[0])):
        assert order_of(started, line) == list(line)


def test_one_that_never_asks_holds_the_others_up_for_a_bounded_time_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "TURN_S", 0.05)
    line = ("shapes.base", "shapes.upsampler")
    assert order_of(("shapes.upsampler",), line) == ["shapes.upsampler"]


def test_a_training_in_no_line_waits_for_nobody() -> None:
    with lined_up(("shapes.base",)):
        wait_for_turn("digits.made")
    wait_for_turn("shapes.upsampler")
