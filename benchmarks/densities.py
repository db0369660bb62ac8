"""Test nats on the fixed binarisation of MNIST against compute, the published figure beside them.

`python -m benchmarks.densities [--recipes mnist-nade ...] [--seconds 300] [--shares 0.1 0.3 1]` prints a row a recipe
and share of the budget. Seconds are CPU-seconds of one thread, or a GPU machine's by the clock. Each is a training of
its own by the platform's loop on the recipe's prepared data, annealed over the steps that the budget allows, which were
timed before; all 10,000 test pictures of `binarized-mnist` are measured, for the file is sorted by digit. Nats of a VAE
are a bound: by importance samples beside the ELBO (as published: 5,000 codes a picture; on a CPU 500 of every 5th).
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch

from data.loaders import everything, read_header
from flows.evaluating.pipeline import load_model
from flows.identity.code import ROOT
from flows.recipe import Recipe, Resources
from flows.recipes.loader import load
from flows.training.ray_train import fit
from flows.training.specifying import training_spec
from models.family import Family

PUBLISHED: Final = {"nade": 88.33, "pixelcnn": 81.30, "pixelrnn": 79.20, "vae": 86.76}
TESTED: Final = "binarized-mnist"
DEVICE: Final = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU: Final = DEVICE.type == "cuda"
TIMED: Final = 20  # steps that tell what one costs, or so many times more that they last
LASTS: Final = 3.0  # seconds, beyond what a training has to do besides


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepared", type=Path, default=ROOT / "data" / "prepared")
    parser.add_argument("--recipes", nargs="+", default=["mnist-nade", "mnist-pixelcnn"])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    unit = "s" if ON_GPU else "CPU-s"
    print(
        f"| recipe | steps | epochs | {unit} | test nats | published |\n|---|---|---|---|---|---|"
    )
    for name in given.recipes:
        recipe = load(ROOT / "flows" / "recipes" / f"{name}.yaml")
        prepared = given.prepared / recipe.data.name
        cost = step_seconds(recipe, prepared)
        (stage,) = recipe.stages.values()
        rows = stage.training.batch_size / read_header(prepared)["splits"]["train"]["rows"]
        for share in given.shares:
            steps = max(20, round(share * given.seconds / cost))
            every = steps // 5 if stage.training.validate_every else None
            model, seconds = trained(recipe, prepared, steps, every)
            nats = test_nats(model.to(DEVICE), given.prepared / TESTED)
            published = PUBLISHED[stage.family]
            print(
                f"| {name} | {steps} | {steps * rows:.1f} | {seconds:.0f} | {nats} | {published} |"
            )
            sys.stdout.flush()


def step_seconds(recipe: Recipe, prepared: Path) -> float:
    """Return what one step of the recipe's stage costs, apart from beginning and ending a training."""
    trained(recipe, prepared, 2)  # what a process's first one alone has to do
    _, fixed = trained(recipe, prepared, 2)
    steps = TIMED
    while (more := trained(recipe, prepared, 2 + steps)[1] - fixed) < LASTS:
        steps *= 4
    return more / steps


def trained(
    recipe: Recipe, prepared: Path, steps: int, validate_every: int | None = None
) -> tuple[Family, float]:
    """Return the recipe's only stage after so many steps, and the seconds of its training."""
    ((name, stage),) = recipe.stages.items()
    found = {"path": str(prepared.resolve()), "identity": read_header(prepared)["name"]}
    spec = training_spec(recipe, name, found)
    changes: dict[str, Any] = {"steps": steps, "checkpoint_every": steps, "patience": None}
    changes |= {"validate_every": validate_every} | ({} if validate_every else {"keep": "last"})
    rules = stage.training.model_copy(update=changes)
    spec = spec.model_copy(update={"training": rules, "resources": Resources(num_workers=0)})
    clock = time.perf_counter if ON_GPU else time.process_time
    with tempfile.TemporaryDirectory(prefix="atelier-densities-") as folder:
        began = clock()
        made = fit(spec, run_id=None, tracking_uri=None, runs=Path(folder), on_validation=_told)
        return load_model(made.directory), clock() - began


def _told(step: int, loss: float) -> None:
    """Print a validation loss as soon as it is known, beside the table."""
    print(f"step {step}: {loss:.2f} nats on validation pictures", file=sys.stderr)


@torch.no_grad()
def test_nats(model: Family, prepared: Path) -> str:
    """Return the mean negative log-likelihood of the whole test split, with a VAE's tighter bound behind it."""
    pixels = everything(prepared, "test")[0].to(DEVICE)
    torch.manual_seed(0)
    nats = -torch.cat([model.log_prob({"pixels": part}) for part in pixels.split(500)]).mean()
    able: Any = model
    if not hasattr(able, "iwae"):
        return f"{nats:.2f}"
    every, codes, rows = (1, 5000, 10_000) if ON_GPU else (5, 500, 50)
    parts = pixels[::every].split(rows)
    bound = -torch.cat([able.iwae({"pixels": part}, codes) for part in parts]).mean()
    return f"{nats:.2f} (ELBO), {bound:.2f} (IWAE {codes})"


if __name__ == "__main__":
    main()
