"""Text records as tokens: documents, dialogues with the token of its role before every turn."""

from collections.abc import Sequence
from itertools import chain

from models.family import Columns
from models.language.examples import columns
from models.parts.tokens import ASSISTANT, BOS, EOS, SYSTEM, USER, Tokenizer
from models.request import Record

ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


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


def documents(records: Sequence[Record], words: Tokenizer) -> Columns:
    """Return documents as tokens, `<eos>` behind each.

    Raises:
        ValueError: no records, or one that is no document.
    """
    check_roles(records, ("text",), "set learns: dialogues, or take a dataset of documents")
    _check_any(records)
    found = words.encode_all([text for ((_, text),) in records])
    return columns([[[*text, EOS]] for text in found], words)


def dialogues(records: Sequence[Record], words: Tokenizer) -> Columns:
    """Return dialogues as tokens: `<bos>`, and then every turn behind the token of its role.

    Raises:
        ValueError: no records, or one that is no dialogue.
    """
    _check_any(records)
    turns = [_turns(record, f"record {number}", words) for number, record in enumerate(records)]
    return columns(turns, words)


def question(record: Record, name: str, words: Tokenizer) -> list[int]:
    """Return the tokens of a dialogue that waits for an answer, `<assistant>` last.

    Turns may come in any order, for whoever asks knows why. A last turn of the assistant's is one that it is to go on
    with, so nothing follows it.

    Raises:
        ValueError: there are no turns, or one of another role; the message begins with `name`.
    """
    unfit = next((role for role, _ in record if role not in ROLES), None)
    if unfit is not None or not record:
        raise ValueError(f"{name} has turns of {', '.join(ROLES)}; got {unfit or 'none'}")
    turns = _with_roles(record, words)
    return [*chain.from_iterable(turns[:-1]), *_open(turns[-1])]


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
    return _with_roles(record, words)


def _with_roles(record: Record, words: Tokenizer) -> list[list[int]]:
    """Return `<bos>` and every turn's tokens: its role's token, its text and, of the assistant's, `<eos>`."""
    tokens = words.encode_all([text for _, text in record])
    ends = [[EOS] if role == "assistant" else [] for role, _ in record]
    turns = zip([role for role, _ in record], tokens, ends, strict=True)
    return [[BOS], *([ROLES[role], *text, *end] for role, text, end in turns)]


def _check_any(records: Sequence[Record]) -> None:
    if not records:
        raise ValueError("there are no records to learn from")
