"""Tokenizers of Hugging Face's `tokenizers`, trained on a dataset's training split; each is one JSON document.

The first ids are the control tokens, in the order that the models know (a test holds the two lists equal). They are
registered as special tokens, and no text can become one: no kind makes a token out of a word between `<` and `>`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from infra.documents import parse_json

CONTROL: Final = (
    *("<pad>", "<unk>", "<bos>", "<eos>", "<sep>", "<cls>", "<mask>"),
    *("<user>", "<assistant>", "<system>"),
)
UNKNOWN: Final = CONTROL.index("<unk>")
LEAST_BYTES: Final = len(CONTROL) + 256  # a byte-level vocabulary begins with every byte
WORD: Final = r"\d| ?[^\d\p{P}\p{S}\s]+| ?[\p{P}\p{S}]|\s"
"""A digit; a word or a mark of punctuation, with the space before it; any other space on its own."""


class TokenizerSettings(BaseModel):
    """The `tokenizer` of a text dataset in params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["characters", "words", "bytes"] = "bytes"
    size: Annotated[int, Field(ge=len(CONTROL) + 1, le=200_000)] = 4096  # tokens at most

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        if self.kind == "bytes" and self.size < LEAST_BYTES:
            raise ValueError(
                f"a tokenizer of bytes has at least {LEAST_BYTES} tokens, not {self.size}"
            )
        return self


def train(texts: Sequence[str], kind: str, size: int) -> str:
    """Return the JSON document of a tokenizer of at most `size` tokens: the texts' most frequent ones.

    Args:
        texts: what it is trained on; equal texts give an equal document.
        kind: characters, words (a space belongs to the word after it, a digit is a token) or bytes (byte-level BPE).
        size: the control tokens count.
    """
    made = {"characters": _characters, "words": _words, "bytes": _bytes}[kind](texts, size)
    made.add_special_tokens(list(CONTROL))
    document = parse_json(made.to_str(), "a tokenizer")
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def unknown_shares(document: str, records: Sequence[Sequence[str]]) -> list[float]:
    """Return, for every record's texts, the share of their tokens that the tokenizer does not know."""
    trained = Tokenizer.from_str(document)
    trained.encode_special_tokens = True
    texts = [text for record in records for text in record]
    ids = iter(one.ids for one in trained.encode_batch(texts, add_special_tokens=False))
    shares = []
    for record in records:
        found = [token for _ in record for token in next(ids)]
        shares.append(found.count(UNKNOWN) / max(1, len(found)))
    return shares


def _characters(texts: Sequence[str], size: int) -> Tokenizer:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    made = _of(_frequent(counts, size))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return made


def _words(texts: Sequence[str], size: int) -> Tokenizer:
    # The first word is like any other; a first space is doubled, so that one can be taken away again.
    normalizer = normalizers.Replace(Regex(r"\A(?=[^\d\s]| )"), " ")
    cut = pre_tokenizers.Split(Regex(WORD), "isolated")
    counts: Counter[str] = Counter()
    for text in texts:
        words = cut.pre_tokenize_str(normalizer.normalize_str(text))
        counts.update(word for word, _ in words)
    made = _of(_frequent(counts, size))
    made.normalizer, made.pre_tokenizer = normalizer, cut
    made.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made


def _bytes(texts: Sequence[str], size: int) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(CONTROL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def _frequent(counts: Counter[str], size: int) -> list[str]:
    """Return the most frequent tokens that there is room for, in an order that depends on nothing else."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return sorted(token for token, _ in ranked[: size - len(CONTROL)])


def _of(tokens: Iterable[str]) -> Tokenizer:
    vocabulary = {token: place for place, token in enumerate((*CONTROL, *tokens))}
    return Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
