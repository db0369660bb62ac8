"""The dVAE's cost by hand, its annealing, its use of codes over parts of a batch, and what breaks it."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Laplace, Normal, kl_divergence

from models.variational.dvae import DVAE, DVAEConfig, gumbel, usage_entropy
from tests.models.autoencoder_kit import fitted, found

SPREAD = 1e-5  # of sums of 64 pixels in float32, relative


def dvae(**change: object) -> DVAE:
    torch.manual_seed(0)
    return DVAE(dataclasses.replace(DVAE.presets["tiny"], **change))  # type: ignore[arg-type]


def pictures(count: int = 32) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_cost_is_likelihood_kl_and_use_in_nats_a_picture() -> None:
    """Of the likeliest codes, which need no draw; the schedules are at their ends."""
    model, x = dvae(kl_weight=2.0, usage_bonus=3.0).eval(), pictures()
    model.steps.fill_(10_000)
    losses = model({"pixels": x})
    q = Categorical(logits=model.log_posterior(x))
    even = Categorical(probs=torch.full_like(q.probs, 1 / 16))
    kl = kl_divergence(q, even).sum(1).mean()
    unused = math.log(16) - Categorical(probs=q.probs.mean((0, 1))).entropy()
    assert model.log_sigma is not None
    mean = model.painted(model.codes(x))
    nll = -Normal(mean, model.log_sigma.exp()).log_prob(x).flatten(1).sum(1).mean()
    torch.testing.assert_close(losses.total, nll + 2 * kl + 3 * unused, rtol=SPREAD, atol=0)


def test_the_logit_laplace_is_the_density_of_a_pixel() -> None:
    """A Laplace in the logit of .1 + .8 x, so that it integrates to its mass between logit .1 and logit .9."""
    model = dvae(likelihood="logit-laplace", image_size=2, hidden=(8,)).eval()
    chosen = torch.randn(1, 1, 8)
    centre, log_b = (part[0, 0, 0, 0] for part in model._decoded(chosen).chunk(2, 1))
    x = torch.linspace(0, 1, 20001)
    grid = x.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    with torch.no_grad():
        out = model._decoded(chosen)
        model._decoded = lambda _: out[:, :, :1, :1]  # type: ignore[method-assign,assignment]
        density = (-model._nll(chosen, grid[:, :, :1, :1])).exp()
    law = Laplace(centre, log_b.exp())
    edges = torch.tensor([0.1, 0.9]).logit()
    assert torch.trapezoid(density, x).item() == pytest.approx(
        law.cdf(edges).diff().item(), abs=1e-4
    )


def test_a_gumbel_draw_takes_each_code_as_often_as_its_probability() -> None:
    """20000 draws: a standard error of .0035 at most."""
    torch.manual_seed(0)
    shares = torch.tensor([0.1, 0.2, 0.7])
    logits = shares.log().expand(20_000, 3)
    drawn = (logits + gumbel(logits)).argmax(1).bincount() / 20_000
    torch.testing.assert_close(drawn, shares, rtol=0, atol=0.015)


@settings(max_examples=50, deadline=None)
@given(steps=st.integers(0, 400))
def test_temperature_falls_and_the_kl_rises_along_cosines(steps: int) -> None:
    model = dvae(anneal_steps=200, kl_steps=100, kl_weight=6.6)
    model.steps.fill_(steps)
    share = min(1.0, steps / 200)
    wanted = 1 / 16 + (1 - 1 / 16) * (1 + math.cos(math.pi * share)) / 2
    assert model.temperature.item() == pytest.approx(wanted)
    assert 0 <= model.kl_weight.item() <= 6.6 + 1e-6
    assert (model.kl_weight.item() == pytest.approx(6.6)) == (steps >= 100)


def test_training_counts_its_steps_and_evaluation_moves_nothing() -> None:
    model = dvae()
    for taken in (1.0, 0.0, 1.0, 1.0):
        model.follow(model({"pixels": pictures()}).seen, torch.tensor(taken))
    assert int(model.steps) == 3
    torch.testing.assert_close(model.places_PK.sum(1), torch.full((16,), 16 + 16 * (1 - 0.99**3)))
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (model({"pixels": pictures()}).total for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_use_of_codes_is_of_all_parts_in_value_and_gradient() -> None:
    """The mean over parts, which is what training takes, is what the whole would find."""
    logits = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    use_XK = torch.stack([part.softmax(2).mean((0, 1)) for part in logits.detach().chunk(4)])
    parts = [usage_entropy(part.softmax(2), use_XK) for part in logits.chunk(4)]
    found, whole = torch.stack(parts).mean(), usage_entropy(logits.softmax(2))
    torch.testing.assert_close(found, whole)
    slopes = [torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (found, whole)]
    torch.testing.assert_close(*slopes)
    assert slopes[0].abs().max() > 0


@pytest.mark.slow
def test_a_likelihood_that_learns_no_variance_is_seen() -> None:
    """With a variance of 1 a code's nats cost more than the pixels it saves: they tell little: .70 against 1.01."""
    config = DVAEConfig(
        image_size=8, channels=1, hidden=(16, 32), codes=64, width=16, anneal_steps=200, kl_steps=50
    )
    torch.manual_seed(0)
    ours = found(fitted(DVAE(config), 250))
    torch.manual_seed(0)
    theirs = found(fitted(DVAE(dataclasses.replace(config, sigma=1.0)), 250))
    assert ours["perplexity"] > 24
    assert ours["relative_cost"] < 0.8
    assert theirs["relative_cost"] > ours["relative_cost"] + 0.15
