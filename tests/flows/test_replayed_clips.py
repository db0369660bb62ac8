"""A clip's receipt is checked by the command line, and the clip drawn again from it and compared frame by frame."""

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flows import context
from flows.cli import lineage_verbs
from flows.provenance.tracing import Untraceable, compare_clips, redraw, trace
from infra.media.clips import decode, encoded
from infra.pipelines import PinnedStage, Pipeline
from infra.receipts.provenance import sign
from infra.receipts.receipts import GENERATOR, Receipt, StageReceipt, attach, read
from models import describe
from tests.command_kit import commands
from tests.flows.versions_kit import Installation
from tests.services.clips_kit import WORDS, Moving
from tests.services.served_kit import with_toys

KINDS = ("mp4", "gif", "webp")


@pytest.fixture
def filmed(here: Installation, tmp_path: Path) -> Iterator[Any]:
    """A clip of each kind, as a gateway answers it."""
    with with_toys():
        model = Moving(Moving.presets["tiny"]).eval()
        version = here.publish("moving.base", model, "moving")
        stage = PinnedStage(
            stage="base", name=version.name, version=version.number, sha256=version.digest,
            family=describe(model)["family"], inputs={"text": "text"}, outputs={"frames": "clip 6x3x16x16"},
        )  # fmt: skip
        pipeline = here.publish_wired(
            Pipeline(
                endpoint="moving", modality="clip", abilities=("videos",), stages=(stage,), vocabulary=WORDS,
                image_size=(16, 16), frames=6, frame_rate=8.0,
            )
        )  # fmt: skip
        receipt = Receipt(
            endpoint="moving", version=pipeline.ref, digest=pipeline.digest, place="production", epoch=1,
            stages=(StageReceipt(name=stage.name, version=stage.version, sha256=stage.sha256),),
            prompt="a red circle moving left", seed=7, generator=GENERATOR, size="16x16", frames=6,
            frame_rate=8.0, created=datetime.now(UTC), request_id="video_1",
        )  # fmt: skip

        def clip(kind: Any, **changes: Any) -> Path:
            asked = receipt.model_copy(update=changes)
            prompts = [asked.prompt]
            from flows.evaluating.pipeline import asked as request_of

            request = request_of(model, stage, prompts, [asked.seed], {})
            frames = (model.sample(request)[0] * 255).round().to(torch.uint8)
            content = encoded(frames.permute(0, 2, 3, 1).numpy(), 8.0, kind).content
            file = tmp_path / f"clip.{kind}"
            file.write_bytes(attach(content, sign(receipt, content, context.signing())))
            return file

        yield SimpleNamespace(clip=clip)


def test_a_clip_is_verified_by_the_command_line_until_a_byte_is_another(filmed: Any) -> None:
    for kind in KINDS:
        file = filmed.clip(kind)
        good = commands.run("verify", str(file))
        assert good.returncode == 0, good.stdout + good.stderr
        assert f"clip.{kind}: verified" in good.stdout
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    bad = commands.run("verify", str(file))
    assert bad.returncode == 1
    assert "NOT VERIFIED" in bad.stdout
    assert "Traceback" not in bad.stdout + bad.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_drawn_again_frame_by_frame(filmed: Any, kind: str, tmp_path: Path) -> None:
    file = filmed.clip(kind)
    again = tmp_path / f"again.{kind}"
    lineage_verbs.replay(file, again)
    first, second = (decode(one.read_bytes()).frames for one in (file, again))
    assert np.abs(first.astype(int) - second).mean() <= 3
    receipt = read(again)
    assert (receipt.request_id, receipt.frames, receipt.seed) == ("replay", 6, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_another_clip_is_more_than_packing_and_the_bound_is_told(filmed: Any, kind: str) -> None:
    file = filmed.clip(kind, prompt="a red circle moving right")
    found = trace(file)
    compared = compare_clips(found, file.read_bytes(), redraw(found, kind), where="here")
    assert not compared.same
    assert "pixels differ" in compared.says
    if kind != "webp":
        assert "packing with loss makes up to 3 of rounding" in compared.says
        near = dataclasses.replace(compared, worst=2.9)
        assert near.same


def test_rounding_alone_is_the_same_clip_and_another_length_is_none(filmed: Any) -> None:
    file = filmed.clip("webp")
    found = trace(file)
    frames = decode(file.read_bytes()).frames
    for kind in KINDS:
        apart = np.where(frames < 255, frames + 1, frames).astype(np.uint8)
        pair = [
            attach(encoded(one, 8, kind).content, found.receipt)  # type: ignore[arg-type]
            for one in (frames, apart)
        ]
        assert compare_clips(found, *pair, where="here").same
    shorter = attach(encoded(frames[:5], 8, "webp").content, found.receipt)
    with pytest.raises(Untraceable, match="has 6 frames of 16x16, drawn again it has 5"):
        compare_clips(found, file.read_bytes(), shorter, where="here")
