"""A network of others that speaks as a version of ours: transformers' folder of a VITS, read whole.

The tensors stay as they are; the tokenizer becomes a vocabulary and its settings, so that nothing of the folder is
needed later.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.provenance.checkpoints import (
    TRIED,
    WEIGHTS,
    Checkpoint,
    CheckpointError,
    document_of,
    files_of,
    licence_of,
    loaded,
    network_of,
)

if TYPE_CHECKING:
    from models.text_to_speech.signs import Signs

CONFIG: Final = "config.json"
VITS: Final = "VitsModel"
SPEAKING: Final = (VITS,)
"""The architectures that are taken."""
WORDS: Final = 3  # made of the signs of a checkpoint that reads no English


def read(folder: Path, source: str) -> Checkpoint:
    """Return a speaking network's config and weights, after checking every file of it.

    Raises:
        CheckpointError: a pickle, code, no tokenizer, or one that reads by what is not installed.
        IntegrityError: a file of weights that is truncated or no safetensors.
        ValueError: a config that the family refuses.
    """
    from flows.training.checkpoints import detached
    from models import build, describe
    from models.text_to_speech.signs import Signs
    from models.text_to_speech.vits_checkpoint import OFF

    files = files_of(folder, CONFIG)
    asked = document_of(folder / CONFIG)
    reader = _signs(folder, int(asked.get("vocab_size", 38)))
    network = {**network_of(asked), **dict.fromkeys(OFF, 0.0)}
    count = int(asked.get("num_speakers", 1))
    document = {
        "family": "vits-checkpoint",
        "config": {
            "speakers": tuple(map(str, range(count))) if count > 1 else (),
            "network": network,
            "reader": reader,
            "sample_rate": int(asked.get("sampling_rate", 16000)),
        },
    }
    made = describe(build(document))
    if not sorted(folder.glob(f"*{WEIGHTS}")):
        raise CheckpointError(f"{folder} has no weights as {WEIGHTS}")
    model = loaded(folder, VITS, "transformers", variant=None)
    return Checkpoint(
        document=made,
        tensors={f"network.{name}": one for name, one in detached(model.state_dict()).items()},
        source=source,
        licence=licence_of(folder),
        left_out=(),
        files=files,
        kind=VITS,
        tried=_tried(Signs(**reader)),
    )


def _signs(folder: Path, known: int) -> dict[str, Any]:
    """Return the fields of `Signs`, by the checkpoint's tokenizer, without tokens that the network has no row for."""
    from transformers import VitsTokenizer

    if not (folder / "vocab.json").is_file():
        raise CheckpointError(f"{folder} has no vocab.json, by which a {VITS} reads texts")
    settings = document_of(folder / "tokenizer_config.json")
    named = settings.get("tokenizer_class", "VitsTokenizer")
    if named != "VitsTokenizer":
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'} is a {named}; a {VITS} is read by a VitsTokenizer"
        )
    try:
        found = VitsTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, LookupError) as error:
        line = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder} has no tokenizer that can be read: {line}") from None
    unknown = found.unk_token_id
    return {
        "vocabulary": dict(found.encoder),
        "special": _below(found.added_tokens_encoder, known),
        "unknown": unknown if unknown is not None and unknown < known else None,
        **{name: getattr(found, name) for name in ("language", "add_blank", "normalize")},
        **{name: getattr(found, name) for name in ("phonemize", "is_uroman")},
    }


def _below(numbers: Mapping[str, int], known: int) -> dict[str, int]:
    return {name: number for name, number in numbers.items() if number < known}


def _tried(signs: "Signs") -> tuple[str, ...]:
    """Return texts to try it on: English where it reads that, else of its own signs."""
    if not any(map(signs.unread, TRIED)):
        return TRIED
    own = sorted(sign for sign in signs.vocabulary if len(sign) == 1 and sign.isalpha())
    return tuple("".join(own[place::WORDS][:12]) for place in range(WORDS))
