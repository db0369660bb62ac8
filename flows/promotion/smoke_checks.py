"""What a version is asked for when it is tried, by what it can do, and what its answers must be like."""

import base64
import binascii
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from infra.media.blank import FLAT, SILENT, contrast, swing
from infra.pipelines import Pipeline

ANSWERS: Final = 4
TOKENS: Final = 16  # of a text, at most
TEXTS: Final = ("a", "the", "one", "once")  # for a version that names no prompts to try


class SmokeFailed(ValueError):
    """The version does not answer as it should; the message says what came instead."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version by number, and its pipeline."""

    ref: str
    pipeline: Pipeline

    def prompt(self, number: int) -> str:
        """Return a prompt that it can read: one to try, or a word it knows."""
        if not self.pipeline.reads_text:
            return ""
        known = self.pipeline.try_prompts or self.pipeline.vocabulary
        known = known or (TEXTS if self.pipeline.modality == "text" else ("",))
        return known[number % len(known)]

    def asked(self, number: int) -> str:
        """Return a request in words."""
        return f"{self.ref}, prompt {self.prompt(number)!r} and seed {number}"


@dataclass(frozen=True, slots=True)
class Tryout:
    """A way to try a version: a route, a body, what its answer holds, and what all answers must be like."""

    path: str
    noun: str  # of one answer
    body: Callable[[Candidate, int], dict[str, Any]]
    read: Callable[[Any], Any]  # of the answer's JSON; raises what MALFORMED lists
    check: Callable[[Candidate, Sequence[Any]], str]  # returns what is good, in words
    job: bool = False  # the answer is a job; `read` takes the bytes of what it made
    answers: int = ANSWERS  # that are asked for


MALFORMED: Final = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OSError,
    RuntimeError,
    binascii.Error,
)
"""What reading an answer raises when it is none; Pillow's and soundfile's errors are among them."""


def tryout(pipeline: Pipeline) -> Tryout:
    """Return how a version is tried."""
    if pipeline.modality == "image":
        return PICTURES
    if pipeline.modality == "audio":
        return SOUNDS
    if pipeline.modality == "clip":
        return CLIPS
    if pipeline.modality == "mesh":
        return MESHES
    for ability, found in (("chat", TURNS), ("embeddings", VECTORS), ("completions", TEXT)):
        if ability in pipeline.abilities:
            return found
    return UNASKED


def _picture(answer: Any) -> Any:
    """Return pixels (H, W, 3)."""
    import numpy as np
    from PIL import Image

    file = base64.b64decode(answer["data"][0]["b64_json"], validate=True)
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def _pictures(new: Candidate, made: Sequence[Any]) -> str:
    """Refuse pictures of another size, flat ones, and the same one for different prompts and seeds."""
    assert new.pipeline.image_size is not None
    width, height = new.pipeline.image_size
    for number, pixels in enumerate(made):
        asked = new.asked(number)
        if pixels.shape[:2] != (height, width):
            got = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise SmokeFailed(f"{asked}: the picture has {got} pixels, not {width}x{height}")
        if (spread := contrast(pixels)) < FLAT:
            raise SmokeFailed(f"{asked}: the picture is flat, {spread} levels from dark to bright")
        _differs(new, made, number, "picture")
    return f"{len(made)} pictures of {width}x{height} drawn, none flat, all different"


def _differs(new: Candidate, made: Sequence[Any], number: int, noun: str) -> None:
    for earlier in range(number):
        if not new.pipeline.varies({}) and new.prompt(earlier) == new.prompt(number):
            continue  # rightly alike, whatever the seed
        if made[earlier].shape == made[number].shape and (made[earlier] == made[number]).all():
            raise SmokeFailed(f"{new.asked(number)}: the same {noun} as with seed {earlier}")


def _sound(answer: Any) -> tuple[Any, int]:
    """Return (levels (T,) int16, sample rate)."""
    import soundfile

    file = base64.b64decode(answer["data"][0]["b64"], validate=True)
    levels, rate = soundfile.read(io.BytesIO(file), dtype="int16")
    return levels, int(rate)


def _sounds(new: Candidate, made: Sequence[Any]) -> str:
    """Refuse sounds of another length or rate, silence, and the same one for different prompts and seeds."""
    options, rate = new.pipeline.lead.options, new.pipeline.sample_rate
    for number, (levels, found) in enumerate(made):
        asked = new.asked(number)
        if found != rate:
            raise SmokeFailed(f"{asked}: the sound has {found} Hz, not {rate}")
        seconds = options.get("seconds")
        wanted = seconds and round(seconds * found)
        if not len(levels) or (wanted and abs(len(levels) - wanted) > 1):
            raise SmokeFailed(f"{asked}: the sound has {len(levels)} samples, not {wanted}")
        if (spread := swing(levels)) < SILENT:
            raise SmokeFailed(f"{asked}: the sound is silent, {spread} levels from low to high")
        _differs(new, [one for one, _ in made], number, "sound")
    return f"{len(made)} sounds made at {rate} Hz, none silent, all different"


def _clip(content: bytes) -> Any:
    """Return frames (F, H, W, 3)."""
    from infra.media.clips import decode

    return decode(content).frames


def _clips(new: Candidate, made: Sequence[Any]) -> str:
    """Refuse clips of another length or size, flat ones, and the same one for different prompts and seeds."""
    assert new.pipeline.image_size is not None
    width, height = new.pipeline.image_size
    for number, frames in enumerate(made):
        asked = new.asked(number)
        if frames.shape[:3] != (new.pipeline.frames, height, width):
            got = f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}"
            wanted = f"{new.pipeline.frames} of {width}x{height}"
            raise SmokeFailed(f"{asked}: the clip has {got}, not {wanted}")
        if (spread := contrast(frames)) < FLAT:
            raise SmokeFailed(f"{asked}: the clip is flat, {spread} levels from dark to bright")
        _differs(new, made, number, "clip")
    return f"{len(made)} clips of {new.pipeline.frames} frames drawn, none flat, all different"


def _mesh(content: bytes) -> Any:
    """Return vertices (N, 3)."""
    from infra.media.meshes import decoded

    return decoded(content).vertices


def _meshes(new: Candidate, made: Sequence[Any]) -> str:
    """Refuse meshes that fill their volume, a cube or its ball, and the same one for different prompts and seeds."""
    half = 1 / (new.pipeline.resolution or 1)  # of a voxel
    for number, vertices in enumerate(made):
        if (vertices**2).sum(axis=1).min() > (1 - half) ** 2:
            raise SmokeFailed(f"{new.asked(number)}: the mesh is full: all of its volume is opaque")
        _differs(new, made, number, "mesh")
    return f"{len(made)} meshes made, none empty or full, all different"


def _text(answer: Any) -> str:
    choice = (answer.get("choices") or answer["data"])[0]
    found = choice["text"] if "text" in choice else choice["message"]["content"]
    if not isinstance(found, str):
        raise TypeError(found)
    return found


def _texts(new: Candidate, made: Sequence[str]) -> str:
    """Refuse a version whose every text is empty; some may rightly be, and the same for different prompts."""
    there = [text for text in made if text.strip()]
    if not there:
        raise SmokeFailed(f"{new.asked(len(made) - 1)}: all {len(made)} texts are empty")
    return f"{len(there)} of {len(made)} texts have something in them"


def _vector(answer: Any) -> list[float]:
    return [float(number) for number in answer["data"][0]["embedding"]]


def _vectors(new: Candidate, made: Sequence[list[float]]) -> str:
    """Refuse vectors that are nothing, not finite, or the same for different texts."""
    for number, vector in enumerate(made):
        if not vector or not all(map(math.isfinite, vector)) or not any(vector):
            raise SmokeFailed(f"{new.asked(number)}: the embedding is empty, zero or not finite")
        for earlier in range(number):
            if made[earlier] == vector and new.prompt(earlier) != new.prompt(number):
                raise SmokeFailed(f"{new.asked(number)}: the same embedding as of another text")
    return f"{len(made)} texts embedded in {len(made[0])} numbers"


def _prompted(new: Candidate, number: int, **more: Any) -> dict[str, Any]:
    return {"model": new.ref, "prompt": new.prompt(number), "seed": number, **more}


PICTURES: Final = Tryout("/v1/images/generations", "picture", _prompted, _picture, _pictures)
CLIPS: Final = Tryout(
    "/v1/videos",
    "clip",
    lambda n, i: _prompted(n, i, output_format="webp"),  # which keeps every level
    _clip,
    _clips,
    job=True,
)
MESHES: Final = Tryout(
    "/v1/meshes", "mesh", _prompted, _mesh, _meshes, job=True, answers=2
)  # each takes minutes
SOUNDS: Final = Tryout("/v1/samples", "sound", _prompted, _sound, _sounds)
TEXT: Final = Tryout(
    "/v1/completions", "text", lambda n, i: _prompted(n, i, max_tokens=TOKENS), _text, _texts
)
UNASKED: Final = Tryout(
    "/v1/samples", "text", lambda n, i: _prompted(n, i, max_tokens=TOKENS), _text, _texts
)
TURNS: Final = Tryout(
    "/v1/chat/completions",
    "text",
    lambda new, number: {
        "model": new.ref,
        "messages": [{"role": "user", "content": new.prompt(number)}],
        "seed": number,
        "max_tokens": TOKENS,
    },
    _text,
    _texts,
)
VECTORS: Final = Tryout(
    "/v1/embeddings",
    "embedding",
    lambda new, number: {"model": new.ref, "input": new.prompt(number) or TEXTS[number % 4]},
    _vector,
    _vectors,
)
