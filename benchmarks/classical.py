"""LDA and naive Bayes beside scikit-learn's on the same split: test nats a picture, digits recognised, seconds to fit.

`python -m benchmarks.classical --data DIR`, where DIR is the prepared dataset `digits`, prints a row a recipe. Ours are
counted by the recipe's config from the training split; scikit-learn's are fitted to the same rows, and their nats are
-log sum_y p(x, y) of what they fitted: `predict_joint_log_proba` of BernoulliNB, and for LDA, which gives the posterior
alone, the Gaussians of its `means_`, `covariance_` and `priors_`.
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.naive_bayes import BernoulliNB

from data.loaders import everything, read_header
from flows.recipe import Stage
from flows.recipes.loader import load
from models import configure, trainable
from models.family import Family

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECIPES: Final = Path(__file__).parents[1] / "flows" / "recipes"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| recipe | side | test nats | recognised | CPU-s to fit |\n|---|---|---|---|---|")
    for name in ("digits-naive-bayes", "digits-lda"):
        (stage,) = load(RECIPES / f"{name}.yaml").stages.values()
        for side, fit in (("ours", ours), ("scikit-learn", theirs)):
            joint_NY, wanted_N, seconds = fit(stage, given.data)
            nats = -logsumexp(joint_NY, axis=1).mean()
            right = (joint_NY.argmax(1) == wanted_N).mean()
            print(f"| {name} | {side} | {nats:.4f} | {right:.4f} | {seconds:.3f} |")


def ours(stage: Stage, prepared: Path) -> tuple["NDArray[Any]", "NDArray[Any]", float]:
    """Return log p(x, y) (N, Y) of the test pictures by our model, each one's class, and what fitting cost."""
    facts = read_header(prepared)
    settings = configure(stage.family, stage.preset, stage.config, facts)
    model = trainable(stage.family)(settings)
    assert isinstance(model, Family)
    pixels, captions, _ = everything(prepared, "train")
    began = time.process_time()
    for number in range(len(model.sums)):
        model.absorb({"pixels": pixels, "tokens": model.encode(captions)}, number)  # type: ignore[dict-item]
        model.settle(number)
    seconds = time.process_time() - began
    pixels, captions, _ = everything(prepared, "test")
    tokens = model.encode(captions)
    assert tokens is not None
    able: Any = model
    return able.log_joint(pixels).numpy(), tokens[:, 0].numpy() - 1, seconds


def theirs(stage: Stage, prepared: Path) -> tuple["NDArray[Any]", "NDArray[Any]", float]:
    """Return the same three by scikit-learn's estimator with the same settings."""
    words = read_header(prepared)["vocabulary"]
    (x_ND, y_N), (rows_ND, wanted_N) = (
        (pixels.flatten(1).double().numpy(), np.array([words.index(one) for one in captions]))
        for pixels, captions, _ in (everything(prepared, split) for split in ("train", "test"))
    )
    began = time.process_time()
    if stage.family == "naive-bayes":
        bayes = BernoulliNB(alpha=stage.config["alpha"], binarize=0.5).fit(x_ND, y_N)
        seconds = time.process_time() - began
        return bayes.predict_joint_log_proba(rows_ND), wanted_N, seconds
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=stage.config["shrinkage"])
    lda.fit(x_ND, y_N)
    seconds = time.process_time() - began
    columns = [
        multivariate_normal(mean, lda.covariance_).logpdf(rows_ND) + np.log(prior)
        for mean, prior in zip(lda.means_, lda.priors_, strict=True)
    ]
    return np.stack(columns, 1), wanted_N, seconds


if __name__ == "__main__":
    main()
