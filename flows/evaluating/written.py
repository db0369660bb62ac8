"""What a model's own texts tell of its sampler, which the likelihood of held-out text does not (arXiv:1511.01844).

Held-out passages are begun and the sampler goes on, with two seeds. An honest one writes what the model finds as likely
as what really follows, because of what it was asked, in ways in which real text goes, and each time anew.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from flows.evaluating.pipeline import asked as request_of
from flows.evaluating.scores import Scores, by_prompt, device_of, gap, parts_of
from infra.pipelines import PinnedStage
from models.family import Family
from models.judges.ngrams import NGrams
from models.parts.tokens import EOS, UNK, tokenizer
from models.request import Record

OPENING: Final = 32  # characters of a document that is written on, about
FOLLOWS: Final = 4000  # characters of what really follows, at most
SEEDS: Final = (0, 1)  # of the texts that go on from one passage
ALIKE: Final = 100  # characters of a text that are looked for in the others
TOLD: Final = 8  # passages of which the sampler's own nats are compared
SEARCHED: Final = 2_000_000  # characters of the training split that are searched, at most
COUNTED: Final = 500_000  # ... whose n-grams are counted, at most
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """Held-out text in two parts: what is asked, and what really follows; and the roles of both in a record."""

    asked: str
    follows: str
    roles: tuple[str, str]

    @property
    def goes_on(self) -> bool:
        """Whether both are one document."""
        return self.roles[0] == self.roles[1]


def passages(records: Sequence[Record], count: int) -> list[Passage]:
    """Return `count` of held-out text, evenly taken: places in documents, else pairs or first exchanges."""
    told = [[turn for turn in record if turn[0] != "system"] for record in records]
    found = [
        Passage(asked=one[0][1], follows=one[1][1], roles=(one[0][0], one[1][0]))
        for one in told
        if len(one) > 1
    ]
    if found:
        return shorter(found, count, lambda one: len(one.asked))
    text = "\n".join(words for record in told for _, words in record)
    for number in range(count):
        place = number * len(text) // count
        asked = begun(text[place:])
        follows = text[place + len(asked) :][:FOLLOWS]
        found.append(Passage(asked=asked, follows=follows, roles=("text", "text")))
    return [one for one in found if one.asked and one.follows]


def begun(text: str) -> str:
    """Return the first words of a document."""
    opening = text[:OPENING]
    return opening if len(text) <= OPENING or " " not in opening else opening.rpartition(" ")[0]


def shorter(found: Sequence[T], count: int, length: Callable[[T], int]) -> list[T]:
    """Return `count` of the shorter half, evenly taken: not every network has room for the longest."""
    middle = sorted(map(length, found))[(len(found) - 1) // 2]
    short = [one for one in found if length(one) <= middle]
    chosen = min(count, len(short))
    return [short[number * len(short) // chosen] for number in range(chosen)]


def judge_texts(
    scores: Scores,
    model: Family,
    stage: str,
    drawn_NT: Tensor,
    asked: Sequence[Passage],
    learned: Sequence[Record],
) -> None:
    """Add STAGE_sample_gap, STAGE_prompt_gain, ngram_gap and distinct of drawn tokens, for a passage a row.

    The gaps are of nats by the model and by n-grams of the training split; see `scores.gap`. The gain is by how much a
    text is likelier after its own passage's beginning than after another's: about 0 where prompts are not heeded.
    """
    kind = Continued if asked[0].goes_on else Answered
    grams = NGrams(_sources(model, learned, asked[0]), tokenizer(model.config.tokenizer).size)
    prompts, own, usual, gains, gained = [], [], [], [], []
    for place, (row_T, passage) in enumerate(zip(drawn_NT, asked, strict=True)):
        both = kind(model, passage, row_T[row_T >= 0].tolist())
        if not both.texts[0]:
            continue
        prompts.append(passage.asked)
        own.append([both.nats(text, passage.asked) for text in both.texts])
        usual.append([both.usual(grams, text) for text in both.texts])
        other = asked[place - len(asked) // 4].asked  # of another passage, whatever the seed
        wrong = both.nats(both.texts[0], other)
        if other != passage.asked and math.isfinite(wrong):
            gains.append(wrong - own[-1][0])
            gained.append(passage.asked)
    for name, values in ((f"{stage}_sample_gap", own), ("ngram_gap", usual)):
        if values:
            ours, theirs = torch.tensor(values).T
            gap(scores, name, by_prompt(ours, prompts), by_prompt(theirs, prompts))
    if gains:
        scores.mean(f"{stage}_prompt_gain", torch.tensor(gains), over=gained)
    told = zip(drawn_NT, asked, strict=True)
    texts = [model.text_of(row_T[row_T >= 0], passage.asked) for row_T, passage in told]
    questions = [passage.asked for passage in asked]
    scores.mean("distinct", distinct(texts, questions), over=questions)


def tell(scores: Scores, model: Family, stage: PinnedStage, asked: Sequence[Passage]) -> None:
    """Add STAGE_told_apart: nats a token between what the sampler tells of the tokens it draws and one pass over them.

    A sampler that remembers what it has read, as the pass reads it, is at 0 but for rounding.
    """
    writer: Any = model  # it is stepwise
    kind = Continued if asked[0].goes_on else Answered
    some = shorter(asked, TOLD, lambda one: len(one.asked))
    prompts = [passage.asked for passage in some]
    asked_for = request_of(model, stage, prompts, range(len(some)))
    request = replace(asked_for, options={**asked_for.options, "logprobs": 1})
    rows, told = writer.begin(request), []
    while not writer.done(rows).all():
        live_B = ~writer.done(rows)
        rows = writer.step(rows)
        told.append(rows["nats"].masked_fill(~live_B, 0))
    told_BT = -torch.stack(told, 1)
    apart = []
    for row_T, nats_T, passage in zip(writer.finish(rows), told_BT, some, strict=True):
        both = kind(model, passage, row_T[row_T >= 0].tolist())
        text = both.texts[0]
        counted = len(text) + both.ends
        once = both.nats(text, passage.asked) if text else math.inf
        if math.isfinite(once):
            apart.append(abs(once - float(nats_T[:counted].sum())) / counted)
    if apart:
        scores.mean(f"{stage.stage}_told_apart", torch.tensor(apart))


class Continued:
    """A document's continuation and the real one, up to where the shorter ends."""

    ends = 0  # tokens that are rated beside the texts'

    def __init__(self, model: Family, passage: Passage, written: list[int]) -> None:
        self._model, self._words = model, tokenizer(model.config.tokenizer)
        self._before = self._words.encode(passage.asked)
        real = self._known(self._words.encode(passage.follows, continued=True))
        room = model.config.context - len(self._before) - 1  # after <eos> and the beginning
        heard = len(self._known(self._before)) == len(self._before)
        count = max(0, min(len(written), len(real), room)) if heard else 0
        self.texts = written[:count], real[:count]

    def nats(self, text: list[int], asked: str) -> float:
        """Return -log p of a text after as much of a beginning as its own has; infinite where that is unknown."""
        before = self._words.encode(asked)[-len(self._before) :]
        if UNK in before:
            return math.inf
        told = self._model.recalled((*before, *text))["nats"]
        return -float(told[-len(text) :].sum())

    def usual(self, grams: NGrams, text: list[int]) -> float:
        """Return -log p a token by n-grams."""
        return grams.nats(text, self._before)

    def _known(self, tokens: list[int]) -> list[int]:
        """Return the tokens before the first that nobody learned."""
        return list(takewhile(lambda token: token != UNK, tokens))


class Answered:
    """What was written to a question, or as a pair's target, and what really was."""

    ends = 1

    def __init__(self, model: Family, passage: Passage, written: list[int]) -> None:
        self._model, self._roles = model, passage.roles
        self.texts = written, tokenizer(model.config.tokenizer).encode(passage.follows)

    def nats(self, text: list[int], asked: str) -> float:
        """Return -log p of a text and its end; infinite where the network has no room for both."""
        for some in (text, text[:-2]):  # one that did not end has no room for its end
            told = self._model.text_of(torch.tensor(some), asked)
            record = ((self._roles[0], asked), (self._roles[1], told))
            with suppress(ValueError):
                [part] = parts_of(self._model.examples([record]), 1, device_of(self._model))
                return -float(self._model.log_prob(part)[0])
        return math.inf

    def usual(self, grams: NGrams, text: list[int]) -> float:
        """Return -log p a token by n-grams, its end included."""
        return grams.nats([*text, EOS])


def _sources(model: Family, learned: Sequence[Record], passage: Passage) -> list[list[int]]:
    """Return the tokens of what was learned in the role of what was written."""
    found, left = [], COUNTED
    for record in learned:
        for role, text in record:
            if role == passage.roles[1] and left > 0:
                found.append(text)
                left -= len(text)
    return [[*one, EOS] for one in tokenizer(model.config.tokenizer).encode_all(found)]


def distinct(texts: Sequence[str], asked: Sequence[str]) -> Tensor:
    """Return which texts (N,) share no stretch longer than half of them with another to the same question."""
    short = [text[:ALIKE] for text in texts]
    found = []
    for place, (text, prompt) in enumerate(zip(short, asked, strict=True)):
        same = (number for number, other in enumerate(asked) if other == prompt)
        others = [short[number] for number in same if number != place]
        found.append(bool(text) and all(copied(text, one) <= len(text) / 2 for one in others))
    return torch.tensor(found).float()


def copied(text: str, source: str) -> int:
    """Return the length of the longest stretch of a text that stands in the source."""
    longest = 0
    for start in range(len(text)):
        while start + longest < len(text) and text[start : start + longest + 1] in source:
            longest += 1
    return longest
