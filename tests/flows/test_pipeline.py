import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from flows import evaluation
from flows.evaluating.pictures import fixed_requests, wanted_attributes
from flows.evaluating.pipeline import (
    StageMismatch,
    check_fit,
    check_interfaces,
    check_passes,
    draw,
    interface_hash,
    ports_of,
)
from flows.evaluating.speed import cost_per_sample
from flows.recipe import Evaluation
from flows.recipes.loader import load
from infra.pipelines import Entrance, Node, PinnedStage, Pipeline
from models import describe
from models.diffusion.ddpm import DDPM
from models.variational.kl_autoencoder import KLAutoencoder

TINY = DDPM.presets["tiny"]
WORDS = ("red", "square")


def model(**changes: object) -> DDPM:
    torch.manual_seed(0)
    return DDPM(dataclasses.replace(TINY, **changes)).eval()


def pinned(stage: str, of: DDPM, **changes: object) -> PinnedStage:
    values = {
        "stage": stage, "name": f"toy.{stage}", "version": 1, "sha256": "0" * 64, "family": "ddpm",
        **ports_of(of), "steps": 2, "guidance": 1.0,
    }  # fmt: skip
    return PinnedStage.model_validate({**values, **changes})


BASE = model(vocabulary=WORDS)
UPSAMPLER = model(image_size=16, low_size=8, text="none", attention=0)


def piped(*stages: PinnedStage) -> Pipeline:
    return Pipeline(endpoint="toy", stages=stages, image_size=(16, 16))


CASCADE = piped(pinned("base", BASE), pinned("upsampler", UPSAMPLER))


def test_what_a_stage_accepts_and_gives_follows_from_its_config() -> None:
    kept = {"image": "pixels? 3x8x8", "mask": "mask? 1x8x8"}
    assert pinned("base", BASE).inputs == {"text": "text?", **kept}
    assert pinned("base", BASE).outputs == {"pixels": "pixels 3x8x8"}
    assert pinned("upsampler", UPSAMPLER).inputs["low"] == "pixels 3x8x8"
    assert "text" not in pinned("upsampler", UPSAMPLER).inputs


def test_stages_that_do_not_fit_are_refused_by_naming_both() -> None:
    other = pinned("upsampler", model(image_size=32, low_size=16, text="none", attention=0))
    with pytest.raises(
        StageMismatch,
        match=r"upsampler takes pixels 3x16x16 as low, but base.pixels is pixels 3x8x8",
    ):
        check_fit(piped(pinned("base", BASE), other))
    with pytest.raises(StageMismatch, match="as low from nothing, but there is nothing yet"):
        check_fit(piped(other))
    check_fit(CASCADE)


def test_a_cascade_draws_upscaled_pictures_that_a_seed_fixes() -> None:
    prompts = ["red square", "red red", "square"]
    first = draw([BASE, UPSAMPLER], CASCADE, prompts, [1, 2, 3])
    assert first.shape == (3, 3, 16, 16)
    assert first.isfinite().all()
    again = draw([BASE, UPSAMPLER], CASCADE, prompts, [1, 2, 3], rows_at_once=2)
    torch.testing.assert_close(first, again, atol=1e-4, rtol=0)
    other = draw([BASE, UPSAMPLER], CASCADE, prompts, [4, 5, 6])
    assert (first - other).abs().max() > 0.05


def test_every_caption_is_asked_with_every_seed_in_a_fixed_order() -> None:
    pipeline = Pipeline(
        endpoint="toy", stages=(pinned("base", BASE),), vocabulary=WORDS, image_size=(8, 8)
    )
    captions = ["red square", "square"]
    prompts, seeds = fixed_requests(pipeline, captions, Evaluation(seeds=(0, 1)))
    assert prompts == ["red square", "square"] * 2
    assert len(set(seeds)) == 4
    assert fixed_requests(pipeline, captions, Evaluation(seeds=(0, 1))) == (prompts, seeds)


def test_a_prompt_asks_for_one_value_of_each_attribute() -> None:
    attributes = {"size": ["small", "large"], "colour": ["red", "blue"]}
    wanted = wanted_attributes(["a large red dot", "a small blue dot"], attributes)
    assert wanted.tolist() == [[1, 0], [0, 1]]
    foods = {"food": ["dog", "hot dog", "hot"]}
    asked = ["hot dog", "a hot dog", "dog", "a Dog, please"]
    assert wanted_attributes(asked, foods).tolist() == [[1], [1], [0], [0]]
    with pytest.raises(ValueError, match="'a cat' names no food"):
        wanted_attributes(["a cat"], foods)


def test_a_stage_s_interface_is_what_its_neighbours_rely_on(tmp_path: Path) -> None:
    other_words = interface_hash(model(vocabulary=("blue",)))
    wider = interface_hash(model(vocabulary=WORDS, widths=(32, 48)))
    here = interface_hash(BASE)
    assert here == wider, "what is inside a stage is its own affair"
    assert len({here, other_words, interface_hash(UPSAMPLER)}) == 3
    (tmp_path / "config.json").write_text(json.dumps(describe(BASE)))
    check_interfaces([(pinned("base", BASE, interface=here), [tmp_path])])
    check_interfaces([(pinned("base", BASE), [tmp_path])])
    with pytest.raises(StageMismatch, match=rf"toy\.base:1 has interface {here}, but .* pins"):
        check_interfaces([(pinned("base", BASE, interface=other_words), [tmp_path])])


def test_an_entry_that_a_family_has_gained_is_nothing_to_a_pin_of_before(tmp_path: Path) -> None:
    network = KLAutoencoder(KLAutoencoder.presets["tiny"])
    (tmp_path / "config.json").write_text(json.dumps(describe(network)))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    now = ports_of(network)["entries"]
    then = {name: now[name] for name in ("encode", "decode")}  # clips came later
    old, new = interface_hash(network, then), interface_hash(network)
    assert old != new
    check_interfaces([(pinned("ae", network, interface=old, entries=then), [tmp_path])])
    with pytest.raises(StageMismatch, match="judge the pipeline anew"):
        check_interfaces([(pinned("ae", network, interface=old), [tmp_path])])


def test_a_picture_s_cost_grows_with_its_steps() -> None:
    few, many = (
        cost_per_sample([BASE], piped(pinned("base", BASE, steps=steps)), ["red square"])
        for steps in (2, 60)
    )
    for name in ("seconds_per_sample", "cpu_seconds_per_sample"):
        assert few[name].low <= few[name].value <= few[name].high
        assert few[name].count == 9
    assert many["cpu_seconds_per_sample"].value > few["cpu_seconds_per_sample"].value


def test_a_stage_alone_cannot_be_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = SimpleNamespace(ref="toy.base:1", name="toy.base")
    registry = SimpleNamespace(get=lambda _: version, fetch=lambda _: tmp_path)
    monkeypatch.setattr(evaluation, "registry", lambda: registry)
    with pytest.raises(ValueError, match=r"toy\.base:1 is a stage, .*evaluate 'toy'"):
        evaluation.evaluate.fn("toy.base")


def extending(*nodes: str) -> Entrance:
    """Return an entrance whose nodes go on from one another."""
    wired = {
        name: Node(stage=name.partition("#")[0], entry="", wires={"start": source}, salt="")
        for name, source in zip(nodes, ("request.clip", "up.frames", "up#on.frames"), strict=False)
    }
    return Entrance(nodes=wired, output=f"{nodes[-1]}.frames")


def test_what_goes_on_from_half_of_a_clip_does_so_twice_or_frames_would_come_out_again() -> None:
    check_passes(extending("up", "up#on"))
    for nodes in (("up",), ("up", "up#on", "up#more")):
        with pytest.raises(StageMismatch, match=f"extend: up goes on .* twice.* got {len(nodes)}"):
            check_passes(extending(*nodes))


def test_every_recipe_that_extends_clips_goes_on_twice() -> None:
    seen = []
    for path in sorted(Path("flows/recipes").glob("*.yaml")):
        wires = (load(path).pipeline or {}).get("extend")
        if wires is not None:
            seen.append(path.stem)
            nodes = {
                name: Node(stage=name.partition("#")[0], entry="", wires=dict(of), salt="")
                for name, of in wires.items()
                if "/" not in name
            }
            check_passes(Entrance(nodes=nodes, output="frames.frames"))
    assert {"moving-mnist", "moving-shapes", "moving-shapes-dit"} <= set(seen)
