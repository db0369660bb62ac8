"""The gates of the exact densities: an honest network passes; pixels that see themselves, and a sampler that draws
something else than the likelihood says, are refused.
"""

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from data.makers import DIGITS
from flows.evaluating import scores
from flows.evaluating.gate import Evaluation, GateReport, check
from flows.recipe import Evaluation as EvaluationSpec
from flows.recipe import Recipe
from flows.recipes.loader import load
from models import configure, trainable
from models.family import Family
from models.judges import metrics
from models.request import Request

RECIPES = Path(__file__).parents[2] / "flows" / "recipes"


DRAWN = 64


Learned = tuple[Recipe, Family, Tensor, list[str]]


def learned(recipe_name: str, steps: int, *overrides: str) -> Learned:
    """Train the recipe's stage for so many steps on 1500 digits; the first 297 of what is returned are others."""
    recipe = load(RECIPES / f"{recipe_name}.yaml", overrides)
    (stage,) = recipe.stages.values()
    found = load_digits()
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    pixels = torch.from_numpy(found.images).float()[order, None] / 16
    captions = [DIGITS[found.target[place]] for place in order]
    facts = {"image_size": 8, "channels": 1, "vocabulary": tuple(sorted(DIGITS)), "max_words": 1}
    torch.manual_seed(recipe.seed)
    model = trainable(stage.family)(configure(stage.family, stage.preset, stage.config, facts))
    assert isinstance(model, Family)
    rules = stage.training.optimizers["model"]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        rules.learning_rate,
        rules.betas,
        weight_decay=rules.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    tokens = model.encode(captions)
    for _ in range(steps):
        rows = 297 + torch.randint(len(pixels) - 297, (stage.training.batch_size,))
        batch = {"pixels": pixels[rows]} | ({} if tokens is None else {"tokens": tokens[rows]})
        optimizer.zero_grad()
        model(batch).total.backward()
        optimizer.step()
        schedule.step()
    return recipe, model.eval(), pixels, captions


def judged(found: Learned) -> tuple[Tensor, GateReport]:
    """Return the nats of each of the 297 others, and what the recipe's gate says of them."""
    recipe, model, pixels, captions = found
    (name,) = recipe.stages
    kept = scores.Scores(EvaluationSpec(bootstrap=50))
    rated = scores.rated(model, {"pixels": pixels[:297]}, captions[:297])
    nats = scores.likelihood(kept, model, name, rated)
    return nats, asked(recipe, kept, f"{name}_nats")


def judged_samples(found: Learned, nats: Tensor) -> dict[str, GateReport]:
    """Return what the gate says of the network's samples, and of broken samplers', by name."""
    recipe, model, pixels, captions = found
    (name,) = recipe.stages
    told = captions[:DRAWN] if model.encode(captions[:1]) is not None else []
    with torch.no_grad():
        drawn = model.sample(Request(seeds=tuple(range(DRAWN)), prompts=tuple(told)))
    reports = {}
    for sampler, samples in {"honest": drawn, **broken(drawn, pixels[297:])}.items():
        kept = scores.Scores(EvaluationSpec(bootstrap=50))
        own = scores.nats_of(model, scores.rated(model, {"pixels": samples}, told))
        scores.gap(kept, f"{name}_sample_gap", own, nats)
        kept.mean("distinct", metrics.distinct(samples, pixels[:DRAWN]))
        reports[sampler] = asked(recipe, kept, f"{name}_sample_gap", "distinct")
    return reports


def asked(recipe: Recipe, kept: scores.Scores, *names: str) -> GateReport:
    """Return what the recipe's gate says of these metrics alone."""
    bounds = {one: recipe.gate.metrics[one] for one in names}
    record = Evaluation(evaluation_set="", judge=None, metrics=kept.metrics, outcomes={})
    return check(recipe.gate.model_copy(update={"metrics": bounds}), record, None)


def broken(drawn: Tensor, learned: Tensor) -> dict[str, Tensor]:
    """Samples that a right likelihood does not tell about: every pixel by itself, in another order, or always one."""
    generator = torch.Generator().manual_seed(0)
    alone = torch.stack(
        [
            learned[torch.randint(len(learned), (len(drawn),), generator=generator), 0, row, column]
            for row in range(8)
            for column in range(8)
        ],
        dim=1,
    )
    return {
        "pixels by themselves": alone.view_as(drawn),
        "columns for rows": drawn.transpose(2, 3),
        "one picture": drawn[:1].expand_as(drawn),
    }


SMALLER = ("config.width=24", "config.head=32", "config.layers=3")


def learning(rate: float, rows: int = 32) -> tuple[str, ...]:
    """Return settings that come as far as a recipe's own, by half the work."""
    return f"training.batch_size={rows}", f"training.optimizers.model.learning_rate={rate}"


@pytest.mark.parametrize(
    ("recipe", "stage", "steps", "changes", "nothing_learned"),
    [
        ("digits-made", "made", (800, 350), learning(0.02, 64), 25.3),
        ("digits-nade", "nade", (500, 200), learning(0.015, 64), 25.3),
        pytest.param(
            *("digits-pixelrnn", "pixelrnn", (250, 20), (*learning(0.015), "config.state=24")),
            25.3,
            marks=pytest.mark.slow,
        ),
        ("digits-pixelcnn", "digits", (200, 120), (*learning(0.01), *SMALLER), 107.8),
    ],
)
def test_an_honest_density_passes_and_a_leak_is_refused_from_below(
    recipe: str,
    stage: str,
    steps: tuple[int, int],
    changes: tuple[str, ...],
    nothing_learned: float,
) -> None:
    """`nothing_learned` are the nats of pixels that do not depend on one another, counted one by one.

    `steps` are of the honest one and of the leak, which learns to see itself sooner.
    """
    overrides = [f"stages.{stage}.{change}" for change in changes]
    found = learned(recipe, steps[0], *overrides)
    nats, report = judged(found)
    assert report.passed, report.refusal()
    assert nats.mean() < 0.8 * nothing_learned
    samplers = judged_samples(found, nats)
    assert samplers["honest"].passed, samplers["honest"].refusal()
    for sampler in ("pixels by themselves", "columns for rows"):
        assert "_sample_gap" in samplers[sampler].refusal(), sampler
    assert "distinct 0 " in samplers["one picture"].refusal()
    leak = learned(recipe, steps[1], *overrides, f"stages.{stage}.config.mask=B")
    leaking, refused = judged(leak)
    assert leaking.mean() < nats.mean() / 2
    assert "_nats" in refused.refusal()
    assert "is below" in refused.refusal()
