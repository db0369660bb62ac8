"""A language model of others as a version of ours: transformers' folder, read whole, its tokens behind our own.

Its tokenizer becomes one JSON document in which our control tokens come first and its own tokens keep their order; the
tensors stay as they are. What asks for the checkpoint's own code, template or number format is not taken.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.provenance.checkpoints import (
    WEIGHTS,
    Checkpoint,
    CheckpointError,
    document_of,
    files_of,
    licence_of,
    loaded,
    network_of,
)
from flows.provenance.speech_checkpoints import SPEAKING
from infra.documents import parse_json

if TYPE_CHECKING:
    from torch import Tensor

CONFIG: Final = "config.json"
KINDS: Final = ("BPE", "WordLevel")
OFF: Final = ("attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout")
"""Dropout, which fine-tuning here has none of."""
AT_FIRST: Final = {
    "type": "Replace",
    "pattern": {"Regex": r"\A(?=[\s\S])"},
    "content": " ",
}
"""The space that some tokenizers put before a text, as ours do: what goes on from other text has none."""


def read(folder: Path, source: str) -> Checkpoint:
    """Return a language model's config and weights, after checking every file of it.

    Raises:
        CheckpointError: a pickle, code, or an architecture, tokenizer or number format that is not taken.
        IntegrityError: a file of weights that is truncated or no safetensors.
        ValueError: a config that the family refuses.
    """
    from models import build, describe

    files = files_of(folder, CONFIG)
    asked = document_of(folder / CONFIG)
    architecture = _architecture(folder, asked)
    tensors = _tensors(folder, architecture)
    words = _tokenizer(folder)
    dropout = dict.fromkeys(name for name in OFF if name in asked)
    network = network_of(asked)
    network.pop("pad_token_id", None)
    network |= dict.fromkeys(dropout, 0.0)
    ends = _token(folder, asked, words, "eos")
    reader, unknown = renumbered(words.backend_tokenizer.to_str(), folder)
    document = {
        "family": "causal-lm",
        "config": {
            "tokenizer": reader,
            "architecture": architecture,
            "network": network,
            "begins": _token(folder, asked, words, "bos", ends),
            "ends": ends,
            "unknown": unknown,
            "context": int(asked.get("n_positions") or asked.get("max_position_embeddings") or 0),
        },
    }
    return Checkpoint(
        document=describe(build(document)),
        tensors=tensors,
        source=source,
        licence=licence_of(folder),
        left_out=("chat_template",) if words.chat_template else (),
        files=files,
        kind=architecture,
    )


def _architecture(folder: Path, asked: Any) -> str:
    from models.language.causal import TRUNKS

    found = asked.get("architectures") if isinstance(asked, dict) else None
    known = ", ".join((*TRUNKS, *SPEAKING))
    if not isinstance(found, list) or len(found) != 1 or found[0] not in TRUNKS:
        named = ", ".join(map(str, found)) if isinstance(found, list) and found else "none"
        raise CheckpointError(f"{folder / CONFIG} is of architecture {named}; taken are {known}")
    if "quantization_config" in asked:
        raise CheckpointError(
            f"{folder / CONFIG} has a quantization_config: numbers of a format of their own are not"
            " taken; save it in float32, float16 or bfloat16"
        )
    return str(found[0])


def _tensors(folder: Path, architecture: str) -> "Mapping[str, Tensor]":
    """Return the layers' tensors and, where it is no table of tokens, the head's, by the family's names."""
    from flows.training.checkpoints import detached

    if not sorted(folder.glob(f"*{WEIGHTS}")):
        raise CheckpointError(f"{folder} has no weights as {WEIGHTS}")
    model = loaded(folder, architecture, "transformers", variant=None)
    held = {f"network.{name}": one for name, one in detached(model.base_model.state_dict()).items()}
    if not model.config.tie_word_embeddings:
        held["head.weight"] = detached(model.lm_head.state_dict())["weight"]
    return held


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        found = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, LookupError, ImportError) as error:
        line = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder} has no tokenizer that can be read: {line}") from None
    if not isinstance(found, PreTrainedTokenizerFast):
        raise CheckpointError(f"{folder} has no tokenizer.json, which is read in place of code")
    return found


def _token(
    folder: Path, asked: Mapping[str, Any], words: Any, which: str, instead: int | None = None
) -> int:
    """Return the token that begins ("bos") or ends ("eos") a text."""
    found = asked.get(f"{which}_token_id")
    if found is None:
        found = getattr(words, f"{which}_token_id", None)
    found = found[0] if isinstance(found, list) and found else found
    if found is None:
        found = instead
    if not isinstance(found, int):
        raise CheckpointError(
            f"{folder / CONFIG} has no {which}_token_id: nobody knows where a text ends"
        )
    return found


def renumbered(document: str, folder: Path) -> tuple[str, int | None]:
    """Return a tokenizer's document with our control tokens before its own, each of these so many places further on.

    Beside it stands the number of its own token of what it does not know, if it has one.

    A name that a control token has, too, becomes another one: `<unk>` stands for what is unknown, and is ours.

    Raises:
        CheckpointError: a kind of tokenizer that is not taken, or numbers with gaps.
    """
    from models.parts.tokens import CONTROL

    parsed = parse_json(document, "a tokenizer")
    model = parsed["model"]
    if model["type"] not in KINDS:
        known = " and ".join(KINDS)
        raise CheckpointError(
            f"{folder}: its tokenizer is of kind {model['type']}; taken are {known}"
        )
    further = len(CONTROL)
    added = parsed["added_tokens"]
    ids = {**model["vocab"], **{one["content"]: one["id"] for one in added}}
    if sorted(ids.values()) != [*range(len(ids))]:
        raise CheckpointError(f"{folder}: its tokens' numbers have gaps, or two have one")
    names = {name: f"{name}#{place}" if name in CONTROL else name for name, place in ids.items()}
    model["vocab"] = {name: place for place, name in enumerate(CONTROL)}
    model["vocab"] |= {names[name]: place + further for name, place in ids.items()}
    unknown = ids.get(model.get("unk_token") or "")
    model["unk_token"] = None if unknown is None else "<unk>"
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    parsed["added_tokens"] = [
        {"id": place, "content": name, "special": True, **plain}
        for place, name in enumerate(CONTROL)
    ] + [
        {**one, "id": one["id"] + further, "content": names[one["content"]]}
        for one in sorted(added, key=lambda one: one["id"])
    ]
    parsed |= dict.fromkeys(("post_processor", "padding", "truncation"))
    _begin_alike(parsed)
    return json.dumps(parsed, ensure_ascii=False, separators=(",", ":")), unknown


def _begin_alike(parsed: dict[str, Any]) -> None:
    """Give the space before a text, where there is one, to the rule of `AT_FIRST`."""
    rules = parsed["normalizer"] or {"type": "Sequence", "normalizers": []}
    rules = rules["normalizers"] if rules["type"] == "Sequence" else [rules]
    kept = [one for one in rules if one["type"] != "Prepend"]
    added = len(kept) < len(rules)
    for part in (parsed["pre_tokenizer"], parsed["decoder"]):
        for one in _each(part):
            if one["type"] == "Metaspace" and one.get("prepend_scheme", "always") != "never":
                one["prepend_scheme"] = "never"
                added = True
    if added:
        parsed["normalizer"] = {"type": "Sequence", "normalizers": [AT_FIRST, *kept]}


def _each(part: Any) -> list[dict[str, Any]]:
    """Return the steps of a pre-tokenizer or decoder."""
    if part is None:
        return []
    found: list[dict[str, Any]] = part.get("pretokenizers") or part.get("decoders") or [part]
    return found
