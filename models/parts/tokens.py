"""Text to tokens and back by a Hugging Face tokenizer, which is one JSON document in a family's config.

The dataset brings it (fact `tokenizer`), trained on its training split. The first ids are the control tokens of
`CONTROL`, in that order; text that spells one, like "<user>", is ordinary text and never becomes it.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

import torch
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Trained
from torch import Tensor

CONTROL: Final = (
    *("<pad>", "<unk>", "<bos>", "<eos>", "<sep>", "<cls>", "<mask>"),
    *("<user>", "<assistant>", "<system>"),
)
PAD, UNK, BOS, EOS, SEP, CLS, MASK, USER, ASSISTANT, SYSTEM = range(len(CONTROL))


class Tokenizer:
    """What a tokenizer's JSON document does.

    Raises:
        ValueError: it is no such document, or its first tokens are not the control tokens.
    """

    def __init__(self, document: str) -> None:
        try:
            added = json.loads(document)["added_tokens"]
            first = tuple(token["content"] for token in added[: len(CONTROL)])
        except (ValueError, LookupError, TypeError):
            raise ValueError(f"no tokenizers document: {document[:40]!r}") from None
        if first != CONTROL:
            raise ValueError(f"the tokenizer must begin with {' '.join(CONTROL)}, got {first}")
        self._trained = Trained.from_str(document)
        self._trained.encode_special_tokens = True  # as ordinary text
        self.size: Final = self._trained.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Return the text's tokens, none of them a control token but <unk>."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return every text's tokens."""
        found = self._trained.encode_batch(list(texts), add_special_tokens=False)
        return [[_ordinary(token) for token in one.ids] for one in found]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of the tokens; control tokens and negative numbers are left out."""
        found: str = self._trained.decode([one for one in tokens if one >= len(CONTROL)])
        return found


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
