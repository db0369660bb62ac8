"""Numbers about generated pictures: pure functions of tensors, each of which a broken model fails.

Shape letters: N, M, K samples, A attributes, F features, D numbers a sample. Distances are Euclidean. Nothing here
draws random numbers but the bootstrap and the jackknife, which are seeded.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from models.judges import LEAST_HELD_OUT

CHUNK: Final = 512  # rows of a distance matrix at a time
PEAK_DB: Final = 100.0  # PSNR of equal pictures; their error is 0
MOST_HELD_OUT: Final = 1000  # more make it slower, not surer
COARSE: Final = 8  # pixels a side at which copies are looked for
MIXED: Final = 8  # nearest pictures of which two may be mixed
LEVELS: Final = 256  # of a channel's values


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic and the ends of its percentile bootstrap interval."""

    value: float
    low: float
    high: float


class Copied(ValueError):
    """So many held-out pictures are training ones, too, that copies cannot be told; `unseen` are the others."""

    def __init__(self, held_out: int, unseen: Tensor) -> None:
        self.found = (
            f"{held_out - len(unseen)} of {held_out} held-out ones are also training pictures"
        )
        self.unseen = unseen
        super().__init__(f"{self.found}: hold out others, or no copy can be told from chance")


def alignment(predicted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return which samples have every attribute right (N,) and which attributes are right (N, A), as bools.

    Raises:
        ValueError: the two are not of one shape (N, A).

    Example:
        >>> predicted, wanted = torch.tensor([[0, 1], [2, 1]]), torch.tensor([[0, 1], [2, 0]])
        >>> every, each = alignment(predicted, wanted)
        >>> every.tolist(), each.double().mean(0).tolist()
        ([True, False], [1.0, 0.5])
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

    Example:
        >>> least_share(torch.tensor([0, 0, 1, 2]), classes=3)
        0.25
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

    Example:
        >>> features = torch.tensor([[0.0], [2.0], [4.0]])
        >>> round(frechet_distance(features, features + 3), 6)
        9.0
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
    precision (eq. 1 and 2) is the share of those. Recall is the same with the sets exchanged. Compare at equal k,
    precision at equal M too, recall at equal N.

    Raises:
        ValueError: k below 1, k or fewer samples in a set, different widths, or features that are not finite.

    Example:
        >>> real, fake = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.5], [1.5], [9.0]])
        >>> precise, recalled = precision_recall(real, fake, k=1)
        >>> precise.tolist(), recalled.tolist()
        ([True, True, False], [True, True, True])
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    real, fake = _pair(real_features.float(), fake_features.float(), least=k + 1)
    return _covered(fake, real, k), _covered(real, fake, k)


def coverage(real_features: Tensor, fake_features: Tensor, k: int = 5) -> Tensor:
    """Return which real samples (M,) have a fake among their k nearest neighbours (Naeem et al. 2020).

    arXiv:2002.09797. A fake is among them when it lies no further than the k-th nearest real neighbour. Unlike recall,
    which a few far apart fakes reach by their wide balls, a repeated fake covers no more than once. Compare at equal N
    and k; about 1 - 2^-k of real samples are covered by as many others of their distribution.

    Raises:
        ValueError: k below 1, k or fewer real samples, different widths, or features that are not finite.

    Example:
        >>> real, fake = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.5], [0.6]])
        >>> coverage(real, fake, k=1).tolist()
        [True, True, False]
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    real, fake = _pair(real_features.float(), fake_features.float(), least=k + 1)
    radii = _radii(real, k)
    nearest = torch.cat([_exact(part, fake).min(1).values for part in _chunks(real)])
    return nearest <= radii


def spread(features: Tensor, groups: Sequence[str]) -> dict[str, float]:
    """Return by group how far its samples (N, F) lie apart: the mean distance of its pairs, where it has two.

    Of pictures of one prompt by several seeds it is 0 for a sampler that always paints the same; beside that of real
    pictures of the same caption it says how much of their variety is left.

    Example:
        >>> spread(torch.tensor([[0.0], [3.0], [7.0]]), ["red", "red", "green"])
        {'red': 3.0}
    """
    places: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    return {
        group: float(torch.pdist(features[rows].float()).mean())
        for group, rows in places.items()
        if len(rows) > 1
    }


def distinct(generated: Tensor, real: Tensor, chance: float = 0.05) -> Tensor:
    """Return which generated pictures (N,) lie as far from all others of them as real ones do from one another.

    Further than the `chance` quantile of the distances of real pictures (M, C, H, W) to their nearest: an honest
    sampler is at 1 - chance, one that repeats a few pictures near 0, whatever a judge makes of them. Compare at equal
    N.

    Raises:
        ValueError: fewer than two of either, pictures of different sizes, or pixels that are not finite.

    Example:
        >>> real = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> distinct(real[:1].repeat(3, 1, 1, 1), real).tolist()
        [False, False, False]
    """
    fake, true = _pair(_coarse(generated).flatten(1), _coarse(real).flatten(1), least=2)
    return _radii(fake, 1) > _radii(true, 1).quantile(chance)


def memorisation(
    generated: Tensor, train: Tensor, held_out: Tensor, chance: float = 0.05
) -> Tensor:
    """Return which generated pictures (N,) stand as near to training pictures as hardly any unseen one does.

    Three samples are compared, as by Meehan et al. 2020 (arXiv:2004.05675): generated, learned from, and held out.
    A picture x counts when d(x, train) / d(x, held_out) is below the `chance` quantile of the same ratio over held-out
    pictures, each of which is left out of its own reference. The ratio keeps soft or plain pictures, which are near to
    everything, from counting as copies. So an honest sampler scores about `chance`, and one that returns training
    pictures scores 1, also where it moves them by a pixel, adds noise or mixes two: d is the distance of `_apart`.

    Args:
        generated: (N, C, H, W) pixels.
        train: (M, C, H, W) pictures that were learned from.
        held_out: (K, C, H, W) pictures of the same distribution that were not, 20 or more.
        chance: the share of unseen pictures that may count.

    Raises:
        ValueError: too few held-out pictures, pictures of different sizes, pixels that are not finite, or a chance
            outside (0, 1).
        Copied: so many held-out pictures are copies of training ones that copies cannot be told.

    Example:
        >>> pixels = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> memorisation(pixels[:2], train=pixels[:30], held_out=pixels[30:]).tolist()
        [True, True]
    """
    if not 0 < chance < 1:
        raise ValueError(f"chance must be between 0 and 1, got {chance}")
    _pair(generated.flatten(1), train.flatten(1), least=1)
    _pair(generated.flatten(1), held_out.flatten(1), least=1)
    if len(held_out) < LEAST_HELD_OUT:
        raise ValueError(
            f"memorisation needs at least {LEAST_HELD_OUT} held-out pictures, got {len(held_out)}"
        )
    unseen = held_out[:: -(-len(held_out) // MOST_HELD_OUT)].to(generated.device)
    train = train.to(generated.device)
    own_K = torch.arange(len(unseen), device=unseen.device)
    honest_K = _ratio(_apart(unseen, train), _apart(unseen, unseen, own_K))
    limit = honest_K.quantile(chance)
    if limit <= 0:
        raise Copied(len(unseen), unseen[honest_K > 0])
    return _ratio(_apart(generated, train), _apart(generated, unseen)) < limit


def levels_reached(pictures: Tensor) -> Tensor:
    """Return (N, C, 256) the share of each picture's pixels (N, C, ...) in [0, 1] that are at or below a level of 256.

    Example:
        >>> levels_reached(torch.tensor([[[0.0, 1.0]]]))[0, 0, [0, 254, 255]].tolist()
        [0.5, 0.5, 1.0]
    """
    rows_RP = (pictures.clamp(0, 1) * (LEVELS - 1)).round().long().flatten(2).flatten(0, 1)
    rows_RP = rows_RP + LEVELS * torch.arange(len(rows_RP))[:, None]
    counted_RL = rows_RP.flatten().bincount(minlength=len(rows_RP) * LEVELS).view(-1, LEVELS)
    return (counted_RL.cumsum(1) / rows_RP.shape[1]).view(*pictures.shape[:2], LEVELS)


def pixel_distance(reached: Tensor, real: Tensor) -> float:
    """Return how far the pixel values of two sets of pictures lie apart, from `levels_reached` of each: 0 to 1.

    Wasserstein's distance of order 1, of each channel's values over all pictures; the mean over channels. A judge reads
    what is shown by any light: paler or darker pictures, or some of noise, need not lie far off in its features.

    Example:
        >>> black, grey = (torch.full((1, 1, 4), value) for value in (0.0, 0.2))
        >>> round(pixel_distance(levels_reached(grey), levels_reached(black)), 3)
        0.2
    """
    apart_CL = (reached.mean(0) - real.mean(0)).abs()
    return float(apart_CL.sum(1).mean() / (LEVELS - 1))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio (N,) in dB of pictures (N, ...) in [0, 1]; at most 100, for equal ones.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> psnr(torch.zeros(1, 4), torch.full((1, 4), 0.1)).round(decimals=3).tolist()
        [20.0]
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

    Example:
        >>> found = bootstrap(torch.tensor([0.0, 1.0, 1.0, 1.0]))
        >>> found.value, found.low <= found.value <= found.high
        (0.75, True)
    """
    found = _resampled(len(values), lambda index: statistic(values[index]), count, seed)
    return _interval(statistic(values), found, level)


def jackknife(
    a: Tensor, b: Tensor, statistic: Callable[[Tensor, Tensor], float], blocks: int = 20
) -> Interval:
    """Return statistic(a, b) and its 95 % interval by leaving out one block of rows (N, ...) of each at a time.

    For statistics that repeated rows would bias, as resampling does to a covariance: the spread of the leave-one-out
    values, scaled by blocks - 1, is the standard error (Tukey 1958; Efron & Stein 1981). Which rows make a block is
    drawn, by a fixed seed: rows stand in the order of their prompts, and every twentieth may be of one prompt.

    Raises:
        ValueError: fewer rows than two a block.

    Example:
        >>> a = torch.arange(40.0)[:, None]
        >>> jackknife(a, a + 2, frechet_distance).value
        4.0
    """
    if min(len(a), len(b)) < 2 * blocks:
        raise ValueError(f"{blocks} blocks need {2 * blocks} samples, got {len(a)} and {len(b)}")
    generator, found = torch.Generator().manual_seed(0), []
    of_a, of_b = (torch.randperm(len(part), generator=generator) % blocks for part in (a, b))
    for block in range(blocks):
        found.append(statistic(a[of_a != block], b[of_b != block]))
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

    Example:
        >>> a = torch.tensor([1.0, 2.0, 3.0])
        >>> found = paired(a, a - 0.5)
        >>> round(found.low, 6), round(found.high, 6)
        (0.5, 0.5)
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


def _radii(support: Tensor, k: int) -> Tensor:
    """Return each sample's distance to its k-th nearest other."""
    return torch.cat([_exact(part, support).kthvalue(k + 1).values for part in _chunks(support)])


def _covered(samples: Tensor, support: Tensor, k: int) -> Tensor:
    """Return which samples (N,) lie inside a ball around a support sample that reaches its k-th neighbour."""
    radii = _radii(support, k)
    inside = [(_exact(part, support) <= radii).any(1) for part in _chunks(samples)]
    return torch.cat(inside)


def _apart(pictures: Tensor, reference: Tensor, skipped: Tensor | None = None) -> Tensor:
    """Return how far each picture (N, C, H, W) is from the reference, other than the one it skips.

    The least over moves by a pixel, and over all mixtures of two of the nearest pictures, in pixels averaged to at
    most `COARSE` a side, where noise that hides a copy has gone.
    """
    target = _coarse(reference).flatten(1)
    centre = target.mean(0)  # small numbers, so that the product of matrices rounds little
    target, found = target - centre, []
    moved = torch.stack([_coarse(one).flatten(1) - centre for one in _moved(pictures)])
    for start in range(0, len(pictures), CHUNK):
        part = slice(start, start + CHUNK)
        own = None if skipped is None else skipped[part, None]
        moves = moved[:, part]
        least = torch.stack([_rough(one, target, own).min(1).values for one in moves])
        best = moves[least.argmin(0), torch.arange(moves.shape[1])]
        near = _rough(best, target, own).topk(min(MIXED, len(target)), largest=False).indices
        found.append(_to_segments(best, target[near]))
    return torch.cat(found)


def _rough(samples: Tensor, reference: Tensor, skipped: Tensor | None) -> Tensor:
    """Return distances (N, M) but for rounding, which picks among near equals only."""
    found = torch.cdist(samples, reference, compute_mode="use_mm_for_euclid_dist")
    return found if skipped is None else found.scatter_(1, skipped, torch.inf)


def _to_segments(samples: Tensor, ends: Tensor) -> Tensor:
    """Return each sample's (N, D) distance to the nearest of the segments between its ends (N, K, D)."""
    first, second = torch.combinations(torch.arange(ends.shape[1]), 2, True).T
    start, along = ends[:, first], ends[:, second] - ends[:, first]
    offset = samples[:, None] - start
    length = along.square().sum(-1).clamp(min=torch.finfo(along.dtype).tiny)
    share = ((offset * along).sum(-1) / length).clamp(0, 1)
    return (offset - share[..., None] * along).square().sum(-1).min(1).values.sqrt()


def _moved(pictures: Tensor) -> list[Tensor]:
    """Return pictures (N, C, H, W) as they are, and moved by a pixel in each of eight directions."""
    height, width = pictures.shape[-2:]
    wide = F.pad(pictures.float(), (1, 1, 1, 1), mode="replicate")
    return [wide[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]


def _coarse(pictures: Tensor) -> Tensor:
    """Return pictures averaged to at most `COARSE` pixels a side."""
    height, width = (min(COARSE, size) for size in pictures.shape[-2:])
    return F.adaptive_avg_pool2d(pictures.float(), (height, width))


def _ratio(to_train: Tensor, to_held_out: Tensor) -> Tensor:
    """Return to_train / to_held_out; 0 for a training picture, even if it was held out as well."""
    return to_train / to_held_out.clamp(min=torch.finfo(to_train.dtype).tiny)
