"""The recipes of moving shapes as graphs of networks that are small and know nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from data.makers.moving import CAPTIONS
from flows.evaluating.pipeline import check_fit, entrances_of, ports_of
from flows.recipe import Recipe, drawing
from flows.recipes.loader import load
from infra.pipelines import PinnedStage, Pipeline
from models import configure, trainable
from models.family import Family

RECIPES: Final = Path(__file__).parents[2] / "flows/recipes"
RECIPE: Final = load(RECIPES / "moving-shapes.yaml")
OF_LATENTS: Final = load(RECIPES / "moving-shapes-dit.yaml")
SMALL: Final = {"widths": (16, 24), "text_width": 16, "heads": 2, "width": 16, "hidden": (8, 8)}
SMALL_DIT: Final = {"widths": (16,), "blocks": 1, "text_width": 16, "heads": 2, "hidden": (8, 8)}


def small_cascade(
    sizes: Mapping[str, Any] = SMALL, steps: int | None = 2, recipe: Recipe = RECIPE, side: int = 64
) -> tuple[list[Family], Pipeline]:
    """A recipe's stages, untrained, in their graph: small and of few steps, or as it says where told {} and None.

    `side` is the dataset's, in pixels.
    """
    torch.manual_seed(0)
    vocabulary = tuple(sorted({word for caption in CAPTIONS for word in caption.split()}))
    facts: dict[str, Any] = {"vocabulary": vocabulary, "max_words": 6, "channels": 3}
    facts |= {"frames": 9, "frame_rate": 8.0}
    models: dict[str, Family] = {}
    for name, stage in drawing(recipe).items():
        cls = trainable(stage.family)
        known = {key: value for key, value in sizes.items() if hasattr(cls.presets["base"], key)}
        told = {**facts, "image_size": stage.image_size or side}
        for need in stage.needs.values():
            source, _, entry = need.partition("/")
            told |= models[source].entries[entry].facts
        model = cls(configure(stage.family, stage.preset, {**known, **stage.config}, told)).eval()
        assert isinstance(model, Family)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        models[name] = model

    def options(name: str, model: Family) -> dict[str, Any]:
        if steps is None:
            return recipe.stages[name].sampling
        return {"steps": steps} if "steps" in model.takes else {}

    stages = [
        PinnedStage(
            **{"stage": name, "name": name, "version": 0, "sha256": "", "family": ""},
            options=options(name, model),
            **ports_of(model),
        )
        for name, model in models.items()
    ]
    pipeline = Pipeline(endpoint=recipe.name, stages=stages, entrances=entrances_of(recipe, stages))
    check_fit(pipeline)
    return list(models.values()), pipeline
