"""Text: a sample is a record, a sequence of (role, text), kept as one JSON document of UTF-8.

A document is one ("text", ...); a pair is ("source", ...), ("target", ...); a dialogue is, perhaps after a
("system", ...), ("user", ...) and ("assistant", ...) in turn. Rows keep the source's order, so a long document that was
cut into pieces can be read on. The tokenizer is trained on the training split.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeAlias

import pyarrow as pa

from data import tokenizing
from data.modalities import Modality, SampleError
from data.rules import Row, Rule, among, between
from infra.documents import parse_json

Record: TypeAlias = Sequence[tuple[str, str]]
MAX_CHARACTERS: Final = 1 << 20  # of a record
MAX_LINE: Final = 1 << 16  # characters; a longer one is no prose, and no context holds it
MAX_UNKNOWN: Final = 0.5  # share of a record's tokens
SHOWN: Final = 400  # characters of an example on the report
CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # Unicode's Cc but tab and line feed


class Text(Modality):
    """Settings: `tokenizer`, its kind and size; dataset.json has the trained one's document under that name."""

    name = "text"
    noun = "text"
    column = "record"
    kind: ClassVar[pa.DataType] = pa.string()
    settings = ()
    ordered = True
    repeats = 0.02
    facts: ClassVar[Sequence[pa.Field]] = (
        pa.field("segments", pa.int32()),
        pa.field("characters", pa.int64()),
        pa.field("empty_segments", pa.int32()),
        pa.field("control", pa.int32()),  # control characters but tab and line feed
        pa.field("longest_line", pa.int64()),
        pa.field("role_fault", pa.string()),  # empty: the roles follow each other as they should
        pa.field("unknown", pa.float64()),  # share of tokens that the tokenizer does not know
    )

    def look(self, content: bytes, made: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - no settings
        """Return lengths, what should not be in a text, and the sha256 of the record."""
        record = record_of(content)
        texts = [text for _, text in record]
        return {
            "segments": len(record),
            "characters": sum(map(len, texts)),
            "empty_segments": sum(not text.strip() for text in texts),
            "control": sum(len(CONTROL.findall(text)) for text in texts),
            "longest_line": max(
                (len(line) for text in texts for line in text.split("\n")), default=0
            ),
            "role_fault": role_fault([role for role, _ in record]),
            "digest": hashlib.sha256(content).hexdigest(),
        }

    def relate(
        self,
        rows: pa.Table,
        column: Callable[[str], list[Any]],
        made: Mapping[str, Any],
    ) -> dict[str, list[Any]]:
        """Return the share of unknown tokens, by the tokenizer of the training split; None for what is no text.

        A tokenizer of bytes knows all text, so none is trained for that.
        """
        if made["tokenizer"]["kind"] == "bytes":
            return {"unknown": [0.0 if found else None for found in rows["decodes"].to_pylist()]}
        all_rows = zip(
            rows.select(["decodes", "split", "left_out"]).to_pylist(),
            column("content"),
            strict=True,
        )
        found = [
            (row, _texts(record_of(content)) if row["decodes"] else None)
            for row, content in all_rows
        ]
        learned = [
            text
            for row, texts in found
            if texts is not None and row["split"] == "train" and not row["left_out"]
            for text in texts
        ]
        document = tokenizing.train(learned, **made["tokenizer"])
        shares = iter(
            tokenizing.unknown_shares(document, [texts for _, texts in found if texts is not None])
        )
        return {"unknown": [None if texts is None else next(shares) for _, texts in found]}

    def rules(self, made: Mapping[str, Any]) -> list[Rule]:  # noqa: ARG002 - no settings
        """Return the expectations: text that people wrote, roles in order, a tokenizer that knows it."""
        return [
            Rule("no empty text", *among("empty_segments", 0), _empty),
            Rule("not too long", *between("characters", None, MAX_CHARACTERS), _long),
            Rule("lines not too long", *between("longest_line", None, MAX_LINE), _long_line),
            Rule("no control characters", *among("control", 0), _control),
            Rule("roles in order", *among("role_fault", ""), lambda row: str(row["role_fault"])),
            Rule("known to the tokenizer", *between("unknown", None, MAX_UNKNOWN), _unknown),
        ]

    def pack(self, content: bytes, made: Mapping[str, Any]) -> bytes:  # noqa: ARG002 - as it is
        """Return the record's JSON document."""
        return content

    def summary(self, rows: pa.Table, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tokenizer that the rows trained, and how many characters they have."""
        texts = [
            text
            for row in rows[self.column].to_pylist()
            for text in _texts(record_of(row.encode()))
        ]
        document = tokenizing.train(texts, **made["tokenizer"])
        return {"characters": sum(map(len, texts)), "tokenizer": document}

    def example(self, content: bytes, made: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - no settings
        """Return {"text"}, the roles before their texts where there are several."""
        record = record_of(content)
        lines = [text if role == "text" else f"{role}: {text}" for role, text in record]
        text = "\n".join(lines)
        return {"text": text if len(text) <= SHOWN else text[:SHOWN] + " …"}

    def network_facts(self, header: Mapping[str, Any], size: int | None) -> dict[str, Any]:
        """Return the tokenizer's document."""
        if size is not None:
            raise ValueError(f"image_size {size} is for pictures, and {header['name']} is text")
        return {"tokenizer": header["tokenizer"]}


def record_bytes(record: Record) -> bytes:
    """Return a record as makers hand it on."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="surrogatepass")


def record_of(content: bytes) -> Record:
    """Return the record of `record_bytes`.

    Raises:
        SampleError: it is not valid UTF-8, or no record.
    """
    try:
        found = parse_json(content.decode(), "a record")
        return tuple((str(role), str(text)) for role, text in found)
    except UnicodeDecodeError as error:
        raise SampleError(f"not valid UTF-8 (byte {error.start})") from None
    except (ValueError, TypeError):
        raise SampleError("not a list of roles and texts") from None


def role_fault(roles: Sequence[str]) -> str:
    """Return why these roles make no document, no pair and no dialogue; empty if they make one."""
    if tuple(roles) in {("text",), ("source", "target")}:
        return ""
    turns = list(roles[1:] if roles[:1] == ["system"] else roles)
    if not turns:
        return "nobody says anything"
    for place, role in enumerate(turns):
        wanted = ("user", "assistant")[place % 2]
        if role != wanted:
            return f"turn {place + 1} is {role!r}, not {wanted!r}"
    return "" if turns[-1] == "assistant" else "the last word is the user's: nothing to learn from"


def _texts(record: Record) -> list[str]:
    """Return the texts apart, as every family reads them: a turn's first word has nothing before it."""
    return [text for _, text in record]


def _empty(row: Row) -> str:
    if int(row["segments"]) == 1:
        return "empty text"
    return f"{int(row['empty_segments'])} of {int(row['segments'])} texts are empty"


def _long(row: Row) -> str:
    return f"{int(row['characters'])} characters, at most {MAX_CHARACTERS}"


def _long_line(row: Row) -> str:
    return f"a line of {int(row['longest_line'])} characters, at most {MAX_LINE}"


def _control(row: Row) -> str:
    return f"{int(row['control'])} control characters: not plain text"


def _unknown(row: Row) -> str:
    return (
        f"the tokenizer knows none of {row['unknown']:.0%} of it: other text than is learned from,"
        " or raise tokenizer.size"
    )
