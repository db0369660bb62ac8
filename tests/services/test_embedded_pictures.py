"""Pictures beside texts at /v1/embeddings, as data URLs, by a model that embeds both alike."""

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from infra.media.pictures import png
from models.text_to_image.clip import CLIP
from services.api.data_urls import LARGEST
from tests.services.served_kit import publish_each_modality, with_toys

Ask = Callable[..., httpx.Response]
PATH = "/v1/embeddings"


def clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(replace(CLIP.presets["tiny"], channels=3, vocabulary=("dark", "light"))).eval()


@pytest.fixture(scope="module")
def served(workshop: Any) -> Iterator[Any]:
    with with_toys():
        publish_each_modality(workshop)
        workshop.publish_wired("colours", {"clip": clip()})
        stage = workshop.stage()
        yield workshop.gateway(stage)
        stage.close()


def picture(side: int, seed: int = 0) -> Any:
    """Return (H, W, 3) bytes."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def url(pixels: Any, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(png(pixels)).decode()}"


def vectors(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return torch.tensor([one["embedding"] for one in data])


def test_texts_and_pictures_have_the_models_own_embeddings_in_their_order(
    served: Any, ask: Ask
) -> None:
    """More pictures than a call takes; each has the same bits alone."""
    pixels = [picture(8, seed) for seed in range(19)]
    body = {"model": "colours", "input": ["dark", "light dark"]}
    urls = [url(one) for one in pixels]
    answer = ask(served, "POST", PATH, json={**body, "input_image": urls})
    found, model = vectors(answer), clip()
    tensor = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = torch.cat([model.embed(body["input"]), model.of_pixels(tensor)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    alone = ask(
        served, "POST", PATH, json={"model": "colours", "input": [], "input_image": urls[3]}
    )
    assert torch.equal(vectors(alone)[0], found[5])
    assert answer.json()["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_a_picture_of_another_size_is_brought_to_the_models(served: Any, ask: Ask) -> None:
    """Cropped to its middle and made smaller; grey or with alpha, it is brought to three channels."""
    small = picture(8)
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = small.repeat(4, 0).repeat(4, 1)
    grey = np.asarray(Image.fromarray(small).convert("L"))
    shown = [url(small), url(wide), url(grey)]
    found = vectors(ask(served, "POST", PATH, json={"model": "colours", "input_image": shown}))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    assert (found[0] - found[2]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"input_image": "https://example.org/cat.png"}, "send data URLs.* no other is fetched"),
        ({"input_image": ["file:///etc/passwd"]}, "send data URLs"),
        ({"input_image": "data:text/html;base64,aGk="}, "send data URLs"),
        ({"input_image": "data:image/png;base64,a b"}, "it is no base64"),
        ({"input_image": "data:image/png;base64,\u00e9"}, "it is no base64"),  # and no ASCII
        ({"input_image": "data:image/png;base64,aGVsbG8="}, "not a picture|no picture|unknown"),
        ({"input_image": url(picture(8))[:-60] + "===="}, "base64|cut|damaged|truncated"),
        ({"input_image": [url(picture(8))] * 33}, "send at most 32 pictures, got 33"),
        (
            {"input_image": "data:image/png;base64," + "A" * (LARGEST // 3 * 4 + 4)},
            "at most 4194304",
        ),
        ({"model": "reader", "input_image": url(picture(8))}, "reader embeds texts alone"),
    ],
)
def test_a_picture_that_cannot_be_embedded_is_named(
    served: Any, ask: Ask, wrong: dict[str, Any], words: str
) -> None:
    answer = ask(served, "POST", PATH, json={"model": "colours", **wrong})
    assert answer.status_code == 400
    told = answer.json()["error"]
    assert told["param"] == "input_image"
    assert re.search(words, told["message"]), told["message"]


def test_who_asks_for_nothing_is_told_what_to_send(served: Any, ask: Ask) -> None:
    for body in ({}, {"input": []}, {"input": [], "input_image": None}):
        answer = ask(served, "POST", PATH, json={"model": "colours", **body})
        told = answer.json()["error"]
        assert (answer.status_code, told["param"]) == (400, "input")
        assert "send a text, or a picture as input_image" in told["message"]


def test_words_that_were_never_learned_are_refused_or_left_unread(
    workshop: Any, served: Any, ask: Ask
) -> None:
    body = {"model": "colours", "input": ["dark teal", "dark"]}
    refused = ask(served, "POST", PATH, json=body).json()["error"]
    assert refused["param"] == "input"
    assert refused["message"].startswith("unknown word 'teal'")
    stage = workshop.stage(unknown_words="map")
    mapping = workshop.gateway(stage)
    read = ask(mapping, "POST", PATH, json=body)
    first, second = vectors(read)
    assert torch.equal(first, second)
    assert read.json()["warnings"] == ["never learned, and not read: 'teal'"]
    nothing = ask(mapping, "POST", PATH, json={"model": "colours", "input": "teal"})
    assert nothing.status_code == 400
    stage.close()


def test_a_card_says_what_is_embedded_and_nothing_else_is_offered(served: Any, ask: Ask) -> None:
    card = ask(served, "GET", "/v1/models/colours").json()
    assert (card["modality"], card["capabilities"]) == ("embedding", ["embeddings"])
    assert card["embeds"] == ["pixels", "text"]
    for path in ("/v1/images/generations", "/v1/samples"):
        answer = ask(served, "POST", path, json={"model": "colours", "prompt": "dark"})
        assert answer.json()["error"]["code"] == "unsupported_capability"
