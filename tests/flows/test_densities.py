"""The gates of the exact densities: an honest network passes, and one whose pixels see themselves is refused."""

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from data.makers import DIGITS
from flows.judging import scores
from flows.judging.gate import Evaluation, GateReport, check
from flows.recipe import Evaluation as EvaluationSpec
from flows.recipe import load
from models import configure, trainable
from models.family import Family

RECIPES = Path(__file__).parents[2] / "flows" / "recipes"


def judged(recipe_name: str, steps: int, *overrides: str) -> tuple[float, GateReport]:
    """Train the recipe's stage for so many steps on 1500 digits; nats of 297 others, and what its gate says of them."""
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
        model.parameters(), rules.learning_rate, rules.betas, weight_decay=rules.weight_decay
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
    kept = scores.Scores(EvaluationSpec(bootstrap=50))
    scores.likelihood(
        kept, model, name, scores.rated(model, {"pixels": pixels[:297]}, captions[:297])
    )
    metric = f"{name}_nats"
    gate = recipe.gate.model_copy(update={"metrics": {metric: recipe.gate.metrics[metric]}})
    record = Evaluation(evaluation_set="", judge=None, metrics=kept.metrics, outcomes={})
    return kept.metrics[metric].value, check(gate, record, None)


@pytest.mark.parametrize(
    ("recipe", "steps", "leak", "nothing_learned"),
    [
        ("digits-made", 2000, "stages.made.config.mask=B", 25.3),
        ("digits-nade", 1000, "stages.nade.config.mask=B", 25.3),
        pytest.param(
            *("digits-pixelrnn", 400, "stages.pixelrnn.config.mask=B", 25.3),
            marks=pytest.mark.slow,
        ),
        ("digits-pixelcnn", 250, "stages.digits.config.mask=B", 107.8),
    ],
)
def test_an_honest_density_passes_and_a_leak_is_refused_from_below(
    recipe: str, steps: int, leak: str, nothing_learned: float
) -> None:
    """`nothing_learned` are the nats of pixels that do not depend on one another, counted one by one."""
    nats, report = judged(recipe, steps)
    assert report.passed, report.refusal()
    assert nats < 0.8 * nothing_learned
    leaking, refused = judged(recipe, steps // 2, leak)
    assert leaking < nats / 2
    assert "is below" in refused.refusal()
