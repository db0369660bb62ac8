"""Numbers about generated pictures: pure functions of tensors, each of which a broken model fails.

Shape letters: N, M, K samples, A attributes, F features, D numbers a sample. Distances are Euclidean. Nothing here
draws random numbers but the bootstrap, which is seeded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from models.judges import LEAST_HELD_OUT

CHUNK: Final = 512  # rows of a distance matrix at a time
PEAK_DB: Final = 100.0  # PSNR of equal pictures; their error is 0
MOST_HELD_OUT: Final = 1000  # more make it slower, not surer


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic and the ends of its percentile bootstrap interval."""

    value: float
    low: float
    high: float


def alignment(predicted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return which samples have every attribute right (N,) and which attributes are right (N, A), as bools.

    Raises:
        ValueError: the two are not of one shape (N, A).
    """
    if predicted.shape != wanted.shape or predicted.dim() != 2:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and wanted {tuple(wanted.shape)} "
            "must have one shape (samples, attributes)"
        )
    right_NA = predicted == wanted.to(predicted.device)
    return right_NA.all(1), right_NA


def least_share(predicted: Tensor, classes: int) -> float:
    """Return the share of the rarest of `classes` among predictions (N,) int64; 0 where one is never seen.

    A sampler that has lost a mode can fool every measure of single pictures, but not this one.

    Raises:
        ValueError: no predictions.
    """
    if not len(predicted):
        raise ValueError("the share of a class needs at least 1 prediction, got 0")
    return float(predicted.bincount(minlength=classes).min()) / len(predicted)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Return `fd_judge`, the Fréchet distance between Gaussians fitted to features (N, F) and (M, F).

    |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), Dowson & Landau 1982. The trace of the root is taken from
    the symmetric C_a^(1/2) C_b C_a^(1/2), which has the same eigenvalues, so singular covariances (dead features, few
    samples) do no harm. It grows as samples get fewer: compare at equal N. It is not FID, which is defined by the
    features of another network.

    Raises:
        ValueError: fewer than 2 samples, different widths, or features that are not finite.
    """
    a_ND, b_MD = _pair(features_a.double(), features_b.double(), least=2)
    cov_a, cov_b = _covariance(a_ND), _covariance(b_MD)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root_a @ cov_b @ root_a
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    shift = (a_ND.mean(0) - b_MD.mean(0)).square().sum()
    return max(0.0, float(shift + cov_a.trace() + cov_b.trace() - 2 * cross))


def precision_recall(
    real_features: Tensor, fake_features: Tensor, k: int = 5
) -> tuple[Tensor, Tensor]:
    """Return which fakes (N,) and which real samples (M,) are covered (Kynkäänniemi et al. 2019, arXiv:1904.06991).

    A fake is covered when it lies no further from some real sample than that one's k-th nearest real neighbour;
    precision (eq. 1 and 2) is the share of those. Recall is the same with the sets exchanged. Compare at equal N and k.

    Raises:
        ValueError: k below 1, k or fewer samples in a set, different widths, or features that are not finite.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    real, fake = _pair(real_features.float(), fake_features.float(), least=k + 1)
    return _covered(fake, real, k), _covered(real, fake, k)


def memorisation(
    generated: Tensor, train: Tensor, held_out: Tensor, chance: float = 0.05
) -> Tensor:
    """Return which generated pictures (N,) stand as near to a training picture as hardly any unseen one does.

    Three samples are compared, as by Meehan et al. 2020 (arXiv:2004.05675): generated, learned from, and held out.
    A picture x counts when d(x, train) / d(x, held_out) is below the `chance` quantile of the same ratio over held-out
    pictures, each of which is left out of its own reference; d is the distance to the nearest neighbour over all
    pixels. The ratio keeps soft or plain pictures, which are near to everything, from counting as copies. So an
    honest sampler scores about `chance`, and one that returns training pictures scores 1.

    Args:
        generated: (N, ...) pixels.
        train: (M, ...) pictures that were learned from.
        held_out: (K, ...) pictures of the same distribution that were not, 20 or more.
        chance: the share of unseen pictures that may count.

    Raises:
        ValueError: too few held-out pictures, pictures of different sizes, pixels that are not finite, a chance outside
            (0, 1), or so many held-out pictures copied from the training ones that copies cannot be told.
    """
    if not 0 < chance < 1:
        raise ValueError(f"chance must be between 0 and 1, got {chance}")
    generated_ND, train_MD = _pair(generated.flatten(1).float(), train.flatten(1).float(), least=1)
    _, held_KD = _pair(generated_ND, held_out.flatten(1).float(), least=1)
    if len(held_KD) < LEAST_HELD_OUT:
        raise ValueError(
            f"memorisation needs at least {LEAST_HELD_OUT} held-out pictures, got {len(held_KD)}"
        )
    held_KD = held_KD[:: -(-len(held_KD) // MOST_HELD_OUT)]
    own_K = torch.arange(len(held_KD), device=held_KD.device)
    honest_K = _ratio(_nearest(held_KD, train_MD), _nearest(held_KD, held_KD, own_K))
    limit = honest_K.quantile(chance)
    if limit <= 0:
        raise ValueError(
            f"over {chance:.0%} of the held-out pictures are also training pictures: "
            "hold out others, or no copy can be told from chance"
        )
    ratio_N = _ratio(_nearest(generated_ND, train_MD), _nearest(generated_ND, held_KD))
    return ratio_N < limit


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio (N,) in dB of pictures (N, ...) in [0, 1]; at most 100, for equal ones.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"pictures of shapes {tuple(a.shape)} and {tuple(b.shape)} do not compare")
    error_N = (a.double() - b.double()).flatten(1).square().mean(1)
    return (-10 * error_N.clamp(min=10 ** (-PEAK_DB / 10)).log10()).float()


def mean(values: Tensor) -> float:
    """Return the mean of all values."""
    return float(values.double().mean())


def bootstrap(
    values: Tensor,
    statistic: Callable[[Tensor], float] = mean,
    count: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the statistic of samples (N, ...) and its percentile interval (Efron 1979) over `count` resamples.

    Raises:
        ValueError: no samples, no resamples, or a level outside (0, 1).
    """
    found = _resampled(len(values), lambda index: statistic(values[index]), count, seed)
    return _interval(statistic(values), found, level)


def jackknife(
    a: Tensor, b: Tensor, statistic: Callable[[Tensor, Tensor], float], blocks: int = 20
) -> Interval:
    """Return statistic(a, b) and its 95 % interval by leaving out one block of rows (N, ...) of each at a time.

    For statistics that repeated rows would bias, as resampling does to a covariance: the spread of the leave-one-out
    values, scaled by blocks - 1, is the standard error (Tukey 1958; Efron & Stein 1981).

    Raises:
        ValueError: fewer rows than two a block.
    """
    if min(len(a), len(b)) < 2 * blocks:
        raise ValueError(f"{blocks} blocks need {2 * blocks} samples, got {len(a)} and {len(b)}")
    found = []
    for block in range(blocks):
        rows = (torch.arange(len(part)) % blocks != block for part in (a, b))
        kept_a, kept_b = (part[index] for part, index in zip((a, b), rows, strict=True))
        found.append(statistic(kept_a, kept_b))
    left_out = torch.tensor(found, dtype=torch.float64)
    error = float(((blocks - 1) * left_out.var(correction=0)).sqrt())
    value = statistic(a, b)
    return Interval(value, value - 1.96 * error, value + 1.96 * error)


def paired(
    a: Tensor,
    b: Tensor,
    statistic: Callable[[Tensor], float] = mean,
    count: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return statistic(a) - statistic(b) and its interval; the rows of a and b (N, ...) are drawn together.

    What both share, such as a hard prompt, cancels: two systems differ when 0 lies outside.

    Raises:
        ValueError: a and b have different lengths, or as `bootstrap`.
    """
    if len(a) != len(b):
        raise ValueError(f"paired samples need equal numbers, got {len(a)} and {len(b)}")

    def difference(index: Tensor) -> float:
        return statistic(a[index]) - statistic(b[index])

    found = _resampled(len(a), difference, count, seed)
    return _interval(statistic(a) - statistic(b), found, level)


def _resampled(
    rows: int, statistic: Callable[[Tensor], float], count: int, seed: int
) -> list[float]:
    if rows < 1 or count < 1:
        raise ValueError(f"a bootstrap needs samples and resamples, got {rows} and {count}")
    generator = torch.Generator().manual_seed(seed)
    return [statistic(torch.randint(rows, (rows,), generator=generator)) for _ in range(count)]


def _interval(value: float, found: list[float], level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    tail = (1 - level) / 2
    ends = torch.tensor(found, dtype=torch.float64).quantile(
        torch.tensor([tail, 1 - tail], dtype=torch.float64)
    )
    return Interval(value, *ends.tolist())


def _pair(a: Tensor, b: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Return both sets of rows on one device, once checked."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"rows of shapes {tuple(a.shape)} and {tuple(b.shape)} do not compare")
    if min(len(a), len(b)) < least:
        raise ValueError(f"at least {least} samples are needed, got {len(a)} and {len(b)}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError(
            "samples hold values that are not finite: the sampler or the judge diverged"
        )
    return a, b.to(a.device)


def _exact(a: Tensor, b: Tensor) -> Tensor:
    """Return all distances, without the cancellation that products of matrices bring."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _covariance(samples: Tensor) -> Tensor:
    centred_ND = samples - samples.mean(0)
    return centred_ND.T @ centred_ND / (len(samples) - 1)


def _chunks(rows: Tensor) -> Iterator[Tensor]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def _covered(samples: Tensor, support: Tensor, k: int) -> Tensor:
    """Return which samples (N,) lie inside a ball around a support sample that reaches its k-th neighbour."""
    radii = torch.cat([_exact(part, support).kthvalue(k + 1).values for part in _chunks(support)])
    inside = [(_exact(part, support) <= radii).any(1) for part in _chunks(samples)]
    return torch.cat(inside)


def _nearest(samples: Tensor, reference: Tensor, skipped: Tensor | None = None) -> Tensor:
    """Return each sample's distance to its nearest reference row, other than the one it skips."""
    centre = reference.mean(0)  # small numbers, so that the product of matrices rounds little
    centred, found = reference - centre, []
    for start in range(0, len(samples), CHUNK):
        part = samples[start : start + CHUNK]
        rough = torch.cdist(part - centre, centred, compute_mode="use_mm_for_euclid_dist")
        if skipped is not None:
            rough.scatter_(1, skipped[start : start + CHUNK, None], torch.inf)
        nearest = reference[rough.argmin(1)]  # rounding picks among near equals only
        found.append((part - nearest).square().sum(1).sqrt())
    return torch.cat(found)


def _ratio(to_train: Tensor, to_held_out: Tensor) -> Tensor:
    """Return to_train / to_held_out; 0 for a training picture, even if it was held out as well."""
    return to_train / to_held_out.clamp(min=torch.finfo(to_train.dtype).tiny)
