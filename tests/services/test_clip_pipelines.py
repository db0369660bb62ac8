"""A pipeline of clips is drawn by the same executor as any other, and says what it makes."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from openai import OpenAI

from infra.media.clips import Clip, decode, encoded
from services.pipelines.executor import Executor
from services.pipelines.payload import GenerationSpec
from services.routing.observer import look
from tests.services.clips_kit import publish_clips
from tests.services.served_kit import listening, with_toys


@pytest.fixture(scope="module")
def clips(own_workshop: Any) -> Iterator[Any]:
    with with_toys():
        pipeline = publish_clips(own_workshop)
        stage = own_workshop.stage()
        yield pipeline, stage
    stage.close()


def drawn(clips: Any, **asked: Any) -> list[Any]:
    pipeline, stage = clips
    spec = GenerationSpec(**asked)
    return list(asyncio.run(Executor(lambda _: stage).draw(pipeline, spec)).made)


def test_clips_come_out_with_their_frames_and_their_rate(clips: Any) -> None:
    first, second = drawn(clips, seeds=(1, 2), prompts=("a red circle",) * 2)
    assert isinstance(first, Clip)
    assert first.frames.shape == second.frames.shape == (6, 16, 16, 3)
    assert first.frames.dtype == np.uint8
    assert first.frame_rate == 8
    assert (first.frames != second.frames).any()


def test_a_rate_that_is_asked_for_is_the_clips(clips: Any) -> None:
    [made] = drawn(clips, seeds=(1,), prompts=("a red circle",), options={"frame_rate": 4.0})
    assert made.frame_rate == 4
    assert clips[0].seconds({"frame_rate": 4.0}) == 1.5


def test_a_clip_of_one_colour_is_flat_to_a_rollout(clips: Any) -> None:
    [made] = drawn(clips, seeds=(1,), prompts=("a red circle",))
    assert not look(made).flat
    assert look(Clip(np.full_like(made.frames, 9), 8, 16, 16)).flat


@pytest.mark.filterwarnings("ignore:The Sora API")
def test_a_runner_beside_the_gateway_makes_what_is_asked_for(own_workshop: Any, clips: Any) -> None:
    app = own_workshop.worked(own_workshop.gateway(clips[1]), clips[1])
    with (
        listening(app) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        asked = [
            client.videos.create(model="moving", prompt="a red circle", extra_body={"seed": seed})
            for seed in (1, 2)
        ]
        made = [client.videos.poll(one.id) for one in asked]
        assert [one.status for one in made] == ["completed"] * 2
        assert (made[0].model_extra or {})["stages"] == ["base"]
        shown = [decode(client.videos.download_content(one.id).read()).frames for one in made]
    for seed, frames in zip((1, 2), shown, strict=True):
        [drawn_now] = drawn(clips, seeds=(seed,), prompts=("a red circle",))
        again = decode(encoded(drawn_now.frames, 8, "mp4").content).frames
        assert np.abs(frames.astype(int) - again).mean() < 6


def test_the_card_says_how_long_and_how_large_clips_are(
    own_workshop: Any, clips: Any, ask: Any
) -> None:
    app = own_workshop.gateway(clips[1])
    card = ask(app, "GET", "/v1/models/moving").json()
    assert (card["modality"], card["size"]) == ("clip", "16x16")
    assert (card["frames"], card["frame_rate"], card["seconds"]) == (6, 8.0, 0.75)
    assert card["capabilities"] == ["video_generation", "video_extensions", "video_animation"]
    refused = ask(
        app, "POST", "/v1/images/generations", json={"model": "moving", "prompt": "a red circle"}
    )
    assert refused.status_code == 400
    assert "clips at /v1/videos" in refused.json()["error"]["message"]


def test_a_clip_that_is_given_is_brought_to_the_size_that_a_stage_takes(clips: Any) -> None:
    pipeline, stage = clips
    large = np.linspace(0, 1, 6 * 3 * 32 * 32, dtype=np.float32).reshape(1, 6, 3, 32, 32)
    small = large.reshape(1, 6, 3, 16, 2, 16, 2).mean((4, 6))
    both = []
    for frames in (large, small):
        spec = GenerationSpec(
            seeds=(1,), prompts=("a red circle",), entrance="extend", given={"clip": frames}
        )
        [made] = asyncio.run(Executor(lambda _: stage).draw(pipeline, spec)).made
        both.append(made.frames.astype(int))
    assert both[0].max() > 200
    assert np.abs(both[0] - both[1]).max() <= 1
