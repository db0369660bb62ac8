"""Judging clips: real ones pass for what they are, and each of the broken ones fails where it should."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.loaders import clips
from flows.checking import check
from flows.evaluating import clips as judging
from flows.evaluating.evaluate import judging as module_of
from flows.evaluating.gate import Evaluation as EvaluationRecord
from flows.evaluating.gate import check as gated
from flows.evaluating.measured import Able, measured
from flows.evaluating.pipeline import ports_of
from flows.evaluating.scores import Scores
from flows.recipe import Evaluation
from flows.recipes.loader import RecipeError, load
from infra.pipelines import PinnedStage, Pipeline
from models.family import Family
from models.judges import clip_metrics
from models.judges.clip_judge import ClipJudge
from models.text_to_video.make_a_video import Interpolation, VideoUpsampler
from tests.data.prepare_kit import prepare
from tests.flows.judges_kit import learned
from tests.models.families_kit import tiny

ROOT = Path(__file__).parents[2]
SIDE, FRAMES = 16, 5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entry = {"maker": "moving", "count": 960, "image_size": SIDE, "frames": FRAMES}
    return prepare(tmp_path_factory.mktemp("moving"), entry, "moved")


@pytest.fixture(scope="module")
def judge(prepared: Path) -> ClipJudge:
    found: ClipJudge = learned(ClipJudge, "clip-judge", prepared, rate=4e-3, rows=24, steps=90)
    return found


def pinned(models: Mapping[str, Family]) -> Pipeline:
    stages = [
        PinnedStage(stage=name, name=name, version=1, sha256="", family="", **ports_of(model))
        for name, model in models.items()
    ]
    return Pipeline(endpoint="toy", modality="clip", stages=tuple(stages))


def scored(
    prepared: Path,
    judge: ClipJudge | None,
    made: Tensor,
    prompts: Sequence[str],
    models: Mapping[str, Family] | None = None,
) -> Any:
    models = models or {}
    pipeline = pinned(models or {"up": VideoUpsampler(VideoUpsampler.presets["tiny"])})
    if not models:
        pipeline = pipeline.model_copy(update={"stages": ()})
    return judging.score(
        [judging.packed(made)],
        prompts,
        judge=judge,
        prepared=prepared,
        spec=Evaluation(bootstrap=20),
        models=[*models.values()],
        pipeline=pipeline,
    )


def broken(made: Tensor, how: str) -> Tensor:
    generator = np.random.default_rng(0)
    if how == "shuffled":
        order = [torch.from_numpy(generator.permutation(made.shape[1])) for _ in made]
        return torch.stack([clip[one] for clip, one in zip(made, order, strict=True)])
    if how == "constant":
        return made[:, 2:3].expand_as(made)
    if how == "stops":  # its second half stands still
        middle = made.shape[1] // 2
        return torch.cat(
            [made[:, :middle], made[:, middle : middle + 1].expand_as(made[:, middle:])], 1
        )
    if how == "slow":
        late = torch.arange(made.shape[1])
        return (made[:, late // 2] + made[:, (late + 1) // 2]) / 2
    if how == "incoherent":  # every frame is another clip's
        rows = [(torch.arange(len(made)) + 7 * frame) % len(made) for frame in range(made.shape[1])]
        return torch.stack([made[row, frame] for frame, row in enumerate(rows)], 1)
    return made


@pytest.mark.slow
def test_real_clips_pass_and_each_broken_kind_fails_by_its_own_number(
    prepared: Path, judge: ClipJudge
) -> None:
    made, captions, attributes = clips(prepared, "test")
    assert judge.accuracy(made, attributes)["direction"] > 0.95
    found = {
        how: scored(prepared, judge, broken(made, how), captions).metrics
        for how in ("real", "shuffled", "constant", "incoherent")
    }
    values = {how: {name: one.value for name, one in of.items()} for how, of in found.items()}
    real = values["real"]
    assert real["alignment_direction"] > 0.95
    assert found["real"]["frame_alignment"].low > found["incoherent"]["frame_alignment"].high
    assert real["jerk"] < 0.05
    for how in ("shuffled", "constant"):
        assert values[how]["alignment_direction"] < 0.75, how
    assert values["shuffled"]["jerk"] > 0.1
    assert values["incoherent"]["constancy"] < 0.1 < real["constancy"]
    for how in ("shuffled", "constant", "incoherent"):
        assert found[how]["fd_judge"].low > found["real"]["fd_judge"].high, how


def test_a_clip_that_stands_still_or_is_too_slow_goes_half_as_far_as_real_ones(
    prepared: Path,
) -> None:
    """A judge of directions is content with the last two, and so is jerk."""
    real, captions, _ = clips(prepared, "test")
    gate = load(ROOT / "flows/recipes/moving-shapes.yaml").gate
    asked = gate.model_copy(update={"metrics": {"travel": gate.metrics["travel"]}})
    for how in ("", "constant", "stops", "slow"):
        scores = Scores(Evaluation(bootstrap=50))
        made = broken(real, how)
        judging._travel(scores, made, captions, real)
        record = EvaluationRecord(
            evaluation_set="", judge=None, metrics=scores.metrics, outcomes={}
        )
        assert gated(asked, record, None).passed == (not how), how
        assert clip_metrics.jerk(made).mean() < gate.metrics["jerk"].at_most


def test_real_clips_are_compared_at_the_rate_of_drawn_ones() -> None:
    """Nine frames at the data's own rate are the first nine of 17, and not each second one, which goes twice as far."""
    pipeline = pinned({"up": VideoUpsampler(VideoUpsampler.presets["tiny"])})
    for rate, step in ((None, 1), (8.0, 1), (4.0, 2)):
        assert judging.each_of(8.0, pipeline.model_copy(update={"frame_rate": rate})) == step
    frames = torch.arange(17.0)[None, :, None, None, None]
    assert judging.as_long(frames, 9, 1).flatten().tolist() == [*range(9)]
    assert judging.as_long(frames, 5, 2).flatten().tolist() == [*range(0, 9, 2)]


class Straight(Interpolation):
    """Puts between two frames what lies on a straight line between them."""

    def sample(self, request: Any) -> Tensor:
        given = request.given["half" if "half" in request.given else "start"]
        frames = self.config.frames
        if "start" in request.given:
            return given[:, -1:].expand(-1, frames, -1, -1, -1)
        made = given.repeat_interleave(2, 1)[:, :frames].clone()
        made[:, 1::2] = (given[:, :-1] + given[:, 1:]) / 2
        return made


class Nearest(Straight):
    """Copies the neighbour."""

    def sample(self, request: Any) -> Tensor:
        given: Tensor = request.given["half"]
        return given.repeat_interleave(2, 1)[:, : self.config.frames]


class Blocks(VideoUpsampler):
    """Repeats each pixel."""

    def sample(self, request: Any) -> Tensor:
        low: Tensor = request.given["low"]
        return low.repeat_interleave(2, 3).repeat_interleave(2, 4)


def between(kind: type[Interpolation]) -> Interpolation:
    config = replace(Interpolation.presets["tiny"], image_size=SIDE, frames=FRAMES, text="none")
    return kind(config)


def test_a_stage_is_measured_against_the_plain_guess(prepared: Path) -> None:
    made, captions, _ = clips(prepared, "test")
    upsampler = replace(
        VideoUpsampler.presets["tiny"], image_size=SIDE, low_size=8, frames=FRAMES, text="none"
    )
    models = {"line": between(Straight), "copy": between(Nearest), "up": Blocks(upsampler)}
    found = scored(prepared, None, made, captions, models).metrics
    assert found["line_gain_db"].value == pytest.approx(0, abs=1e-3)
    assert found["line_gain_ssim"].value == pytest.approx(0, abs=1e-4)
    assert found["copy_gain_db"].high < -0.5
    assert found["copy_gain_ssim"].high < 0
    assert found["up_gain_db"].high < 0
    data = {"modality": "clip", "name": "moved", "frames": FRAMES, "attributes": {}}
    able = {name: Able.surely(model) for name, model in models.items()}
    told = measured({**data, "held_out": []}, able, judged=False, prompted=True, seeds=1)
    sure = {name for name, why in told.items() if not why}
    assert sure - set(found) == {"seconds_per_sample", "cpu_seconds_per_sample"}
    assert not {name for name in found if name not in told}


def test_a_prediction_goes_on_until_there_are_ten_frames_more(tmp_path: Path) -> None:
    entry = {"maker": "moving", "count": 96, "image_size": SIDE, "frames": 20}
    prepared = prepare(tmp_path, entry, "long")
    config = replace(Interpolation.presets["tiny"], image_size=SIDE, frames=9, text="none")
    found = scored(
        prepared,
        None,
        clips(prepared, "test")[0],
        clips(prepared, "test")[1],
        {"on": Straight(config)},
    ).metrics
    real = clips(prepared, "test")[0]
    stands = real[:, 9:10].expand(-1, 10, -1, -1, -1)
    error = (stands - real[:, 10:]).square().sum((2, 3, 4)).mean()
    assert found["on_prediction_mse"].value == pytest.approx(float(error), rel=1e-4)
    assert 0 < found["on_prediction_ssim"].value < 1


def test_a_predictor_that_sees_more_frames_than_are_given_is_told_so_and_judged_without(
    tmp_path: Path,
) -> None:
    held = prepare(
        tmp_path, {"maker": "moving", "count": 32, "image_size": SIDE, "frames": 21}, "long"
    )
    config = replace(Interpolation.presets["tiny"], image_size=SIDE, frames=21, text="none")
    found = scored(held, None, *clips(held, "test")[:2], {"on": Straight(config)}).metrics
    assert not {name for name in found if "prediction" in name}
    able = {"on": Able.surely(Straight(config))}
    data = {"modality": "clip", "name": "long", "frames": 21, "attributes": {}, "held_out": []}
    told = measured(data, able, judged=False, prompted=True, seeds=1)
    assert told["on_prediction_mse"] == (
        "it goes on from 11 frames, and 10 are given: config.frames must be at most 19"
    )


def test_frames_that_show_nothing_of_what_is_said_are_not_found_right() -> None:
    """Where all that captions say moves: of no attribute whatever is drawn would be as asked."""
    ways = ("left", "right")
    config = replace(ClipJudge.presets["tiny"], attributes=(("direction", ways),))
    scores, made = Scores(Evaluation(bootstrap=20)), torch.rand(4, 3, 1, 8, 8)
    facts = {"attributes": {"direction": ways}, "held_out": []}
    judging.by_judge(scores, ClipJudge(config).eval(), made, ways * 2, facts)
    assert {"alignment", "alignment_direction"} == scores.metrics.keys()
    data = {"modality": "clip", "name": "ways", "frames": 3, "moving": ["direction"], **facts}
    told = measured(data, {}, judged=True, prompted=True, seeds=1)
    for name in ("constancy", "frame_alignment"):
        assert told[name] == "no single frame of ways shows what its caption says"
    assert not told["alignment_direction"]


def test_clips_are_judged_by_their_own_module() -> None:
    assert module_of("clip", ROOT) is judging


def test_a_judge_of_pictures_is_refused_where_clips_come_out() -> None:
    path = ROOT / "flows/recipes/moving-shapes.yaml"
    asked = "judge={family: attribute-judge, training: {steps: 1}}"
    with pytest.raises(
        RecipeError, match="attribute-judge sees images, and clips come out: take clip-judge"
    ):
        check(load(path, [asked]), ROOT)


def test_a_family_of_pictures_is_measured_on_frames_from_the_whole_of_clips() -> None:
    """It learned any of them, and those in the middle lie nearer to one another."""
    model: Any = tiny("unclip-decoder")
    stage = PinnedStage(stage="pictures", name="p", version=0, sha256="", family="unclip-decoder")
    real = torch.arange(4.0)[None, :, None, None, None].expand(6, 4, 3, 8, 8)
    shown = judging.beside(stage, {"pictures": model}, real, ())["pixels"]
    assert shown[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 0, 1]
