"""The MMD against its definition, and a Wasserstein autoencoder whose codes leave the prior."""

import dataclasses

import pytest
import torch
from torch import Tensor

from models.parts.mmd import SCALES, excess, imq, mmd
from models.variational.wae import WAE, WAEConfig
from tests.models.autoencoder_kit import digits, fitted, found, sampled


def normal(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def by_definition(codes: Tensor, prior: Tensor) -> float:
    """Algorithm 2 of the paper, pair by pair."""

    def kernel(a: Tensor, b: Tensor) -> float:
        squared = float((a - b).double().square().sum())
        return sum(s * 2 * len(a) / (s * 2 * len(a) + squared) for s in SCALES)

    n = len(codes)
    pairs = [(i, j) for i in range(n) for j in range(n)]
    same = sum(kernel(codes[i], codes[j]) + kernel(prior[i], prior[j]) for i, j in pairs if i != j)
    across = sum(kernel(codes[i], prior[j]) for i, j in pairs)
    return same / (n * (n - 1)) - 2 * across / n**2


def test_the_mmd_is_algorithm_2() -> None:
    """pythae 0.1.2's WAE_MMD gives the same on 100 codes of width 8 and 128 of width 16, within 5e-7."""
    codes, prior = normal(9, 3, 0) * 1.5 + 0.3, normal(9, 3, 1)
    assert mmd(codes, prior).item() == pytest.approx(by_definition(codes, prior), abs=1e-5)


def test_a_code_is_nearest_to_itself() -> None:
    kernel = imq(normal(5, 4, 0), normal(5, 4, 0))
    torch.testing.assert_close(kernel.diagonal(), torch.full((5,), float(len(SCALES))))
    assert kernel.min() > 0


def test_the_mmd_of_equal_distributions_is_zero_on_average() -> None:
    """With the diagonal, batches of 32 would give .24 on average: the biased V-statistic."""
    found = torch.stack([mmd(normal(32, 8, s), normal(32, 8, s + 1000)) for s in range(400)])
    error = (found.std() / 20).item()  # of the mean of 400, about .001
    assert abs(found.mean().item()) < 4 * error
    assert error < 0.01


def test_the_excess_tells_the_prior_from_what_is_not() -> None:
    """Measured -.6 to .8 for draws from the prior; the others 9, 17, 32 and 359."""
    assert all(-1 < excess(normal(360, 8, seed)).mean().item() < 3 for seed in range(5))
    codes = normal(360, 8, 9)
    for wrong in (codes * 1.2, codes * 0.8, codes + 0.3, codes * 3):
        assert excess(wrong).mean().item() > 5


def test_the_excess_repeats_and_leaves_the_global_generator_alone() -> None:
    codes, before = normal(64, 4, 0), torch.get_rng_state()
    assert torch.equal(excess(codes), excess(codes))
    assert torch.equal(before, torch.get_rng_state())


def test_batches_that_do_not_compare_are_refused() -> None:
    with pytest.raises(ValueError, match="two equal batches of 2 or more, got 1, 1"):
        mmd(normal(1, 2, 0), normal(1, 2, 1))
    with pytest.raises(ValueError, match="two equal batches of 2 or more, got 4, 3"):
        mmd(normal(4, 2, 0), normal(3, 2, 1))


def test_the_loss_is_the_cost_plus_lambda_mmd() -> None:
    """The cost is a sum over pixels: a flat picture 0.5 away in each of 64 pixels costs 16."""
    model = WAE(dataclasses.replace(WAE.presets["tiny"], penalty=7.0))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
    losses = model({"pixels": torch.ones(16, 1, 8, 8)})
    assert losses.parts["cost"].item() == pytest.approx(16)
    assert losses.total.item() == pytest.approx(16 + 7 * losses.parts["mmd"].item(), rel=1e-5)


def test_the_gradient_of_the_penalty_draws_equal_codes_apart() -> None:
    """All at one place, where a distance has no slope, must give no NaN."""
    codes = (torch.zeros(8, 2) + 0.5).requires_grad_()
    mmd(codes, normal(8, 2, 0)).backward()
    assert codes.grad is not None
    assert codes.grad.isfinite().all()
    assert codes.grad.abs().max() > 0


def wae(penalty: float) -> WAE:
    torch.manual_seed(0)
    model = WAE(WAEConfig(image_size=8, hidden=(100,), latent=6, penalty=penalty))
    assert fitted(model, 300, 4e-3) is model
    return model


def test_codes_that_nothing_draws_to_the_prior_are_seen() -> None:
    """Measured 3.8 against 684 times chance, mean picture .026 off against .20; the broken one reconstructs better."""
    honest, loose = wae(20.0), wae(0.0)
    ours, theirs = found(honest), found(loose)
    assert ours["mmd_excess"] < 10
    assert ours["cost"] < 2.5
    assert theirs["mmd_excess"] > 50
    assert theirs["cost"] < ours["cost"]
    real = digits()[1].mean(0)
    assert (sampled(honest).mean(0) - real).abs().mean() < 0.05
    assert (sampled(loose).mean(0) - real).abs().mean() > 0.05
