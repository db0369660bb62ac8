"""What is learned from text records: windows of a stream of documents, dialogues with answers marked, their roles.

Shape letters: N examples, T places.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F

from models.family import Record
from models.parts.tokens import ASSISTANT, BOS, EOS, SYSTEM, USER, Tokenizer

SIGN = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


def check_roles(records: Sequence[Record], roles: tuple[str, ...], way_out: str) -> None:
    """Check that every record has these roles, in this order.

    Raises:
        ValueError: names the first that has others, and the way out.
    """
    for number, record in enumerate(records):
        found = tuple(role for role, _ in record)
        if found != roles:
            raise ValueError(
                f"this model learns from ({', '.join(roles)}), but record {number} has the roles"
                f" {', '.join(found) or 'of nobody'}: {way_out}"
            )


def windows(
    records: Sequence[Record], words: Tokenizer, context: int, stride: int
) -> dict[str, Tensor]:
    """Return `tokens` (N, context + 1): documents as one stream, `<eos>` before, between and after them.

    A window begins `stride` tokens after the one before it; the last one is filled up with -1. Where windows overlap,
    `fresh` (N, context) says which targets stand in none before.

    Raises:
        ValueError: no records, or one that is no document.
    """
    check_roles(records, ("text",), "set learns: dialogues, or take a dataset of documents")
    _some(records)
    found = words.encode_all([text for ((_, text),) in records])
    stream = torch.tensor([EOS, *chain.from_iterable([*text, EOS] for text in found)])
    more = -(-max(0, len(stream) - 1 - context) // stride)  # windows after the first
    stream = F.pad(stream, (0, context + 1 + more * stride - len(stream)), value=-1)
    tokens = stream.unfold(0, context + 1, stride)
    if stride == context:
        return {"tokens": tokens}
    fresh = torch.ones(len(tokens), context, dtype=torch.bool)
    fresh[1:, : context - stride] = False
    return {"tokens": tokens, "fresh": fresh}


def dialogues(
    records: Sequence[Record], words: Tokenizer, context: int
) -> tuple[dict[str, Tensor], int]:
    """Return `tokens` (N, T + 1), -1 after a dialogue's end, `answer` (N, T) bool, and how many were shortened.

    `answer` is true where the next token is the assistant's: its text and the `<eos>` after it. A dialogue that is
    longer than the context loses its oldest exchanges and keeps what the system says: an answer that is learned then
    has its question in sight.

    Raises:
        ValueError: no records, one that is no dialogue, or whose last exchange alone is longer than the context.
    """
    _some(records)
    rows, shortened = [], 0
    for number, record in enumerate(records):
        turns = _turns(record, f"record {number}", words)
        whole = len(turns)
        first = 1 + (record[0][0] == "system")
        while sum(map(len, turns)) > context + 1 and len(turns) >= first + 4:
            del turns[first : first + 2]
        shortened += len(turns) < whole
        if (length := sum(map(len, turns))) > context + 1:
            raise ValueError(
                f"the last exchange of record {number} has {length} tokens, but a context of {context}"
                f" has room for {context + 1}: set a longer context or leave the record out"
            )
        rows.append(turns)
    longest = max(sum(map(len, turns)) for turns in rows)
    tokens = torch.full((len(rows), longest), -1)
    answer = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, turns in enumerate(rows):
        at = 0
        for turn in turns:
            tokens[row, at : at + len(turn)] = torch.tensor(turn)
            answer[row, at + 1 : at + len(turn)] = turn[0] == ASSISTANT
            at += len(turn)
    return {"tokens": tokens, "answer": answer[:, 1:].contiguous()}, shortened


def question(record: Record, name: str, words: Tokenizer) -> list[int]:
    """Return the tokens of a dialogue that waits for an answer, `<assistant>` last.

    Turns may come in any order, for whoever asks knows why. A last turn of the assistant's is one that it is to go on
    with, so nothing follows it.

    Raises:
        ValueError: there are no turns, or one of another role; the message begins with `name`.
    """
    odd = next((role for role, _ in record if role not in SIGN), None)
    if odd is not None or not record:
        raise ValueError(f"{name} has turns of {', '.join(SIGN)}; got {odd or 'none'}")
    told = _signed(record, words)
    return [*chain.from_iterable(told[:-1]), *_open(told[-1])]


def _open(turn: list[int]) -> list[int]:
    """Return a last turn's tokens, ready for what the assistant writes after them."""
    return turn[:-1] if turn[0] == ASSISTANT else [*turn, ASSISTANT]


def _turns(record: Record, name: str, words: Tokenizer) -> list[list[int]]:
    roles = [role for role, _ in record]
    exchanges = roles[roles[:1] == ["system"] :]
    in_turn = [("user", "assistant")[place % 2] for place in range(len(exchanges))]
    if not exchanges or exchanges != in_turn or exchanges[-1] != "assistant":
        raise ValueError(
            f"{name} must be user and assistant in turn, perhaps after system, and end with assistant;"
            f" got {', '.join(roles) or 'nothing'}"
        )
    return _signed(record, words)


def _signed(record: Record, words: Tokenizer) -> list[list[int]]:
    """Return `<bos>` and every turn's tokens: its role's sign, its text and, of the assistant's, `<eos>`."""
    found = words.encode_all([text for _, text in record])
    ends = [[EOS] if role == "assistant" else [] for role, _ in record]
    told = zip([role for role, _ in record], found, ends, strict=True)
    return [[BOS], *([SIGN[role], *text, *end] for role, text, end in told)]


def _some(records: Sequence[Record]) -> None:
    if not records:
        raise ValueError("there are no records to learn from")
