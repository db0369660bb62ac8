"""Sheets of a pipeline's stages and of all families: what stands on them, and whose it is."""

from pathlib import Path

import pytest
import torch
import typer

from flows import context
from flows.cli.request_verbs import vary
from flows.cli.terminal import kind_of_file
from flows.comparing.compare import side
from flows.comparing.gallery import by_family, drawn, prompts_of
from flows.evaluating.pipeline import draw, load_model
from flows.reports.stages import Row, by_stages, moving, table
from infra.pipelines import Pipeline
from tests.flows.versions_kit import NAME, PROMPT, Installation


def test_a_family_is_shown_by_what_is_in_production_before_what_is_newer(
    here: Installation,
) -> None:
    context.promotions.cache_clear()
    first = here.pipeline(0)
    here.promote(first)
    here.pipeline(1)
    assert {family: one.version.ref for family, one in by_family().items()} == {"ddpm": f"{NAME}:1"}


def test_every_stage_is_shown_and_the_last_is_what_the_pipeline_draws(here: Installation) -> None:
    one = side(here.pipeline(0).ref)
    made = drawn(one, [PROMPT] * 2, [3, 4])
    assert list(made) == ["base", "upscaler"]
    models = [
        load_model(here.registry.fetch(stage.name, stage.version, digest=stage.sha256))
        for stage in one.pipeline.stages
    ]
    assert torch.equal(made["upscaler"], draw(models, one.pipeline, [PROMPT] * 2, [3, 4]))
    sheet = by_stages(one.pipeline, [PROMPT, "another"], made)
    plain = by_stages(one.pipeline, [PROMPT, "another"], {"upscaler": made["upscaler"]})
    assert sheet.height > plain.height
    assert sheet.width == plain.width
    assert prompts_of(one, 5) == [one.pipeline.try_prompts[i % 2] for i in range(5)]


def test_codes_and_latents_can_be_looked_at_and_embeddings_are_left_out() -> None:
    stage = {"version": 1, "sha256": "0" * 64, "family": "x"}
    outputs = {"a": "codes 16 of ab", "b": "latent 4x2x2 of cd", "c": "embedding 3 of ef"}
    pipeline = Pipeline.model_validate(
        {
            "endpoint": "x",
            "stages": [
                {"stage": name, "name": f"x.{name}", "outputs": {"out": port}, **stage}
                for name, port in outputs.items()
            ],
            "entrances": {
                "generate": {
                    "nodes": {name: {"stage": name, "wires": {}} for name in outputs},
                    "output": "c.out",
                }
            },
        }
    )
    made = {
        "a": torch.arange(32).reshape(2, 16),
        "b": torch.randn(2, 4, 2, 2),
        "c": torch.randn(2, 3),
    }
    two = by_stages(pipeline, ["one", "two"], made)
    assert two.size == by_stages(pipeline, ["one", "two"], {k: made[k] for k in "ab"}).size


def test_a_gallery_needs_something_to_show() -> None:
    with pytest.raises(ValueError, match="needs a row"):
        table([])
    one, two = (table([Row("x", [torch.rand(1, 8, 8)] * count)]) for count in (1, 2))
    assert one.height == two.height
    assert one.width < two.width


def test_a_sheet_of_clips_moves_and_keeps_pictures_still() -> None:
    stage = {"version": 1, "sha256": "0" * 64, "family": "x"}
    outputs = {
        "a": "pixels 3x8x8",
        "z": "latent 3x4x2x2 of ae",
        "b": "clip 3x3x8x8",
        "c": "clip 5x3x8x8",
    }
    pipeline = Pipeline.model_validate(
        {
            "endpoint": "x",
            "modality": "clip",
            "stages": [
                {"stage": name, "name": f"x.{name}", "outputs": {"out": port}, **stage}
                for name, port in outputs.items()
            ],
            "entrances": {
                "generate": {
                    "nodes": {name: {"stage": name, "wires": {}} for name in outputs},
                    "output": "c.out",
                }
            },
        }
    )
    grey = torch.linspace(0, 1, 5)[None, :, None, None, None].expand(1, 5, 3, 8, 8)
    latents = torch.randn(1, 3, 4, 2, 2)
    made = {"a": torch.rand(1, 3, 8, 8), "z": latents, "b": grey[:, ::2], "c": grey}
    frames = moving(pipeline, ["one"], made)
    assert len(frames) == 5
    left, step = frames.shape[2] - 60, (frames.shape[1] - 52) // 4
    middles = [52 + step // 2 + row * step for row in range(4)]
    assert len({frames[place, middles[0], left].tobytes() for place in range(5)}) == 1
    assert len({frames[place, middles[1], left].tobytes() for place in (0, 2, 4)}) == 3
    assert [int(frames[place, middles[2], left, 0]) for place in (0, 2, 4)] == [0, 128, 255]
    assert [int(frames[place, middles[3], left, 0]) for place in range(5)] == [0, 64, 128, 191, 255]


def test_a_sheet_of_volumes_turns_them_once_around() -> None:
    pipeline = Pipeline.model_validate(
        {
            "endpoint": "x",
            "modality": "mesh",
            "stages": [
                {
                    **{"stage": "a", "name": "x.a", "version": 1, "sha256": "0" * 64},
                    **{"family": "x", "outputs": {"volume": "volume 4x8x8x8"}},
                }
            ],
            "entrances": {
                "generate": {"nodes": {"a": {"stage": "a", "wires": {}}}, "output": "a.volume"}
            },
        }
    )
    halves = torch.ones(1, 4, 8, 8, 8)
    halves[0, 1:3, 4:] = 0  # red in front, white behind
    frames = moving(pipeline, ["one"], {"a": halves})
    middle = frames[:, 52 + 66, 150 + 66]
    assert len(frames) == 24
    assert middle[0, 0] > 2 * middle[0, 1]
    assert middle[12, 0] == middle[12, 1]
    assert frames[0].tobytes() != frames[23].tobytes()


def test_a_file_is_of_the_kind_that_its_name_says() -> None:
    assert kind_of_file(Path("x/y.WEBP"), "webp", "gif") == "webp"
    with pytest.raises(
        typer.BadParameter, match=r"--output a\.png: this is written as \.webp, \.gif"
    ):
        kind_of_file(Path("a.png"), "webp", "gif")
    with pytest.raises(typer.BadParameter, match=r"b\.jpg: this is written as \.png"):
        vary("shapes", Path("a.png"), Path("b.jpg"))
