"""The adversarial autoencoder's two losses, who owns what, and what it is without its adversary."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.variational.aae import AAE, AAEConfig
from tests.models.autoencoder_kit import digits, fitted, found, sampled


def aae(adversary: float = 1.0) -> AAE:
    torch.manual_seed(0)
    return AAE(
        AAEConfig(image_size=8, hidden=(100,), latent=6, discriminator=(100,), adversary=adversary)
    )


def pictures(count: int = 16) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_losses_are_binary_cross_entropies_with_the_prior_as_real() -> None:
    model, x = aae(3.0), pictures()
    z = model.latents(x)
    torch.manual_seed(5)
    ours = model({"pixels": x}, "discriminator").total
    torch.manual_seed(5)
    prior = torch.randn_like(z)
    real, fake = model.prior_logit(prior), model.prior_logit(z)
    entropy = F.binary_cross_entropy
    theirs = entropy(real.sigmoid(), torch.ones(16)) + entropy(fake.sigmoid(), torch.zeros(16))
    torch.testing.assert_close(ours, theirs)
    cost = (model.decode(z) - x).square().sum() / 16
    fooling = entropy(fake.sigmoid(), torch.ones(16))
    torch.testing.assert_close(model({"pixels": x}).total, cost + 3 * fooling)


def test_the_discriminator_learns_from_codes_without_moving_them() -> None:
    model = aae()
    model({"pixels": pictures()}, "discriminator").total.backward()
    assert all(p.grad is not None for p in model.discriminator.parameters())
    assert all(p.grad is None for p in model.player_parameters("autoencoder"))


def test_the_autoencoder_is_paid_for_codes_that_pass_for_the_prior() -> None:
    """A step of the encoder down its loss, without the cost, must raise the discriminator's log odds of its codes."""
    model, x = aae(1.0), pictures(128)
    for parameter in model.decoder.parameters():
        parameter.requires_grad_(False)
    before = model.prior_logit(model.latents(x)).mean()
    fooling = F.softplus(-model.prior_logit(model.latents(x))).mean()
    rows = list(model.encoder.parameters())
    with torch.no_grad():
        for parameter, slope in zip(rows, torch.autograd.grad(fooling, rows), strict=True):
            parameter -= slope
    assert model.prior_logit(model.latents(x)).mean() > before


def test_a_discriminator_without_an_opinion_is_right_half_of_the_time() -> None:
    model = aae()
    with torch.no_grad():
        for parameter in model.discriminator.parameters():
            parameter.zero_()
    losses = model({"pixels": pictures()}, "discriminator")
    assert losses.parts["accuracy"] == 0.5
    assert losses.total.item() == pytest.approx(2 * math.log(2))


def test_what_it_has_right_is_asked_of_many_draws_whatever_the_number_of_pictures() -> None:
    """Of 158 draws alone a share would be .04 off; three pictures' values differ by their own codes, one in two."""
    model = aae()
    few = model.measure({"pixels": pictures(3)})["discriminator_accuracy"]
    seen = torch.randn(200_000, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        right = (model.prior_logit(seen) > 0).float().mean()
        code = (model.prior_logit(model.latents(pictures(3))) <= 0).float()
    torch.testing.assert_close(few, (right + code) / 2, rtol=0, atol=0.02)


def test_codes_without_an_adversary_leave_the_prior_and_are_seen() -> None:
    """Measured accuracy .45 against 1, MMD 8.3 against 734 times chance; the broken one reconstructs better."""
    honest, loose = aae(1.0), aae(0.0)
    ours, theirs = found(fitted(honest, 300, 3e-3)), found(fitted(loose, 300, 3e-3))
    assert 0.4 <= ours["discriminator_accuracy"] <= 0.68
    assert ours["mmd_excess"] < 20
    assert theirs["discriminator_accuracy"] > 0.95
    assert theirs["mmd_excess"] > 50
    assert theirs["cost"] < ours["cost"]
    real = digits()[1].mean(0)
    assert (sampled(honest).mean(0) - real).abs().mean() < 0.05
    assert (sampled(loose).mean(0) - real).abs().mean() > 0.05
