"""Each metric passes an honest model and fails a broken one, built here from real digits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor

from models.judges import metrics
from models.judges.gallery import gallery, to_image


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Real pictures (N, 1, 8, 8) in [0, 1], in three disjoint parts: train, held out, and an honest model's."""
    pixels = torch.from_numpy(load_digits().images).float()[:, None] / 16
    pixels = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))]
    return pixels[:997], pixels[997:1397], pixels[1397:]


def normal(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


# alignment


def test_alignment_tells_joint_from_single_attributes() -> None:
    joint, single = metrics.alignment(
        torch.tensor([[0, 1], [0, 2], [1, 1]]), torch.tensor([[0, 1], [0, 1], [0, 2]])
    )
    assert joint.tolist() == [True, False, False]
    assert single.tolist() == [[True, True], [True, False], [False, False]]


def test_shuffled_captions_align_by_chance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([2, 6, 4, 5])
    wanted = (torch.rand(2000, 4, generator=generator) * sizes).long()
    joint, single = metrics.alignment(wanted[torch.randperm(2000, generator=generator)], wanted)
    assert joint.float().mean() < 4 / 240
    for share, size in zip(single.float().mean(0), sizes, strict=True):
        assert abs(share - 1 / size) < 0.05


def test_alignment_refuses_another_number_of_samples() -> None:
    with pytest.raises(ValueError, match=r"predicted \(3, 2\) and wanted \(1, 2\)"):
        metrics.alignment(torch.zeros(3, 2), torch.zeros(1, 2))


# Fréchet distance


def test_the_frechet_distance_is_the_closed_form_for_diagonal_gaussians() -> None:
    """Whitened samples have exactly the moments that the formula is given; float64, so 1e-8."""
    white = normal(500, 6, 0).double()
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(white.T.cov())).T
    scale_a, scale_b = torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator()) + 0.5
    found = metrics.frechet_distance(white * scale_a, white * scale_b + 0.3)
    expected = 6 * 0.3**2 + (scale_a - scale_b).square().sum().item()
    assert found == pytest.approx(expected, rel=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(3, 40), width=st.integers(1, 30))
def test_the_frechet_distance_is_symmetric_and_nought_for_equal_sets(
    seed: int, rows: int, width: int
) -> None:
    """With fewer samples than features the covariances are singular; that must do no harm."""
    a, b = normal(rows, width, seed), normal(rows + 2, width, seed + 1) * 2 + 1
    forth, back = metrics.frechet_distance(a, b), metrics.frechet_distance(b, a)
    assert forth == pytest.approx(back, rel=1e-5)
    assert forth > 0
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-5 * width)


def test_noise_and_blur_raise_the_frechet_distance(digits: tuple[Tensor, Tensor, Tensor]) -> None:
    train, held_out, honest = (part.flatten(1)[:400] for part in digits)
    good = metrics.frechet_distance(held_out, honest)
    noise = torch.rand(400, 64, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(
        digits[2], 3, stride=1, padding=1, count_include_pad=False
    ).flatten(1)
    assert metrics.frechet_distance(held_out, noise) > 20 * good
    assert metrics.frechet_distance(held_out, blurred) > 4 * good
    assert metrics.frechet_distance(held_out, train) < 2 * good


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        metrics.frechet_distance(torch.full((9, 2), math.nan), torch.zeros(9, 2))


# precision and recall


def test_precision_and_recall_follow_a_hand_made_example() -> None:
    """On a line with k = 1: reals 0, 1, 2 reach 1 each; fakes 0.5 and 9, 10 reach 8.5, 1, 1."""
    real, fake = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.5], [9.0], [10.0]])
    precision, recall = metrics.precision_recall(real, fake, k=1)
    assert precision.tolist() == [True, False, False]
    assert recall.tolist() == [True, True, True]


def test_mode_collapse_lowers_recall_alone_and_noise_lowers_precision(
    digits: tuple[Tensor, Tensor, Tensor],
) -> None:
    _, held_out, honest = (part.flatten(1)[:400] for part in digits)
    precision, recall = metrics.precision_recall(held_out, honest)
    assert min(metrics.mean(precision), metrics.mean(recall)) > 0.8
    collapsed = honest[:4].repeat(100, 1) + 0.01 * normal(400, 64, 0)
    assert metrics.mean(metrics.precision_recall(held_out, collapsed)[1]) < 0.1
    noisy = honest + 0.3 * normal(400, 64, 1)
    assert metrics.mean(metrics.precision_recall(held_out, noisy)[0]) < 0.3


def test_coverage_follows_a_hand_made_example() -> None:
    """On a line with k = 1: reals 0, 1, 5 reach 1, 1 and 4; 0.5 covers the first two, and 9.5 none."""
    real = torch.tensor([[0.0], [1.0], [5.0]])
    assert metrics.coverage(real, torch.tensor([[0.5], [9.5]]), k=1).tolist() == [True, True, False]


def test_a_few_pictures_repeated_lower_coverage_which_spread_out_fakes_fool_recall_about(
    digits: tuple[Tensor, Tensor, Tensor],
) -> None:
    _, held_out, honest = (part.flatten(1)[:400] for part in digits)
    assert metrics.mean(metrics.coverage(held_out, honest)) > 0.9
    thirty = honest[:30].repeat(14, 1)[:400]
    assert metrics.mean(metrics.coverage(held_out, thirty)) < 0.45


def test_spread_is_the_mean_distance_of_pairs_and_nought_for_one_picture() -> None:
    rows = torch.tensor([[0.0], [1.0], [3.0], [7.0], [7.0], [2.0]])
    found = metrics.spread(rows, ["a", "a", "a", "b", "b", "c"])
    assert found == {"a": 2.0, "b": 0.0}


def test_a_jackknife_s_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    """The distance of two means, 0.5 apart in each of 3 dimensions, from 200 samples a side."""

    def distance(a: Tensor, b: Tensor) -> float:
        return float((a.mean(0) - b.mean(0)).norm())

    truth, inside = math.sqrt(3) * 0.5, 0
    for seed in range(100):
        found = metrics.jackknife(normal(200, 3, seed), normal(200, 3, 1000 + seed) + 0.5, distance)
        inside += found.low <= truth <= found.high
    assert 88 <= inside <= 100
    with pytest.raises(ValueError, match="20 blocks need 40 samples, got 39 and 50"):
        metrics.jackknife(normal(39, 3, 0), normal(50, 3, 1), distance)


def test_a_jackknife_s_interval_does_not_depend_on_the_order_of_prompts() -> None:
    """Ten prompts that lie far apart, twenty rows of each: in turn, one after the other, or mixed."""
    prompt = 5 * normal(10, 3, 2)
    by_prompt, other = normal(200, 3, 3) + prompt.repeat_interleave(20, 0), normal(200, 3, 4)
    in_turn = by_prompt.unflatten(0, (10, 20)).transpose(0, 1).flatten(0, 1)
    mixed = by_prompt[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    widths = []
    for rows in (mixed, by_prompt, in_turn):
        found = metrics.jackknife(rows, other, metrics.frechet_distance)
        widths.append(found.high - found.low)
    assert max(widths) < 2 * min(widths), widths


def test_too_few_samples_for_k_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 6 samples are needed, got 5 and 9"):
        metrics.precision_recall(torch.zeros(5, 2), torch.zeros(9, 2))


# memorisation


def test_a_copying_model_is_caught_and_an_honest_one_is_not(
    digits: tuple[Tensor, Tensor, Tensor],
) -> None:
    train, held_out, honest = digits
    copies = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(1))[:400]]
    assert metrics.memorisation(copies, train, held_out).all()
    near = (copies + 0.02 * torch.randn(copies.shape, generator=torch.Generator())).clamp(0, 1)
    assert metrics.memorisation(near, train, held_out).float().mean() > 0.95
    assert metrics.memorisation(honest, train, held_out).float().mean() < 0.1
    moved = torch.nn.functional.pad(copies, (1, 0, 0, 0), mode="replicate")[..., :-1]
    assert metrics.memorisation(moved, train, held_out).float().mean() > 0.3
    mixed = (copies + copies.flip(0)) / 2
    assert metrics.memorisation(mixed, train, held_out).float().mean() > 0.3
    half = torch.cat([copies[:200], honest[:200]])
    assert metrics.memorisation(half, train, held_out).float().mean() == pytest.approx(
        0.53, abs=0.06
    )


def test_a_soft_model_is_not_taken_for_a_copying_one(digits: tuple[Tensor, Tensor, Tensor]) -> None:
    train, held_out, honest = digits
    soft = (honest + honest.mean(0)) / 2
    assert metrics.memorisation(soft, train, held_out).float().mean() < 0.15


def test_copies_cannot_be_told_where_held_out_pictures_were_trained_on(
    digits: tuple[Tensor, Tensor, Tensor],
) -> None:
    train, _, honest = digits
    with pytest.raises(ValueError, match="are also training pictures"):
        metrics.memorisation(honest, train, train[:100])
    with pytest.raises(ValueError, match="at least 20 held-out pictures, got 3"):
        metrics.memorisation(honest, train, honest[:3])


def test_a_picture_is_found_moved_or_mixed_and_a_skipped_one_is_not() -> None:
    """Rounding of a matrix product would give two equal far-off pictures a distance of about 0.1."""
    reference = torch.rand(700, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 1000
    assert (metrics._apart(reference, reference) == 0).all()
    mixed = (reference[:9] + reference[1:10]) / 2
    assert metrics._apart(mixed, reference).max() < 1e-2
    moved = torch.nn.functional.pad(reference[:9], (1, 0, 0, 0), mode="replicate")[..., :-1]
    assert metrics._apart(moved, reference).max() < metrics._apart(moved, reference[9:]).min()
    skipping = metrics._apart(reference, reference, torch.arange(700))
    others = torch.cat(
        [
            metrics._apart(
                reference[row : row + 1], torch.cat([reference[:row], reference[row + 1 :]])
            )
            for row in range(0, 700, 100)
        ]
    )
    torch.testing.assert_close(skipping[::100], others, rtol=1e-3, atol=1e-3)


# intervals


def test_a_bootstrap_interval_holds_the_mean_as_often_as_it_says() -> None:
    """Of 200 intervals at 80 %, 160 +- 5.7 hold the truth; a percentile interval of 50 rows runs a little short."""
    holds = [
        found.low <= 0.5 <= found.high
        for seed in range(200)
        for found in [
            metrics.bootstrap(normal(50, 1, seed)[:, 0] + 0.5, count=200, seed=seed, level=0.8)
        ]
    ]
    assert 140 <= sum(holds) <= 178


def test_a_seed_fixes_the_interval() -> None:
    values = normal(40, 1, 0)
    assert metrics.bootstrap(values, seed=3) == metrics.bootstrap(values, seed=3)
    assert metrics.bootstrap(values, seed=3) != metrics.bootstrap(values, seed=4)


def test_any_statistic_has_an_interval() -> None:
    found = metrics.bootstrap(torch.arange(101.0), lambda values: float(values.median()), count=200)
    assert found.low < found.value == 50 < found.high


def test_pairing_finds_a_small_gain_that_separate_intervals_hide() -> None:
    hard = normal(100, 1, 0)[:, 0]
    better, worse = hard + 0.1, hard + 0.05 * normal(100, 1, 1)[:, 0]
    gain = metrics.paired(better, worse)
    assert 0 < gain.low < gain.value < gain.high
    assert metrics.bootstrap(better).low < metrics.bootstrap(worse).high
    same = metrics.paired(better, better)
    assert (same.value, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.bootstrap(torch.zeros(0)), "got 0 and 1000"),
        (lambda: metrics.bootstrap(torch.zeros(3), level=1.0), "level must be between 0 and 1"),
        (lambda: metrics.paired(torch.zeros(3), torch.zeros(2)), "got 3 and 2"),
        (lambda: metrics.psnr(torch.zeros(3), torch.zeros(2)), "do not compare"),
    ],
)
def test_intervals_refuse_what_has_no_answer(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()


def test_psnr_is_twenty_decibels_for_a_tenth_and_bounded_for_equal_pictures() -> None:
    pictures = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8
    torch.testing.assert_close(metrics.psnr(pictures, pictures + 0.1), torch.full((3,), 20.0))
    assert (metrics.psnr(pictures, pictures) == metrics.PEAK_DB).all()


@given(seed=st.integers(0, 2**31), by=st.floats(0, 1), channels=st.integers(1, 3))
@settings(max_examples=30)
def test_pixel_values_lie_as_far_apart_as_one_has_to_move_them(
    seed: int, by: float, channels: int
) -> None:
    """Pixels in the order of their values, beside those of the other set: the distance by its definition."""
    pictures = torch.rand(5, channels, 6, 7, generator=torch.Generator().manual_seed(seed))
    others = pictures.flip(0, 2) * by
    reached, real = metrics.levels_reached(others), metrics.levels_reached(pictures)
    sorted_CM = [one.transpose(0, 1).flatten(1).sort(1).values for one in (others, pictures)]
    moved = float((sorted_CM[0] - sorted_CM[1]).abs().mean())
    assert metrics.pixel_distance(reached, real) == pytest.approx(moved, abs=1 / 255)
    assert metrics.pixel_distance(real, real) == 0


def test_paler_darker_and_noisy_pictures_lie_ten_times_as_far_from_real_ones_as_honest_ones(
    digits: tuple[Tensor, Tensor, Tensor],
) -> None:
    _, held_out, honest = digits
    real = metrics.levels_reached(held_out)
    some_noise = honest.clone()
    some_noise[::10] = torch.rand(
        len(honest[::10]), 1, 8, 8, generator=torch.Generator().manual_seed(1)
    )

    def apart(pictures: Tensor) -> float:
        return metrics.pixel_distance(metrics.levels_reached(pictures), real)

    assert apart(honest) < 0.003
    for broken in (0.5 + 0.6 * (honest - 0.5), 0.8 * honest, honest**0.7, some_noise):
        assert apart(broken) > 0.018


# gallery


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (16, 3), (28, 1), (32, 3), (128, 3)])
def test_a_gallery_enlarges_small_pictures_by_whole_pixels(side: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(5, channels, side, side, generator=generator)
    sheet = gallery(pictures, columns=3, labels=["a very long caption about a small thing"] * 5)
    factor = max(1, round(96 / side))
    corner = sheet.crop((12, 12, 12 + side * factor, 12 + side * factor))
    first = to_image(pictures[0])
    assert corner.tobytes() == first.resize(corner.size, 0).tobytes()
    assert sheet.width == 3 * (side * factor + 12) + 12


def test_a_gallery_refuses_labels_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="2 pictures but 1 labels"):
        gallery(torch.zeros(2, 3, 8, 8), labels=["one"])
