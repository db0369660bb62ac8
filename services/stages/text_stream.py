"""Text that grows token by token: what it is, what of it may be shown already, and where a stop string ends it.

Only the newest tokens are decoded, after a few before them on which a tokenizer's text may depend (a space, the bytes
of a character), so that a text of N tokens costs N small decodings and not 1 + 2 + ... + N tokens.

A character whose bytes are not all there decodes to U+FFFD and is held back, as is an end that may yet become a stop
string. So a row's pieces, put together, are the text that it has when nobody watches.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from services.pipelines.payload import Told

SEEN: Final = 4
"""Tokens before it that a token's text may depend on: a space, the bytes of a character."""
WINDOW: Final = (
    4 * SEEN
)  # tokens that are decoded at once before the earliest of them are left behind
UNFINISHED: Final = "\ufffd"  # as in models.parts.tokens; the gateway imports no tokenizers


class Reading:
    """The text of tokens that come one after another, each only looked at as long as others' text depends on it."""

    def __init__(self) -> None:
        self._first = 0  # the earliest token that is decoded yet
        self._head = ""  # what the tokens from there to the last settled one decode to
        self._settled = ""  # the text up to that one, in whole characters

    def text(self, count: int, decode: Callable[[int, int], str]) -> str:
        """Return the text of the first `count` tokens; `decode` gives that of those from one place to another.

        It has what `decode(0, count)` gives, whose beginning never changes once it ends in a whole character.
        """
        tail = decode(self._first, count)
        if not tail.startswith(self._head):  # this tokenizer takes something back: all of it again
            return decode(0, count)
        text = self._settled + tail.removeprefix(self._head)
        if text.endswith(UNFINISHED):
            return text
        self._settled, self._head = text, tail
        if count - self._first > WINDOW:
            head = decode(count - SEEN, count)
            if head.strip(f" {UNFINISHED}"):  # else a first word's space could not be told
                self._first, self._head = count - SEEN, head
        return text


class Writing:
    """One text under way."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._shown = ""
        self._settled = 0  # characters that no token to come will change
        self._told: deque[tuple[int, Told]] = deque()  # where a token's text ends, and the token
        self._place = 0  # where the next of them begins
        self.tokens = 0  # that were told
        self.stopped = False  # at a stop string

    @property
    def text(self) -> str:
        """All that was shown; the whole text once it is over."""
        return self._shown

    def grow(self, text: str, *, last: bool = False) -> str:
        """Return what can be shown beyond the last time.

        Args:
            text: All that was written so far, decoded.
            last: Whether nothing comes after it.
        """
        settled = text if last else text.rstrip(UNFINISHED)
        place = first_stop(settled, self._stops)
        if place is not None:
            settled, self.stopped = settled[:place], True
        elif not last:
            settled = settled[: len(settled) - _hopeful(settled, self._stops)]
        if not settled.startswith(self._shown):  # a decoder took something back: wait
            return ""
        fresh = settled[len(self._shown) :]
        self._shown = settled
        return fresh

    def tell(self, text: str, token: Told) -> None:
        """Take down how likely the newest token was, after which the text is `text`."""
        self._settled = max(self._settled, len(text.rstrip(UNFINISHED)))
        self._told.append((self._settled, token))
        self.tokens += 1

    def told(self, *, last: bool = False) -> tuple[Told, ...]:
        """Return the tokens that are shown whole since the last time; put together they are what is shown.

        A character is the token's that completes it. At the end what a stop string cut off is left out.
        """
        found, shown = [], len(self._shown)
        while self._told:
            end, token = self._told[0]
            if end > shown and not (last and self._place < shown):
                break
            self._told.popleft()
            end = shown if last and not self._told else min(end, shown)
            found.append(replace(token, text=self._shown[self._place : end]))
            self._place = end
        return tuple(found)


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where the stop string begins that is complete first (of those, the longest), or None without any."""
    found = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def _hopeful(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end may be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for count in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-count:]) for stop in stops):
            return count
    return 0
