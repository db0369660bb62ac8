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
from flows.recipes.loader import load
from models import configure, trainable
from models.family import Family
from models.judges import metrics
from models.request import Request

RECIPES = Path(__file__).parents[2] / "flows" / "recipes"


DRAWN = 64


def judged(
    recipe_name: str, steps: int, *overrides: str
) -> tuple[float, GateReport, dict[str, GateReport]]:
    """Train the recipe's stage for so many steps on 1500 digits.

    Returns the nats of 297 others, what its gate says of them and of its samples, and of broken samplers' by name.
    """
    recipe = load(RECIPES / f"{recipe_name}.yaml", overrides)
    ((name, stage),) = recipe.stages.items()
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
    model.eval()
    told = captions[:DRAWN] if tokens is not None else []
    with torch.no_grad():
        drawn = model.sample(Request(seeds=tuple(range(DRAWN)), prompts=tuple(told)))
    reports = {}
    for sampler, samples in {"honest": drawn, **broken(drawn, pixels[297:])}.items():
        kept = scores.Scores(EvaluationSpec(bootstrap=50))
        rated = scores.rated(model, {"pixels": pixels[:297]}, captions[:297])
        nats = scores.likelihood(kept, model, name, rated)
        own = scores.nats_of(model, scores.rated(model, {"pixels": samples}, told))
        scores.gap(kept, f"{name}_sample_gap", own, nats)
        kept.mean("distinct", metrics.distinct(samples, pixels[:DRAWN]))
        asked = (f"{name}_nats", f"{name}_sample_gap", "distinct")
        bounds = {one: recipe.gate.metrics[one] for one in asked}
        record = Evaluation(evaluation_set="", judge=None, metrics=kept.metrics, outcomes={})
        reports[sampler] = check(recipe.gate.model_copy(update={"metrics": bounds}), record, None)
    return float(nats.mean()), reports.pop("honest"), reports


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


def learning(rate: float, rows: int = 32) -> tuple[str, ...]:
    """Return settings that come as far as a recipe's own, by half the work."""
    return f"training.batch_size={rows}", f"training.optimizers.model.learning_rate={rate}"


@pytest.mark.parametrize(
    ("recipe", "stage", "steps", "changes", "nothing_learned"),
    [
        ("digits-made", "made", (2000, 1000), (), 25.3),
        ("digits-nade", "nade", (1000, 500), learning(0.008, 64), 25.3),
        pytest.param(
            "digits-pixelrnn", "pixelrnn", (250, 50), learning(0.012), 25.3, marks=pytest.mark.slow
        ),
        ("digits-pixelcnn", "digits", (200, 100), learning(0.006), 107.8),
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
    nats, report, others = judged(recipe, steps[0], *overrides)
    assert report.passed, report.refusal()
    assert nats < 0.8 * nothing_learned
    for sampler in ("pixels by themselves", "columns for rows"):
        assert "_sample_gap" in others[sampler].refusal(), sampler
    assert "distinct 0 " in others["one picture"].refusal()
    leaking, refused, _ = judged(recipe, steps[1], *overrides, f"stages.{stage}.config.mask=B")
    assert leaking < nats / 2
    assert "_nats" in refused.refusal()
    assert "is below" in refused.refusal()
