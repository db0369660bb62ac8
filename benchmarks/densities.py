"""Test nats on the fixed binarisation of MNIST against compute, the published figure beside them.

`python -m benchmarks.densities --data DIR [--recipes mnist-nade ...] [--cpu-seconds 300]`, where DIR is the prepared
dataset `binarized-mnist`, prints a row a recipe and budget. Each budget is a training of its own by the platform's loop
on one thread, annealed over the steps that the budget allows, which were timed before; all 10,000 test pictures are
measured, for the file is sorted by digit. Nats of a VAE are a bound: by 500 importance samples beside the ELBO.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch

from data.loaders import everything, read_header
from flows.judging.pipeline import load_model
from flows.recipe import Recipe, Resources, TrainingSpec, load
from flows.train import training_spec
from flows.training.ray_train import fit
from models.family import Family

RECIPES: Final = Path(__file__).parents[1] / "flows" / "recipes"
PUBLISHED: Final = {"nade": 88.33, "pixelcnn": 81.30, "pixelrnn": 79.20, "vae": 86.76}
TIMED: Final = 20  # steps that tell what one costs
SHARES: Final = (0.1, 0.3, 1.0)  # of the budget


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=["mnist-nade", "mnist-pixelcnn"])
    parser.add_argument("--cpu-seconds", type=float, default=300)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| recipe | steps | CPU-s | test nats | published |\n|---|---|---|---|---|")
    for name in given.recipes:
        recipe = load(RECIPES / f"{name}.yaml")
        _, fixed = trained(recipe, given.data, 2)
        _, timed = trained(recipe, given.data, 2 + TIMED)
        cost = max(1e-6, timed - fixed) / TIMED
        for share in SHARES:
            steps = max(20, round(share * given.cpu_seconds / cost))
            model, seconds = trained(recipe, given.data, steps)
            (stage,) = recipe.stages.values()
            published = PUBLISHED[stage.family]
            nats = test_nats(model, given.data)
            print(f"| {name} | {steps} | {seconds:.0f} | {nats} | {published} |")
            sys.stdout.flush()


def trained(recipe: Recipe, prepared: Path, steps: int) -> tuple[Family, float]:
    """Return the recipe's only stage after so many steps, and the CPU-seconds of its training."""
    ((name, stage),) = recipe.stages.items()
    found = {"path": str(prepared.resolve()), "identity": read_header(prepared)["name"]}
    spec: TrainingSpec = training_spec(recipe, name, found)
    rules = stage.training.model_copy(update={"steps": steps, "checkpoint_every": steps})
    spec = spec.model_copy(update={"training": rules, "resources": Resources(num_workers=0)})
    with tempfile.TemporaryDirectory(prefix="atelier-densities-") as folder:
        began = time.process_time()
        made = fit(spec, run_id=None, tracking_uri=None, runs=Path(folder))
        seconds = time.process_time() - began
        return load_model(made.directory), seconds


@torch.no_grad()
def test_nats(model: Family, prepared: Path) -> str:
    """Return the mean negative log-likelihood of the whole test split, with a VAE's tighter bound behind it."""
    pixels, _, _ = everything(prepared, "test")
    torch.manual_seed(0)
    nats = -torch.cat([model.log_prob({"pixels": part}) for part in pixels.split(500)]).mean()
    able: Any = model
    if not hasattr(able, "iwae"):
        return f"{nats:.2f}"
    part = pixels[::5]  # the file is sorted by digit
    bound = -torch.cat([able.iwae({"pixels": rows}, 500) for rows in part.split(50)]).mean()
    return f"{nats:.2f} (ELBO), {bound:.2f} (IWAE, every 5th)"


if __name__ == "__main__":
    main()
