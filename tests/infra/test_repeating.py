import threading

from infra.repeating import repeating


def test_it_goes_on_beside_the_block_and_not_after_it() -> None:
    thrice, turns = threading.Event(), []

    def act() -> None:
        turns.append(threading.current_thread().name)
        if len(turns) == 3:
            thrice.set()

    with repeating(act, 0.001, "beat"):
        assert thrice.wait(10)
    count = len(turns)
    assert set(turns) == {"beat"}
    assert not [thread for thread in threading.enumerate() if thread.name == "beat"]
    assert len(turns) == count


def test_false_ends_it_before_the_block_does() -> None:
    ended = threading.Event()

    def act() -> bool:
        ended.set()
        return False

    with repeating(act, 0.001, "once"):
        assert ended.wait(10)
        for thread in threading.enumerate():
            if thread.name == "once":
                thread.join(10)
        assert "once" not in {thread.name for thread in threading.enumerate()}
