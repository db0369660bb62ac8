"""What a caller asks a family for: prompts, seeds, and how to draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, get_args, get_type_hints

from torch import Tensor

Record: TypeAlias = Sequence[tuple[str, str]]
"""One text sample: (role, text) in their order. A document is one ("text", ...); a pair is ("source", ...), ("target",
...); a dialogue alternates ("user", ...) and ("assistant", ...), perhaps after a ("system", ...)."""

Prompt: TypeAlias = str | tuple[int, ...]
"""What a sampler is asked: a text or, of a family of text, its tokenizer's tokens."""

UNTAKEN: Final[Mapping[str, str]] = {
    "prompts": "this model reads no text",
    "prompt_tokens": "this model reads no tokens",
    "dialogues": "this model does not chat",
    "steps": "this model draws in one go and takes none",
    "seconds": "this model makes no sound of a length to choose",
    "size": "this model draws pictures of one size",
    "max_tokens": "this model writes no text",
    **dict.fromkeys(
        ("temperature", "top_k", "top_p"), "this model draws every value as often as it is likely"
    ),
    "logprobs": "this model does not write token by token, so no token has one",
}
"""Why a field of a Request, or an option, is refused by a model that has no use for it; of others: it has none."""

NEUTRAL: Final[Mapping[str, float]] = {"guidance": 1, "temperature": 1, "top_p": 1, "speed": 1}
"""Values that ask for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a caller may say of how a family draws; None leaves it to the model. Of this class itself: nothing."""


RANGES: Final[Mapping[str, tuple[float, float]]] = {"speed": (0.25, 4), "pitch": (-12, 12)}
"""The least and the most of options that no Config has: times as fast as its own, and semitones above it."""


def type_of(options: type[Options], name: str) -> type:
    """Return the type of an option's values.

    Example:
        >>> type_of(DiffusionOptions, "guidance")
        <class 'float'>
    """
    hints: Mapping[str, Any] = get_type_hints(options)
    kind: type = get_args(hints[name])[0]  # `float | None`
    return kind


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionOptions(Options):
    """Of families that denoise step by step."""

    steps: int | None = None
    guidance: float | None = None  # classifier-free guidance scale; 1 is none


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundOptions(Options):
    """Of families that make sound."""

    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VoiceOptions(Options):
    """Of families that speak a text at their own speed."""

    voice: str | None = None  # a speaker's name; None: the first


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechOptions(VoiceOptions):
    """Of families that speak a text."""

    speed: float | None = None  # of speech; 1 is the speaker's own


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions(Options):
    """Of families that write text."""

    max_tokens: int | None = None  # None: as many as the context has room for
    temperature: float | None = None  # of a token's draw; 0: the likeliest
    top_k: int | None = None  # only the k likeliest tokens; None: all
    top_p: float | None = (
        None  # only the likeliest tokens that together have this probability; None: all
    )
    logprobs: int | None = None  # tell log p of each token and of so many likeliest ones


@dataclass(frozen=True, slots=True, init=False)
class Request:
    """What a caller asks a sampler for: one row a seed, each row drawn from its own seed alone.

    Options may be given by name: `Request(seeds=(1, 2), prompts=("a red circle",) * 2, steps=4)`. They are those of
    the family's `Options`; None asks for nothing.
    """

    seeds: tuple[int, ...]
    prompts: tuple[str, ...]  # one a seed; empty for an unconditional sampler
    prompt_tokens: tuple[tuple[int, ...], ...]  # in place of prompts, for a family of text
    dialogues: tuple[Record, ...]  # one a seed, in place of prompts, for a family that chats
    given: Mapping[str, Tensor]  # other inputs, by port, one row a seed; pixels in [0, 1]
    options: Mapping[str, Any]  # by name; none of them None

    def __init__(
        self,
        seeds: tuple[int, ...],
        *,
        prompts: tuple[str, ...] = (),
        prompt_tokens: tuple[tuple[int, ...], ...] = (),
        dialogues: tuple[Record, ...] = (),
        given: Mapping[str, Tensor] | None = None,
        options: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> None:
        asked = {**(options or {}), **named}
        values = {
            "seeds": seeds,
            "prompts": prompts,
            "prompt_tokens": prompt_tokens,
            "dialogues": dialogues,
            "given": dict(given or {}),
            "options": {name: value for name, value in asked.items() if value is not None},
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        texts = {"prompts": prompts, "prompt_tokens": prompt_tokens, "dialogues": dialogues}
        asked_in = {name: rows for name, rows in texts.items() if rows}
        if len(asked_in) > 1:
            raise ValueError(
                f"a row is asked for once, got {' and '.join(asked_in)}: give one of them"
            )
        for name, rows in {**asked_in, **self.given}.items():
            if len(rows) != len(seeds):
                raise ValueError(f"{len(seeds)} seeds but {len(rows)} {name}: give one a seed")

    @property
    def texts(self) -> tuple[Prompt, ...]:
        """What a family of text is asked, one a seed: the prompts, as text or as tokens."""
        return self.prompt_tokens or self.prompts
