"""`best_of`: of several candidates the picture that a pinned CLIP finds nearest to the prompt, with its own seed."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from infra.receipts.receipts import read
from models.text_to_image.clip import CLIP, CLIPConfig
from tests.services.conftest import WORDS

Ask = Callable[..., httpx.Response]
PATH = "/v1/images/generations"
ALONE = {"base": {"text": "request.text"}}
PROMPT = "a red circle"


def clip() -> CLIP:
    """One that sees pictures of twice the size that are drawn."""
    torch.manual_seed(3)
    sizes = {"image_size": 16, "hidden": (16,), "embedding": 8, "layers": 1}
    return CLIP(CLIPConfig(vocabulary=WORDS, **sizes)).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def served(workshop: Any, networks: Any) -> Iterator[Any]:
    workshop.publish_wired("ranked", {"base": networks("base"), "clip": clip()}, ALONE)
    workshop.publish_wired("plain", {"base": networks("base")})
    stage = workshop.stage()
    yield workshop.gateway(stage)
    stage.close()


def drawn(answer: httpx.Response) -> list[tuple[int, bytes]]:
    """Return seeds and files."""
    assert answer.status_code == 200, answer.text
    return [(one["seed"], base64.b64decode(one["b64_json"])) for one in answer.json()["data"]]


def pixels(file: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def cosine(file: bytes) -> float:
    model = clip()
    side = model.config.image_size
    shown = np.asarray(Image.fromarray(pixels(file)).resize((side, side), Image.Resampling.BICUBIC))
    with torch.no_grad():
        seen = model.of_pixels(torch.from_numpy(shown.copy()).permute(2, 0, 1)[None] / 255)
        return float((seen @ model.embed([PROMPT]).T).squeeze())


def test_each_picture_is_the_candidate_with_the_highest_cosine(served: Any, ask: Ask) -> None:
    """Candidates of the first picture have the request's seed and those after it; the next one's follow."""
    body = {"model": "ranked", "prompt": PROMPT, "n": 2, "seed": 40}
    every = drawn(ask(served, "POST", PATH, json={**body, "n": 8}))
    best = drawn(ask(served, "POST", PATH, json={**body, "best_of": 4}))
    assert len(best) == 2
    for place, (seed, file) in enumerate(best):
        candidates = every[4 * place : 4 * place + 4]
        scores = [cosine(one) for _, one in candidates]
        wanted, expected = candidates[int(np.argmax(scores))]
        assert len(set(scores)) == 4
        assert seed == wanted
        assert (pixels(file) == pixels(expected)).all()
        assert read(file).seed == seed, "so that it is drawn again from its receipt"
    again = drawn(ask(served, "POST", PATH, json={**body, "best_of": 4}))
    assert [seed for seed, _ in again] == [seed for seed, _ in best]


def test_a_stream_ends_with_the_pictures_that_were_kept(served: Any, ask: Ask) -> None:
    body = {"model": "ranked", "prompt": PROMPT, "seed": 40, "best_of": 4}
    [(seed, file)] = drawn(ask(served, "POST", PATH, json=body))
    answer = ask(served, "POST", PATH, json={**body, "stream": True})
    [line] = [one for one in answer.text.splitlines() if one.startswith("data: ")]
    told = json.loads(line.removeprefix("data: "))
    assert (told["seed"], told["image_index"]) == (seed, 0)
    assert (pixels(base64.b64decode(told["b64_json"])) == pixels(file)).all()


def test_a_chosen_picture_is_not_kept_to_be_compared_with_ones_that_nobody_chose(
    served: Any, workshop: Any, ask: Ask
) -> None:
    body = {"model": "ranked", "prompt": PROMPT, "seed": 40}
    [(_, chosen)] = drawn(ask(served, "POST", PATH, json={**body, "best_of": 4}))
    [(_, first)] = drawn(ask(served, "POST", PATH, json=body))
    folder = workshop.folder / "samples" / "ranked"
    kept = [path.read_bytes() for path in folder.glob("*.png")]
    assert first in kept
    assert chosen not in kept


def test_one_candidate_asks_for_nothing(served: Any, ask: Ask) -> None:
    for model in ("ranked", "plain"):
        body = {"model": model, "prompt": PROMPT, "seed": 7}
        [(seed, one)] = drawn(ask(served, "POST", PATH, json={**body, "best_of": 1}))
        [(_, other)] = drawn(ask(served, "POST", PATH, json=body))
        assert seed == 7
        assert (pixels(one) == pixels(other)).all()


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"model": "plain", "best_of": 2}, "best_of", "plain pins no CLIP"),
        ({"best_of": 33}, "best_of", "less than or equal to 32"),
        ({"best_of": 0}, "best_of", "greater than or equal to 1"),
        ({"best_of": 32, "n": 3}, "best_of", "n x best_of is at most 64, got 3 x 32"),
        ({"best_of": 32, "steps": 100}, "steps", "at most 2000, got 32 x 100"),
        (
            {"best_of": 2, "stream": True, "partial_images": 1},
            "partial_images",
            "candidates are not shown",
        ),
    ],
)
def test_candidates_that_cannot_be_compared_are_refused(
    served: Any, ask: Ask, asked: dict[str, Any], param: str, words: str
) -> None:
    answer = ask(served, "POST", PATH, json={"model": "ranked", "prompt": PROMPT, **asked})
    told = answer.json()["error"]
    assert (answer.status_code, told["param"]) == (400, param)
    assert words in told["message"]
