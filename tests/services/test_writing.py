"""Text that is shown as it grows is the text that is there at the end."""

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from services.stages.text_stream import SEEN, WINDOW, Reading, Writing, first_stop

SIGNS = st.text(alphabet="ab\n é😀", max_size=40)
STOPS = st.lists(st.text(alphabet="ab\n é", min_size=1, max_size=4), max_size=4)


def cut_up(content: bytes, sizes: list[int]) -> list[bytes]:
    """The beginnings of a text that grows by so many bytes at a time."""
    ends = [end for end in accumulate(sizes) if end < len(content)]
    return [*(content[:end] for end in ends), content]


def shown(content: bytes, sizes: list[int], stops: list[str]) -> tuple[str, bool]:
    writing, pieces = Writing(stops), []
    states = cut_up(content, sizes)
    for place, state in enumerate(states):
        last = place == len(states) - 1
        pieces.append(writing.grow(state.decode("utf-8", "replace"), last=last))
        if writing.stopped:
            break
    assert "".join(pieces) == writing.text
    return writing.text, writing.stopped


@given(text=SIGNS, stops=STOPS, sizes=st.lists(st.integers(1, 5), max_size=60))
def test_the_pieces_are_the_whole_text_however_it_was_cut_up(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    whole, stopped = shown(text.encode(), [], stops)
    assert shown(text.encode(), sizes, stops) == (whole, stopped)
    place = first_stop(text, stops)
    assert (whole, stopped) == (text if place is None else text[:place], place is not None)


@given(text=SIGNS, sizes=st.lists(st.integers(1, 3), min_size=1, max_size=60))
def test_half_a_character_is_never_shown(text: str, sizes: list[int]) -> None:
    writing = Writing()
    for state in cut_up(text.encode(), sizes):
        assert "\ufffd" not in writing.grow(state.decode("utf-8", "replace"))


def test_what_may_become_a_stop_string_is_held_back_and_given_when_it_does_not() -> None:
    writing = Writing(["\n\nUser:"])
    assert writing.grow("yes\n") == "yes"
    assert writing.grow("yes\n\nUse") == ""
    assert writing.grow("yes\n\nUseful") == "\n\nUseful"
    assert writing.grow("yes\n\nUseful\n\nUser: hi") == ""
    assert writing.stopped
    assert writing.text == "yes\n\nUseful"


TOKENIZERS = {
    "bytes": lambda tokens: bytes(tokens).decode("utf-8", "replace"),
    "words": lambda tokens: "".join(f" {'abé'[one % 3]}" for one in tokens).removeprefix(" "),
    "taking back": lambda tokens: "".join("ab"[one % 2] for one in tokens).replace("ab", "c"),
}


@given(text=SIGNS, kind=st.sampled_from(sorted(TOKENIZERS)))
def test_text_read_token_by_token_is_the_text_of_all_tokens(text: str, kind: str) -> None:
    tokens, looked_at = list((text * 3).encode()), 0

    def decode(first: int, end: int) -> str:
        nonlocal looked_at
        looked_at += end - first
        return TOKENIZERS[kind](tokens[first:end])

    reading = Reading()
    for count in range(1, len(tokens) + 1):
        assert reading.text(count, decode) == TOKENIZERS[kind](tokens[:count])
    if kind != "taking back":
        assert looked_at <= (WINDOW + SEEN + 1) * len(tokens)
