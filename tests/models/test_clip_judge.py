from typing import Any

import pytest
import torch

from models import build, configure, describe
from models.judges.clip_judge import ClipJudge

ATTRIBUTES = (("shade", ("dark", "light")), ("direction", ("left", "right", "up")))
FACTS: dict[str, Any] = {
    **{"image_size": 16, "channels": 3, "frames": 5, "moving": ("direction",)},
    "attributes": ATTRIBUTES,
}


def judge(**facts: Any) -> ClipJudge:
    torch.manual_seed(0)
    return ClipJudge(configure("clip-judge", "tiny", {}, {**FACTS, **facts}))


def test_what_no_frame_shows_is_asked_of_the_whole_clip_alone() -> None:
    found = judge().eval()
    frames = torch.rand(3, 5, 3, 16, 16)
    assert found.predict(frames).shape == (3, 2)
    assert found.predict_frames(frames).shape == (3, 5, 1)
    assert [name for name, _ in found.frame.config.attributes] == ["shade"]
    only = judge(attributes=ATTRIBUTES[1:]).eval()
    assert only.predict_frames(frames).shape == (3, 5, 0)
    assert bool(only(only_batch(frames)).total.isfinite())


def only_batch(frames: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"frames": frames, "attributes": torch.zeros(3, 1, dtype=torch.long)}


def test_a_judge_hears_the_order_of_frames() -> None:
    found = judge().eval()
    frames = torch.rand(2, 5, 3, 16, 16)
    assert not torch.allclose(found.features(frames), found.features(frames.flip(1)), atol=1e-5)
    assert torch.equal(found.predict_frames(frames).flip(1), found.predict_frames(frames.flip(1)))


def test_a_clip_is_judged_alike_alone_and_among_many() -> None:
    found, frames = judge().eval(), torch.rand(70, 5, 3, 16, 16)
    many = found.features(frames)
    torch.testing.assert_close(found.features(frames[66:67])[0], many[66], rtol=0, atol=1e-5)


def test_it_is_rebuilt_from_json() -> None:
    found = judge()
    again = build(describe(found))
    again.load_state_dict(found.state_dict())
    frames = torch.rand(2, 5, 3, 16, 16)
    assert isinstance(again, ClipJudge)
    assert torch.equal(again.eval().predict(frames), found.eval().predict(frames))


def test_what_it_cannot_judge_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"sees frames \(3, 16, 16\), got \(3, 8, 8\)"):
        judge().predict(torch.zeros(1, 5, 3, 8, 8))
    with pytest.raises(ValueError, match="the judge has 2 attributes, the batch 1"):
        judge()(only_batch(torch.zeros(3, 5, 3, 16, 16)))
