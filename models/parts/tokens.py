"""Text to tokens and back by a Hugging Face tokenizer, which is one JSON document in a family's config.

The dataset brings it (fact `tokenizer`), trained on its training split. The first ids are the control tokens of
`CONTROL`, in that order; text that spells one, like "<user>", is ordinary text and never becomes it.

A tokenizer of words gives a text's first word the space that other words have before them, and takes it away when it
decodes. What goes on from other text (`continued`) has no such first word: decoded texts put together are the text.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, Final

import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Trained
from torch import Tensor

from models.parts.words import hint
from models.request import Prompt

CONTROL: Final = (
    *("<pad>", "<unk>", "<bos>", "<eos>", "<sep>", "<cls>", "<mask>"),
    *("<user>", "<assistant>", "<system>"),
)
UNFINISHED: Final = "\ufffd"  # what a character decodes to whose bytes are not all there
SPACES: Final = " ▁"  # before a word, now and in tokenizers of before
PAD, UNK, BOS, EOS, SEP, CLS, MASK, USER, ASSISTANT, SYSTEM = range(len(CONTROL))


class Tokenizer:
    """What a tokenizer's JSON document does.

    Raises:
        ValueError: it is no such document, or its first tokens are not the control tokens.

    Example:
        >>> words = tokenizer(of_signs("abc "))
        >>> words.encode("a cab"), words.decode(words.encode("a cab"))
        ([10, 13, 12, 10, 11], 'a cab')
    """

    def __init__(self, document: str) -> None:
        try:
            parsed = json.loads(document)
            self.kind: Final[str] = parsed["model"]["type"]  # "WordLevel", "BPE"
            first = tuple(token["content"] for token in parsed["added_tokens"][: len(CONTROL)])
            self._first = _taken_first_rule(parsed)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"no tokenizers document: {document[:40]!r}") from None
        if first != CONTROL:
            raise ValueError(f"the tokenizer must begin with {' '.join(CONTROL)}, got {first}")
        self._trained = Trained.from_str(json.dumps(parsed))
        self._trained.encode_special_tokens = True  # as ordinary text
        self.size: Final = self._trained.get_vocab_size()
        self.sha256: Final = hashlib.sha256(document.encode()).hexdigest()

    def encode(self, text: Prompt, *, continued: bool = False) -> list[int]:
        """Return the text's tokens, none of them a control token but <unk>; tokens are what they are.

        Args:
            text: what is read.
            continued: whether other text stands before it.

        Raises:
            ValueError: a token is not one of this tokenizer's, or is a control token.
        """
        return self.encode_all([text], continued=continued)[0]

    def encode_all(self, texts: Sequence[Prompt], *, continued: bool = False) -> list[list[int]]:
        """Return every text's tokens; arguments and errors as in `encode`."""
        words = [text for text in texts if isinstance(text, str)]
        if self._first and not continued:  # its rule looks at one character
            words = [self._first.normalize_str(text[:1]) + text[1:] for text in words]
        found = iter(self._trained.encode_batch(words, add_special_tokens=False))
        return [
            [_ordinary(token) for token in next(found).ids]
            if isinstance(text, str)
            else self._known(text)
            for text in texts
        ]

    def unknown(self, text: str) -> list[str]:
        """Return the words or characters of a text that are <unk>, each once."""
        if self._first:
            text = self._first.normalize_str(text[:1]) + text[1:]
        found = self._trained.encode(text, add_special_tokens=False)
        places = zip(found.ids, found.offsets, strict=True)
        odd = (text[a:b] for token, (a, b) in places if _ordinary(token) == UNK)
        return list(dict.fromkeys(one.strip(SPACES) or one for one in odd))

    def hint(self, word: str) -> str:
        """Return what an unknown word could have meant; a character has nothing near it."""
        if word == " " and self._first:
            return "; a space belongs to the word after it: leave out doubled ones and those at the ends"
        known = {one.strip(SPACES) for one in self._trained.get_vocab()} - {*CONTROL, ""}
        return hint(word, sorted(known)) if len(word) > 1 else ""

    def decode(self, tokens: Iterable[int], *, continued: bool = False) -> str:
        """Return the text of the tokens, control tokens and negative numbers left out; `continued` after other text."""
        found: str = self._trained.decode([one for one in tokens if one >= len(CONTROL)])
        return found.removeprefix(" ") if self._first and not continued else found

    def pieces(self, text: Prompt) -> list[str]:
        """Return the part of a text that each of its tokens stands for; put together they are the text.

        A character is the token's that completes it; blanks between two words are the later one's.
        """
        if isinstance(text, str):
            ends = self._ends(text)
        else:
            ends, text = self._shown(text), self.decode(text)
        places = [*accumulate(ends[:-1], max, initial=0), len(text)]
        return [text[a:b] for a, b in pairwise(places)] if ends else []

    def _shown(self, tokens: Sequence[int]) -> list[int]:
        """Return how many whole characters each of the tokens and those before it show.

        A token is decoded behind the last ones alone that showed something whole: all of them, time and again, would
        take seconds of a prompt of thousands.
        """
        found, whole, known, before, first = [], 0, 0, 0, 0
        for place in range(1, len(tokens) + 1):
            part = self.decode(tokens[before:place])[known:]
            found.append(whole + len(part.rstrip(UNFINISHED)))
            if part and not part.endswith(UNFINISHED):
                before, first, whole = first, place, whole + len(part)
                known = len(self.decode(tokens[before:first]))
        return found

    def _ends(self, text: str) -> list[int]:
        """Return where in a text each of its tokens ends, in characters."""
        first = self._first.normalize_str(text[:1]) if self._first else text[:1]
        found = self._trained.encode(first + text[1:], add_special_tokens=False).offsets
        starts = [*(start for start, _ in found[1:]), len(first) + len(text)]
        added = len(first) - len(text[:1])
        return [max(0, min(e, s) - added) for (_, e), s in zip(found, starts, strict=False)]

    @property
    def facts(self) -> dict[str, str | int]:
        """What tells it from others, for whoever sends tokens: its kind, tokens and the document's digest."""
        return {"kind": self.kind, "tokens": self.size, "sha256": self.sha256}

    def spelled(self, token: int) -> str:
        """Return a token as it stands in the vocabulary, a control token too."""
        return str(self._trained.id_to_token(token))

    def _known(self, tokens: Sequence[int]) -> list[int]:
        for token in tokens:
            if not len(CONTROL) <= token < self.size:
                raise ValueError(
                    f"token {token} is none of this model's, which are {len(CONTROL)} to {self.size - 1}"
                    f" of its own {self.kind} tokenizer (sha256 {self.sha256[:16]}): send text,"
                    " or tokens of that one"
                )
        return list(tokens)


def _taken_first_rule(document: dict[str, Any]) -> normalizers.Replace | None:
    """Take the rule for a text's first word out of a tokenizer of words, and return what it does to a text."""
    rules = document.get("normalizer") or {}
    first, *rest = rules.get("normalizers", [rules])
    pattern = first.get("pattern", {}).get("Regex", "")
    if not pattern.startswith(r"\A"):
        return None
    document["normalizer"] = {"type": "Sequence", "normalizers": rest}
    decoder = document["decoder"] or {}
    if "decoders" in decoder:
        decoder["decoders"] = [one for one in decoder["decoders"] if one["type"] != "Strip"]
    return normalizers.Replace(Regex(pattern), first["content"])


def _ordinary(token: int) -> int:
    """Return <unk> for a control token: a vocabulary of whole words has them as words, and a text may spell them."""
    return token if token >= len(CONTROL) else UNK


@lru_cache(maxsize=32)
def tokenizer(document: str) -> Tokenizer:
    """Return the tokenizer of a document, parsed once a process."""
    return Tokenizer(document)


def padded(rows: Sequence[Sequence[int]], places: int = 0) -> Tensor:
    """Return rows of tokens as (N, T) int64, `<pad>` after each; T is the longest row's, or `places` at least."""
    places = max([places, *map(len, rows)])
    return torch.tensor([[*row, *[PAD] * (places - len(row))] for row in rows])


def of_signs(signs: str) -> str:
    """Return the document of a tokenizer whose tokens are these signs, one character each."""
    vocabulary = {token: place for place, token in enumerate((*CONTROL, *dict.fromkeys(signs)))}
    made = Trained(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens(list(CONTROL))
    document: str = made.to_str()
    return json.dumps(json.loads(document), ensure_ascii=False, separators=(",", ":"))
