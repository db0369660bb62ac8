"""A network of others that speaks as a version of ours: transformers' folder of a VITS or a SpeechT5, read whole.

The tensors stay as they are; the tokenizer becomes a document of its own, so that nothing of the folder is needed
later. A SpeechT5 comes without vocoder and voices: they are put into its folder, as `vocoder/` and
`voices.safetensors`.
"""

from collections.abc import Mapping
from importlib.util import find_spec
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
    from torch import Tensor

    from models.text_to_speech.signs import Signs

CONFIG: Final = "config.json"
VITS: Final = "VitsModel"
SPEECHT5: Final = "SpeechT5ForTextToSpeech"
VOCODER: Final = "SpeechT5HifiGan"
VOICES: Final = "voices.safetensors"
PIECES: Final = "spm_char.model"
SPEAKING: Final = (VITS, SPEECHT5)
"""The architectures that are taken."""
WORDS: Final = 3  # made of the signs of a checkpoint that reads no English


def read(folder: Path, source: str) -> Checkpoint:
    """Return a speaking network's config and weights, after checking every file of it.

    Raises:
        CheckpointError: a pickle, code, no tokenizer, vocoder or voices, or a tokenizer that reads by what is not
            installed.
        IntegrityError: a file of weights that is truncated or no safetensors.
        ValueError: a config that the family refuses.
    """
    files = files_of(folder, CONFIG)
    asked = document_of(folder / CONFIG)
    [kind] = asked["architectures"]
    document, tensors, tried = (_vits if kind == VITS else _speecht5)(folder, asked)
    return Checkpoint(
        document=document,
        tensors=tensors,
        source=source,
        licence=licence_of(folder),
        left_out=(),
        files=files,
        kind=kind,
        tried=tried,
    )


Read = tuple[dict[str, Any], "Mapping[str, Tensor]", tuple[str, ...]]
"""A version's document and tensors, and prompts to try it on."""


def _vits(folder: Path, asked: Mapping[str, Any]) -> Read:
    from models import build, describe
    from models.text_to_speech.signs import Signs
    from models.text_to_speech.vits_checkpoint import OFF

    reader = _signs(folder, int(asked.get("vocab_size", 38)))
    count = int(asked.get("num_speakers", 1))
    config = {
        "speakers": tuple(map(str, range(count))) if count > 1 else (),
        "network": {**network_of(asked), **dict.fromkeys(OFF, 0.0)},
        "reader": reader,
        "sample_rate": int(asked.get("sampling_rate", 16000)),
    }
    document = describe(build({"family": "vits-checkpoint", "config": config}))
    return document, _weights(folder, VITS, "network"), _tried(Signs(**reader))


def _speecht5(folder: Path, asked: Mapping[str, Any]) -> Read:
    from safetensors.torch import load_file

    from models import build, describe
    from models.text_to_speech.speecht5 import OFF

    size = int(asked.get("speaker_embedding_dim", 512))
    if not (folder / "vocoder" / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} has no vocoder: put a {VOCODER} (microsoft/speecht5_hifigan) into {folder / 'vocoder'}"
        )
    if not (folder / VOICES).is_file():
        raise CheckpointError(
            f"{folder} has no {VOICES}: a {SPEECHT5} speaks in voices that it is given, {size} numbers"
            " each, by name"
        )
    vocoder = document_of(folder / "vocoder" / CONFIG)
    voices = load_file(folder / VOICES)
    reader, numbers = _pieces(folder)
    rate = int(vocoder.get("sampling_rate", 16000))
    config = {
        "speakers": tuple(sorted(voices)),
        "network": {**network_of(asked), **dict.fromkeys(OFF, 0.0)},
        "vocoder": network_of(vocoder),
        "reader": reader,
        "numbers": numbers,
        "mel": _mel(folder, rate),
        "sample_rate": rate,
    }
    document = describe(build({"family": "speecht5", "config": config}))
    tensors = {
        **_weights(folder, SPEECHT5, "network"),
        **_weights(folder / "vocoder", VOCODER, "vocoder"),
        "voices_VE": _stacked(folder, voices, size),
    }
    return document, tensors, TRIED


def _weights(folder: Path, kind: str, part: str) -> "dict[str, Tensor]":
    from flows.training.checkpoints import detached

    if not [path for path in folder.glob(f"*{WEIGHTS}") if path.name != VOICES]:
        raise CheckpointError(f"{folder} has no weights as {WEIGHTS}")
    model = loaded(folder, kind, "transformers", variant=None)
    return {f"{part}.{name}": one for name, one in detached(model.state_dict()).items()}


def _stacked(folder: Path, voices: "Mapping[str, Tensor]", size: int) -> "Tensor":
    """Return the voices (V, E), in the order of their names."""
    import torch

    for name, one in voices.items():
        if one.numel() != size or not bool(one.isfinite().all()):
            raise CheckpointError(
                f"{folder / VOICES}: {name} must be {size} finite numbers, got {one.numel()}"
            )
    return torch.stack([voices[name].flatten().float() for name in sorted(voices)])


def _mel(folder: Path, rate: int) -> dict[str, Any]:
    """Return how the checkpoint sees sound, by preprocessor_config.json, whose sizes are in milliseconds."""
    path = folder / "preprocessor_config.json"
    told = document_of(path) if path.is_file() else {}
    learned = int(told.get("sampling_rate", rate))
    if learned != rate:
        raise CheckpointError(
            f"{path}: it learned sound of {learned} Hz, and its vocoder makes sound of {rate} Hz"
        )
    window = int(told.get("win_length", 64)) * rate // 1000
    hop = int(told.get("hop_length", 16)) * rate // 1000
    return {
        **{
            "sample_rate": rate,
            "n_fft": 2 ** (window - 1).bit_length(),
            "hop": hop,
            "window": window,
        },
        **{"mels": int(told.get("num_mel_bins", 80))},
        **{"low_hz": float(told.get("fmin", 80)), "high_hz": float(told.get("fmax", 7600))},
    }


def _pieces(folder: Path) -> tuple[str, bool]:
    """Return the checkpoint's tokenizer as a JSON document, and whether numbers are read as words."""
    from models.text_to_speech.speecht5 import signs

    if not (folder / PIECES).is_file():
        raise CheckpointError(f"{folder} has no {PIECES}, by which a {SPEECHT5} reads texts")
    if find_spec("sentencepiece") is None:
        raise CheckpointError(
            f"{folder / PIECES} is read by sentencepiece, which is not part of Atelier: install sentencepiece"
        )
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    found = sentencepiece_model_pb2.ModelProto()
    try:
        found.ParseFromString((folder / PIECES).read_bytes())
    except DecodeError:
        raise CheckpointError(f"{folder / PIECES} is no model of SentencePiece") from None
    kind = found.trainer_spec.ModelType.Name(found.trainer_spec.model_type)
    if kind != "CHAR":
        raise CheckpointError(f"{folder / PIECES} is of kind {kind}; taken is CHAR, signs")
    settings = folder / "tokenizer_config.json"
    numbers = bool(settings.is_file() and document_of(settings).get("normalize"))
    names = [piece.piece for piece in found.pieces]
    return signs(names, found.normalizer_spec.precompiled_charsmap), numbers


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
