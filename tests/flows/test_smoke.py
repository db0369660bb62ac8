"""The smoke against a gateway that answers what a test has put into it, whatever the gateway of ours would refuse."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.promotion.smoke import draws_once, own_key, smoke
from flows.promotion.smoke_checks import Candidate, SmokeFailed
from infra.keys import Keys
from infra.media.clips import encoded
from infra.media.meshes import encoded as encoded_mesh
from infra.media.meshes import mesh_of
from infra.pipelines import PinnedStage, Pipeline
from infra.settings import settings

Answer = Callable[[dict[str, Any]], tuple[int, Any]]
SIDE = 8


def candidate(number: int) -> Candidate:
    stage = PinnedStage(
        stage="base",
        name="toy.base",
        version=number,
        sha256="0" * 64,
        family="ddpm",
        inputs={"text": "text"},
        outputs={"pixels": f"pixels 3x{SIDE}x{SIDE}"},
    )
    pipeline = Pipeline(
        endpoint="toy", stages=(stage,), vocabulary=("red", "blue"), image_size=(SIDE, SIDE)
    )
    return Candidate(f"toy:{number}", pipeline)


def trying(modality: Any, *abilities: Any, **facts: Any) -> Candidate:
    """A version of sound or of text."""
    stage = candidate(2).pipeline.stages[0].model_copy(update=facts.pop("stage", {}))
    pipeline = Pipeline(
        endpoint="toy",
        modality=modality,
        abilities=abilities,
        stages=(stage,),
        vocabulary=("low", "high"),
        **facts,
    )
    return Candidate("toy:2", pipeline)


def heard(levels: Any, rate: int = 8000) -> tuple[int, Any]:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, levels, rate, format="WAV", subtype="PCM_16")
    return 200, {"data": [{"b64": base64.b64encode(file.getvalue()).decode()}]}


def hiss(asked: dict[str, Any], samples: int = 2000, rate: int = 8000) -> tuple[int, Any]:
    draw = np.random.default_rng(asked["seed"])
    return heard(draw.integers(-1000, 1000, samples, dtype=np.int16), rate)


def drawn(pixels: Any) -> tuple[int, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return 200, {"data": [{"b64_json": base64.b64encode(buffer.getvalue()).decode()}]}


def noise(asked: dict[str, Any], side: int = SIDE) -> tuple[int, Any]:
    draw = np.random.default_rng(asked["seed"])
    return drawn(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))


def filmed(frames: Any) -> tuple[int, Any]:
    """A job that is not done when it is asked for once, and then its file."""
    file = encoded(frames, 8, "webp").content
    return 200, [{"status": "in_progress"}, {"status": "completed"}, file]


def moving(asked: dict[str, Any], frames: int = 5, side: int = SIDE) -> tuple[int, Any]:
    draw = np.random.default_rng(asked["seed"])
    return filmed(draw.integers(0, 256, (frames, side, side, 3), dtype=np.uint8))


@pytest.fixture
def answers(private_home: Path) -> Iterator[dict[str, Answer]]:
    """What the gateway answers, by model."""
    given: dict[str, Answer] = {}
    jobs: dict[str, list[Any]] = {}  # by path: what it still says, and at last its file

    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, document = given[asked["model"]](asked)
            if isinstance(document, list):
                job = f"video_{len(jobs)}"
                jobs[f"{self.path}/{job}"] = document
                document = {"id": job, "status": "queued"}
            self._say(status, json.dumps(document).encode())

        def do_GET(self) -> None:
            if self.path.endswith("/content"):
                self._say(200, jobs[self.path.removesuffix("/content")][-1])
                return
            self._say(200, json.dumps(jobs[self.path].pop(0)).encode())

        def do_DELETE(self) -> None:
            jobs[self.path] = []
            self._say(200, b"{}")

        def _say(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", settings().gateway_port), Gateway) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield given
        server.shutdown()
        thread.join()


def test_pictures_that_differ_pass_and_the_report_says_how_fast(answers: dict[str, Answer]) -> None:
    answers.update({"toy:2": noise, "toy:1": noise})
    found = smoke(candidate(2), candidate(1), max_slowdown=1000)
    assert [(one.name, one.passed) for one in found] == [("smoke", True), ("slowdown", True)]
    assert found[1].value is not None
    draws_once(candidate(2))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda asked: noise(asked, 4), "the picture has 4x4 pixels, not 8x8"),
        (lambda _: drawn(np.zeros((8, 8, 3), np.uint8)), "is flat, 0 levels"),
        (lambda _: drawn(np.full((8, 8, 3), (0, 255, 3), np.uint8)), "is flat, 0 levels"),
        (lambda _: noise({"seed": 0}), "seed 1: the same picture as with seed 0"),
        (lambda _: (200, {"data": [{"b64_json": "AAAA"}]}), "answered 200 without a picture"),
        (lambda _: (200, {}), "answered 200 without a picture"),
        (lambda _: (500, {"error": {"message": "not finite"}}), "answered 500: not finite"),
        (lambda _: (401, {}), "it reads another database than ATELIER_DATABASE_URL"),
    ],
)
def test_what_is_no_good_picture_fails(
    answers: dict[str, Answer], answer: Answer, says: str
) -> None:
    answers["toy:2"] = answer
    with pytest.raises(SmokeFailed, match=says):
        smoke(candidate(2), None, max_slowdown=1.5)


def test_who_takes_the_likeliest_draws_alike_for_a_prompt_but_not_for_all(
    answers: dict[str, Answer],
) -> None:
    """Four are asked for, of two prompts."""
    sure = trying("image", image_size=(SIDE, SIDE), stage={"options": {"top_k": 1}})
    answers["toy:2"] = lambda asked: noise({"seed": len(asked["prompt"])})
    assert smoke(sure, None, max_slowdown=1.5)[0].passed
    answers["toy:2"] = lambda _: noise({"seed": 0})
    with pytest.raises(SmokeFailed, match="seed 1: the same picture as with seed 0"):
        smoke(sure, None, max_slowdown=1.5)


SOUND = trying("audio", "speech", sample_rate=8000, stage={"options": {"seconds": 0.25}})


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda asked: hiss(asked, samples=1000), "has 1000 samples, not 2000"),
        (lambda asked: hiss(asked, rate=16000), "has 16000 Hz, not 8000"),
        (lambda _: heard(np.full(2000, 900, np.int16)), "is silent, 0 levels"),
        (lambda _: hiss({"seed": 0}), "seed 1: the same sound as with seed 0"),
        (lambda _: (200, {"data": [{"b64": "AAAA"}]}), "answered 200 without a sound"),
    ],
)
def test_what_is_no_good_sound_fails(answers: dict[str, Answer], answer: Answer, says: str) -> None:
    answers["toy:2"] = hiss
    assert "none silent" in smoke(SOUND, None, max_slowdown=1.5)[0].says
    answers["toy:2"] = answer
    with pytest.raises(SmokeFailed, match=says):
        smoke(SOUND, None, max_slowdown=1.5)


FLAT_CLIP = np.stack([np.full((SIDE, SIDE, 3), 90 + place // 2, np.uint8) for place in range(5)])
FAILED = [{"status": "failed", "error": {"message": "no memory"}}]


def test_clips_are_waited_for_and_the_report_says_what_they_are(answers: dict[str, Answer]) -> None:
    answers["toy:2"] = moving
    film = trying("clip", image_size=(SIDE, SIDE), frames=5, frame_rate=8)
    (found,) = smoke(film, None, 1.5)
    assert found.says == "4 clips of 5 frames drawn, none flat, all different"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda asked: moving(asked, frames=4), f"has 4 frames of {SIDE}x{SIDE}, not 5 of"),
        (lambda asked: moving(asked, side=16), "has 5 frames of 16x16, not 5 of"),
        (lambda _: filmed(FLAT_CLIP), "the clip is flat, 2 levels from dark to bright"),
        (lambda _: moving({"seed": 1}), "the same clip as with seed 0"),
        (lambda _: (200, list(FAILED)), "toy:2 failed: no memory"),
        (lambda _: (200, [{"status": "completed"}, b"none"]), "answered 200 without a clip"),
    ],
)
def test_what_is_no_good_clip_fails(answers: dict[str, Answer], answer: Answer, says: str) -> None:
    answers["toy:2"] = answer
    with pytest.raises(SmokeFailed, match=says):
        smoke(trying("clip", image_size=(SIDE, SIDE), frames=5, frame_rate=8), None, 1.5)


def cut(opacity: float, size: int) -> tuple[int, Any]:
    """A job for a mesh: a block that is so wide."""
    volume = np.zeros((4, SIDE, SIDE, SIDE))
    volume[3, :, :, :size] = opacity
    file = encoded_mesh(mesh_of(volume), "glb").content
    return 200, [{"status": "in_progress"}, {"status": "completed"}, file]


def ball(opacity: float, radius: float) -> tuple[int, Any]:
    """A job for a mesh: a ball about the middle."""
    centres = (2 * np.arange(SIDE) + 1) / SIDE - 1
    away = np.linalg.norm(np.stack(np.meshgrid(centres, centres, centres)), axis=0)
    volume = np.stack([*np.zeros((3, SIDE, SIDE, SIDE)), opacity * (away <= radius)])
    file = encoded_mesh(mesh_of(volume), "glb").content
    return 200, [{"status": "completed"}, file]


def test_meshes_are_waited_for_and_the_report_says_what_they_are(
    answers: dict[str, Answer],
) -> None:
    answers["toy:2"] = lambda asked: cut(1, 3 + asked["seed"])
    (found,) = smoke(trying("mesh", resolution=SIDE), None, 1.5)
    assert found.says == "2 meshes made, none empty or full, all different"
    answers["toy:2"] = lambda asked: ball(1, 0.7 + asked["seed"] / 10)
    assert smoke(trying("mesh", resolution=SIDE), None, 1.5)[0].passed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda asked: cut(0.9 + asked["seed"] / 100, SIDE), "the mesh is full"),
        (lambda asked: ball(0.9 + asked["seed"] / 100, 1), "the mesh is full"),
        (lambda _: cut(1, 3), "the same mesh as with seed 0"),
        (lambda _: (200, list(FAILED)), "toy:2 failed: no memory"),
        (lambda _: (200, [{"status": "completed"}, b"none"]), "answered 200 without a mesh"),
    ],
)
def test_what_is_no_good_mesh_fails(answers: dict[str, Answer], answer: Answer, says: str) -> None:
    answers["toy:2"] = answer
    with pytest.raises(SmokeFailed, match=says):
        smoke(trying("mesh", resolution=SIDE), None, 1.5)


def said(text: str) -> tuple[int, Any]:
    return 200, {"choices": [{"message": {"content": text}}]}


@pytest.mark.parametrize(
    ("new", "good", "bad", "says"),
    [
        (
            trying("text", "completions"),
            lambda asked: (200, {"choices": [{"text": "" if asked["seed"] else "so"}]}),
            lambda _: (200, {"choices": [{"text": " "}]}),
            "all 4 texts are empty",
        ),
        (
            trying("text", "completions", "chat"),
            lambda asked: said(asked["messages"][0]["content"]),
            lambda _: (200, {"choices": [{"text": None}]}),
            "answered 200 without a text",
        ),
        (
            trying("text", "samples"),
            lambda _: (200, {"data": [{"text": "so it was"}]}),
            lambda _: (200, {"data": []}),
            "answered 200 without a text",
        ),
        (
            trying("text", "embeddings", "completions"),
            lambda asked: (200, {"data": [{"embedding": [len(asked["input"]), 1.0]}]}),
            lambda _: (200, {"data": [{"embedding": [1.0, 1.0]}]}),
            "the same embedding as of another text",
        ),
        (
            trying("text", "embeddings"),
            lambda asked: (200, {"data": [{"embedding": [len(asked["input"]), 1.0]}]}),
            lambda _: (200, {"data": [{"embedding": [0.0, 0.0]}]}),
            "empty, zero or not finite",
        ),
    ],
)
def test_a_version_of_text_must_answer_what_it_promises(
    answers: dict[str, Answer], new: Candidate, good: Answer, bad: Answer, says: str
) -> None:
    answers["toy:2"] = good
    assert smoke(new, None, max_slowdown=1.5)[0].passed
    answers["toy:2"] = bad
    with pytest.raises(SmokeFailed, match=says):
        smoke(new, None, max_slowdown=1.5)


def test_a_full_queue_is_waited_for(answers: dict[str, Answer]) -> None:
    turns: list[int] = []

    def busy_at_first(asked: dict[str, Any]) -> tuple[int, Any]:
        turns.append(1)
        return (429, {}) if len(turns) < 3 else noise(asked)

    answers["toy:2"] = busy_at_first
    draws_once(candidate(2))
    assert len(turns) == 3


def test_a_version_slower_than_production_fails_its_condition(answers: dict[str, Answer]) -> None:
    busy = threading.Event()

    def slow(asked: dict[str, Any]) -> tuple[int, Any]:
        busy.wait(0.25)  # nobody sets it
        return noise(asked)

    answers.update({"toy:2": slow, "toy:1": noise})
    condition = smoke(candidate(2), candidate(1), max_slowdown=1.5)[-1]
    assert (condition.name, condition.passed, condition.at_most) == ("slowdown", False, 1.5)
    assert "above 1.5" in condition.says
    backwards = smoke(candidate(1), candidate(2), max_slowdown=1.5)[-1]
    assert backwards.passed


def test_production_that_does_not_draw_is_not_compared_with(answers: dict[str, Answer]) -> None:
    answers.update({"toy:2": noise, "toy:1": lambda _: (500, {})})
    condition = smoke(candidate(2), candidate(1), max_slowdown=1.5)[-1]
    assert condition.passed
    assert condition.says == "toy:1 draws nothing to compare with"


def test_a_gateway_that_is_not_there_is_said_to_be(private_home: Path) -> None:
    with pytest.raises(SmokeFailed, match="toy:2 did not answer"):
        draws_once(candidate(2))


def test_whoever_tries_a_version_has_a_key_of_the_platforms_own_and_keeps_it(
    private_home: Path,
) -> None:
    keys = Keys(settings().database)
    made = own_key()
    assert keys.find(made)
    assert not keys.any()  # no person's: nobody is asked for one because of it
    assert own_key() == made
    assert (private_home / "smoke_key").stat().st_mode & 0o777 == 0o600
    keys.revoke(next(key.label for key in keys.list() if key.ours))
    again = own_key()
    assert again != made
    assert keys.find(again)
