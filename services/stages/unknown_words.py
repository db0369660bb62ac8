"""Words and characters that a model never learned: refused, or left unread and said in the answer, as is set.

`ATELIER_UNKNOWN_WORDS=map` reads on: a text has <unk> in their place, a caption goes without them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from models.family import Family
from models.parts import words
from services.pipelines.payload import Prompt, Refused, StageTask

Rule: TypeAlias = Literal["refuse", "map"]
SHOWN = 10  # in a warning


def read(
    model: Family, texts: Sequence[Prompt], rule: Rule, param: str | None = None
) -> tuple[str, ...] | Refused:
    """Return warnings of what the model cannot read in the texts, or the refusal that names the first."""
    parts = [model.unknown(text) for text in dict.fromkeys(texts) if isinstance(text, str)]
    found = list(dict.fromkeys(word for part in parts for word in part))
    if not found:
        return ()
    if rule == "refuse":
        return Refused(
            "invalid", f"{_kind(found[0])} {found[0]!r}{model.hint(found[0])}", param=param
        )
    shown = ", ".join(repr(word) for word in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (f"never learned, and not read: {shown}{more}",)


def understood(
    model: Family, task: StageTask, rule: Rule
) -> tuple[StageTask, tuple[str, ...]] | Refused:
    """Return the task as the model can read it, with warnings of what it cannot, or why it is refused."""
    spec = task.spec
    texts = tuple(text for dialogue in spec.dialogues for _, text in dialogue)
    found = readable(model, texts or spec.prompts, rule, None if spec.dialogues else "prompt")
    if isinstance(found, Refused) or texts:
        return found if isinstance(found, Refused) else (task, found[1])
    prompts = tuple(str(one) for one in found[0])
    return replace(task, spec=replace(spec, prompts=prompts)), found[1]


def readable(
    model: Family, texts: Sequence[Prompt], rule: Rule, param: str | None
) -> tuple[tuple[Prompt, ...], tuple[str, ...]] | Refused:
    """Return texts as the model can read them, with warnings of what it cannot, or why one is refused."""
    warnings = read(model, texts, rule, param)
    if isinstance(warnings, Refused) or not warnings or model.capabilities.modality == "text":
        return warnings if isinstance(warnings, Refused) else (tuple(texts), warnings)
    known = {text: known_part(model, text) for text in texts if isinstance(text, str)}
    if not all(known.values()):  # nothing is left of one
        refused = read(model, [one for one in known if not known[one]], "refuse", param)
        assert isinstance(refused, Refused)
        return refused
    return tuple(known[text] if isinstance(text, str) else text for text in texts), warnings


def known_part(model: Family, caption: str) -> str:
    """Return a caption without the words that the model never learned."""
    unknown = model.unknown(caption)
    return " ".join(word for word in words.split(caption) if word not in unknown)


def _kind(word: str) -> str:
    return "unknown character" if len(word) == 1 else "unknown word"
