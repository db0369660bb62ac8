"""Graphs of clips behind /v1/videos, Make-A-Video's and one of latents, of small networks that know nothing."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

from data.makers.moving import CAPTIONS
from infra.media.clips import decode, encoded
from infra.media.pictures import png
from infra.receipts.receipts import read
from tests.flows.moving_kit import OF_LATENTS, SMALL_DIT, small_cascade
from tests.services.clips_kit import publish_cascade
from tests.services.served_kit import listening

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API")


@pytest.fixture(scope="module")
def client(own_workshop: Any) -> Iterator[OpenAI]:
    publish_cascade(own_workshop, *small_cascade())
    publish_cascade(own_workshop, *small_cascade(SMALL_DIT, recipe=OF_LATENTS, side=32))
    stage = own_workshop.stage(buckets=(1,))
    app = own_workshop.worked(own_workshop.gateway(stage), stage)
    with (
        listening(app) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as found,
    ):
        yield found
    stage.close()


def ways() -> dict[str, Any]:
    """How each entrance is asked, with how many frames come out."""
    frames = np.random.default_rng(0).integers(0, 256, (9, 40, 48, 3)).astype(np.uint8)
    clip, picture = encoded(frames, 8.0, "mp4").content, png(frames[0])
    return {
        "generate": SimpleNamespace(path="/videos", files=[], frames=9),
        "animate": SimpleNamespace(
            path="/videos", files=[("input_reference", ("a.png", picture))], frames=9
        ),
        "alter": SimpleNamespace(
            path="/videos/edits", files=[("video", ("a.mp4", clip))], frames=9
        ),
        "extend": SimpleNamespace(
            path="/videos/extensions", files=[("video", ("a.mp4", clip))], frames=17
        ),
    }


def asked(client: OpenAI, way: Any, **more: str) -> Any:
    form: Any = {"headers": {"Content-Type": "multipart/form-data", "Prefer": "wait=60"}}
    body = {"model": "moving-shapes", "prompt": CAPTIONS[0], "seed": "3", **more}
    return client.post(way.path, body=body, files=way.files, options=form, cast_to=object)


@pytest.mark.parametrize(
    ("model", "side", "entrance"),
    [
        *(("moving-shapes", 64, way) for way in ("generate", "animate", "alter", "extend")),
        *(("moving-shapes-dit", 32, way) for way in ("generate", "animate", "extend")),
    ],
)
def test_every_entrance_gives_a_clip_of_the_last_stage(
    client: OpenAI, model: str, side: int, entrance: str
) -> None:
    way = ways()[entrance]
    made = asked(client, way, model=model)
    assert made["status"] == "completed", made["error"]
    assert float(made["seconds"]) == way.frames / 8
    content = client.videos.download_content(made["id"]).read()
    assert decode(content).frames.shape == (way.frames, side, side, 3)
    assert (read(content).entrance or "generate") == entrance


@pytest.mark.parametrize("entrance", ["generate", "animate", "alter", "extend"])
def test_what_a_stage_would_refuse_is_refused_at_every_entrance(
    client: OpenAI, entrance: str
) -> None:
    for wrong, says in (
        ({"prompt": "a zebra"}, "unknown word 'zebra'"),
        ({"steps": "9999"}, "steps"),
    ):
        with pytest.raises(openai.BadRequestError, match=says) as caught:
            asked(client, ways()[entrance], **wrong)
        assert caught.value.param in {"prompt", "steps"}


def test_a_clip_that_is_too_short_to_go_on_from_is_named(client: OpenAI) -> None:
    """Of latents any number of frames comes in, so it is the stage that draws which says how many it wants."""
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    way = SimpleNamespace(
        path="/videos/extensions",
        files=[("video", ("a.mp4", encoded(frames, 8.0, "mp4").content))],
    )
    made = asked(client, way, model="moving-shapes-dit")
    assert made["status"] == "failed"
    assert "goes on from 5 frames, got 3" in made["error"]["message"]


def test_what_is_drawn_is_led_away_from_a_negative_prompt(client: OpenAI) -> None:
    way = ways()["generate"]
    clips = [
        decode(client.videos.download_content(asked(client, way, **more)["id"]).read()).frames
        for more in (
            {"model": "moving-shapes-dit"},
            {"model": "moving-shapes-dit", "negative_prompt": CAPTIONS[-1]},
        )
    ]
    assert (clips[0] != clips[1]).any()
