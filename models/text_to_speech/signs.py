"""How a VITS of others reads a text: sign by sign, as transformers' VitsTokenizer does.

Upper case is lowered where the vocabulary has no such sign, and signs that it lacks are marks, which are passed over;
letters and digits among them are no marks, and refused. Some checkpoints read the phones that espeak-ng has for a text,
by way of `phonemizer`, and some of them Latin letters in place of other scripts, by `uroman`: neither comes with us.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final

HELPERS: Final[Mapping[str, tuple[str, str]]] = {
    "phonemize": ("phonemizer", "phonemizer, and espeak-ng"),
    "is_uroman": ("uroman", "uroman"),
}
"""What a setting needs: the module, and what is to be installed."""
SPACES: Final = re.compile(r"\s+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """A tokenizer's vocabulary and settings, by their names in tokenizer_config.json."""

    vocabulary: Mapping[str, int]
    special: Mapping[str, int] = field(default_factory=dict)  # tokens that a text is parted at
    unknown: int | None = None  # what stands for a sign that is not there, if anything does
    language: str | None = None
    add_blank: bool = True  # sign 0 around each sign
    normalize: bool = True
    phonemize: bool = False
    is_uroman: bool = False

    def __post_init__(self) -> None:
        """Refuse what would fail late.

        Raises:
            ValueError: no vocabulary, or what it reads by is not installed.
        """
        if not self.vocabulary:
            raise ValueError("reader: its vocabulary is empty")
        for setting, (module, packages) in HELPERS.items():
            if getattr(self, setting) and find_spec(module) is None:
                raise ValueError(
                    f"reader: this model reads texts by {packages}, which the setting {setting} asks for and"
                    f" which are not part of Atelier: install {packages}"
                )

    def ids(self, text: str) -> list[int]:
        """Return the numbers of a text's signs, with the blanks between them.

        Raises:
            ValueError: nothing in it can be said, or a letter or digit cannot be.
        """
        if odd := self.unread(text):
            raise ValueError(f"unknown word {odd[0]!r}{self.hint(odd[0])}")
        said, found = self._prepared(text), list[int]()
        if not said:
            raise ValueError(f"prompt: nothing in {text[:40]!r} can be said")
        for part in self._parts(said):
            if part in self.special:
                found.append(self.special[part])
                continue
            signs = [self._number(sign) for sign in part]
            if self.add_blank:
                spread = [0] * (2 * len(signs) + 1)
                spread[1::2] = signs
                signs = spread
            found += signs
        return found

    def _number(self, sign: str) -> int:
        found = self.vocabulary.get(sign, self.unknown)
        if found is None:
            raise ValueError(f"prompt: this model reads no {sign!r}")
        return found

    def unread(self, text: str) -> list[str]:
        """Return the words of a text with a letter or digit that the vocabulary lacks, each once."""
        if self.phonemize or self.is_uroman or not self.normalize:
            return []
        words = self._lowered(text).split()
        return list(dict.fromkeys(word for word in words if self._lacking(word)))

    def hint(self, word: str) -> str:
        """Return which signs of a word are not read."""
        return f": this model reads no {', '.join(map(repr, self._lacking(self._lowered(word))))}"

    def _lacking(self, word: str) -> list[str]:
        return [
            sign for sign in dict.fromkeys(word) if sign.isalnum() and sign not in self.vocabulary
        ]

    def _prepared(self, text: str) -> str:
        said = self._lowered(text) if self.normalize else text
        if self.language == "ron":
            said = said.replace("ț", "ţ")
        if self.is_uroman and not said.isascii():
            said = _romanised(said)
        if self.phonemize:
            return SPACES.sub(" ", _phonemised(said))
        return "".join(filter(self._known, said)).strip() if self.normalize else said

    def _known(self, sign: str) -> bool:
        return sign in self.vocabulary

    def _lowered(self, text: str) -> str:
        """Return the text with every sign lowered that is not read as it is."""
        if not self.normalize:
            return text
        known = "|".join(map(re.escape, filter(None, (*self.vocabulary, *self.special))))
        return re.sub(f"({known})|.", lambda one: one[1] or one[0].lower(), text, flags=re.DOTALL)

    def _parts(self, said: str) -> list[str]:
        longest = sorted(filter(None, self.special), key=len, reverse=True)
        if not longest:
            return [said]
        return list(filter(None, re.split(f"({'|'.join(map(re.escape, longest))})", said)))


def _romanised(text: str) -> str:
    from uroman import Uroman

    return str(Uroman().romanize_string(text))


def _phonemised(text: str) -> str:
    from phonemizer import phonemize

    how: dict[str, Any] = {"language": "en-us", "backend": "espeak", "strip": True}
    try:
        return str(phonemize(text, preserve_punctuation=True, with_stress=True, **how))
    except RuntimeError as error:
        raise ValueError(
            f"prompt: espeak-ng, by which this model reads, is not there: {error}"
        ) from None
