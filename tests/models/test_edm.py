"""EDM: its preconditioning and sampler against a peer, its likelihood against closed forms, its rows."""

import dataclasses
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from models.diffusion import heun, likelihood
from models.diffusion.edm import EDM, precondition
from models.parts.rows import join
from models.request import Request

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import EDMEulerScheduler, HeunDiscreteScheduler

TOLERANCE = 1e-5  # relative to the largest value on the way: both sides are float32
WORDS = ("dark", "bright")
TINY = EDM.presets["tiny"]


def model(**changes: object) -> EDM:
    """A tiny model whose weights are all away from zero, so that text and noise matter."""
    torch.manual_seed(0)
    made = EDM(dataclasses.replace(TINY, **changes))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.eval()


def denoised(x: Tensor, sigma: float) -> Tensor:
    """A smooth stand-in for a denoiser: bounded, and different at each noise and pixel."""
    return torch.tanh(x.flip(-1) / math.hypot(sigma, 0.5) + math.sin(3 * math.log(sigma)))


def ours(sampler: str, steps: int) -> Tensor:
    lines = heun.table(sampler, heun.sigmas(steps, 0.002, 80.0, 7.0))
    x = start = slope = 80 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for line in lines:
        x0 = denoised(x, line[0].item())
        x, start, slope = heun.advance(line.expand(2, 3), x, x0, start, slope)
    return x


@pytest.mark.parametrize("steps", [2, 5, 18, 40])
def test_heun_equals_diffusers(steps: int) -> None:
    """Its scheduler takes its noise levels from a discrete diffusion, so it is given the paper's."""
    sigma = heun.sigmas(steps, 0.002, 80.0, 7.0).float()
    with warnings.catch_warnings():  # its own, of NumPy 2
        warnings.simplefilter("ignore")
        scheduler: Any = HeunDiscreteScheduler(prediction_type="sample")
        scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.cat([sigma[:1], sigma[1:-1].repeat_interleave(2), sigma[-1:]])
    scheduler.timesteps = torch.arange(len(scheduler.sigmas) - 1).float()
    x = 80 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    visited = heun.table("heun", sigma.double())[:, 0].tolist()
    assert len(visited) == len(scheduler.timesteps) == 2 * steps - 1
    for time, level in zip(scheduler.timesteps, visited, strict=True):
        x = scheduler.step(denoised(x, level), time, x).prev_sample
    torch.testing.assert_close(ours("heun", steps), x, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_euler_its_noise_levels_and_the_preconditioning_equal_diffusers(steps: int) -> None:
    scheduler: Any = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    scheduler.set_timesteps(steps)
    sigma = heun.sigmas(steps, 0.002, 80.0, 7.0)
    torch.testing.assert_close(scheduler.sigmas, sigma.float(), rtol=TOLERANCE, atol=0)
    x = 80 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for time, level in zip(scheduler.timesteps, sigma.float()[:-1], strict=True):
        skip, out, scale, noise = precondition(level, 0.5)
        torch.testing.assert_close(scheduler.precondition_inputs(x, level), scale * x)
        torch.testing.assert_close(scheduler.precondition_noise(level), noise)
        f = (denoised(x, level.item()) - skip * x) / out
        torch.testing.assert_close(scheduler.precondition_outputs(x, f, level), skip * x + out * f)
        scheduler.is_scale_input_called = True
        x = scheduler.step(f, time, x).prev_sample
    torch.testing.assert_close(ours("euler", steps), x, rtol=TOLERANCE, atol=TOLERANCE)


def test_eighteen_steps_are_thirty_five_evaluations() -> None:
    made, calls = model(steps=18), []
    made.network.register_forward_pre_hook(lambda *_: calls.append(1))
    made.sample(Request(seeds=(1, 2)))
    assert len(calls) == 35


@settings(max_examples=50, deadline=None)
@given(sigma=st.floats(0.002, 80), data_std=st.floats(0.1, 2.0))
def test_preconditioning_gives_the_network_unit_variance(sigma: float, data_std: float) -> None:
    """Input and target of F have variance 1, and c_skip leaves the least to learn: eqs. 114 to 131 of the paper."""
    s = torch.tensor(sigma, dtype=torch.float64)
    skip, out, scale, _ = precondition(s, data_std)
    assert (scale**2 * (data_std**2 + s**2)).item() == pytest.approx(1)
    left = ((1 - skip) ** 2 * data_std**2 + skip**2 * s**2) / out**2
    assert left.item() == pytest.approx(1)
    nearby = (((1 - skip * 1.01) * data_std) ** 2 + (skip * 1.01 * s) ** 2) / out**2
    assert nearby >= left


def test_an_untrained_model_is_the_gaussian_of_data_std() -> None:
    """Its F is 0, so D is the ideal denoiser of N(0, data_std^2); exact with any number of steps."""
    torch.manual_seed(0)
    made = EDM(dataclasses.replace(TINY, likelihood_steps=2))
    torch.nn.init.zeros_(made.network.unet.out.bias)  # type: ignore[arg-type]
    x = torch.randn(4, 3, 8, 8) * 0.5
    found = made.density(x, None, torch.ones_like(x))
    true = Normal(0, math.hypot(0.5, 0.002)).log_prob(x).flatten(1).sum(1)
    # the ODE ends at N(0, sigma_max^2) and not at N(0, sigma_max^2 + data_std^2): 4e-5 a number
    torch.testing.assert_close(found, true, rtol=0, atol=1e-4 * 192)


def correlated(seed: int = 0, size: int = 4) -> tuple[Tensor, Any]:
    """Return the covariance of a Gaussian on size x size pixels, deviations from .03 to .8, and its denoiser."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(
        torch.randn(size**2, size**2, generator=generator, dtype=torch.float64)
    )
    variance = torch.logspace(math.log10(0.03), math.log10(0.8), size**2).double().square()

    def denoise(x: Tensor, sigma_B: Tensor) -> Tensor:
        share = variance / (variance + sigma_B[:, None].double().square())
        return (((x.flatten(1).double() @ basis) * share) @ basis.T).view(x.shape).float()

    return basis @ variance.diag() @ basis.T, denoise


PATH = likelihood.Path(sigma_min=0.002, sigma_max=80.0, rho=7.0, data_std=0.5, steps=12)


def test_the_likelihood_of_a_correlated_gaussian_is_the_closed_form() -> None:
    """With the exact trace; measured within .005 nats a number in 12 steps."""
    covariance, denoise = correlated()
    eye = torch.eye(16, dtype=torch.float64)
    true = MultivariateNormal(torch.zeros(16).double(), covariance + 0.002**2 * eye)
    x = true.sample((16,)).float().view(16, 1, 4, 4)
    wanted = true.log_prob(x.flatten(1).double()).float()
    exact = dataclasses.replace(PATH, exact_trace=True)
    coarse = likelihood.log_density(denoise, x, x, dataclasses.replace(exact, steps=4))
    found = likelihood.log_density(denoise, x, x, exact)
    fine = likelihood.log_density(denoise, x, x, dataclasses.replace(exact, steps=32))
    assert (found - wanted).abs().max() < 0.01 * 16
    assert (fine - wanted).abs().max() < 0.001 * 16
    assert (coarse - wanted).abs().max() > (found - wanted).abs().max()


def test_hutchinsons_estimate_is_unbiased() -> None:
    """512 probes of one picture; the tolerance is four of the mean's standard errors, some .2 nats."""
    _, denoise = correlated(1)
    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.3
    exact = likelihood.log_density(denoise, x, x, dataclasses.replace(PATH, exact_trace=True))
    coin = torch.rand(512, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    found = likelihood.log_density(
        denoise, x.expand(512, -1, -1, -1), (coin < 0.5).float() * 2 - 1, PATH
    )
    error = found.std() / 512**0.5
    assert found.std() > 0.1
    assert abs(found.mean() - exact[0]) < 4 * error


def test_both_traces_of_a_network_agree_on_average() -> None:
    made = model(channels=1, likelihood_steps=3)
    exact = model(channels=1, likelihood_steps=3, trace="exact")
    x = (torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1).repeat(
        256, 1, 1, 1
    )
    probe = (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5).float() * 2 - 1
    found, wanted = made.density(x, None, probe), exact.density(x[:1], None, probe[:1])
    assert abs(found.mean() - wanted[0]) < 4 * found.std() / 256**0.5 + 0.01


def test_levels_are_dequantised_within_their_bins_and_come_back() -> None:
    made = model(levels=17, channels=1)
    pixels = (torch.arange(17) / 16).view(1, 1, 1, 17)
    x = made._dequantised(pixels.expand(100, -1, -1, -1), None)
    assert torch.equal(((x + 1) / 2 * 17).floor(), (pixels * 16).round().expand(100, -1, -1, -1))
    torch.testing.assert_close((made._pictures(x) * 16).round() / 16, pixels.expand_as(x))


def test_bits_per_dim_are_the_nats_in_bits_and_uniform_noise_costs_its_levels() -> None:
    """256 even levels hold 8 bits, which no model can undercut on average and a broad Gaussian comes near to."""
    torch.manual_seed(0)
    made = EDM(dataclasses.replace(TINY, data_std=3**-0.5)).eval()
    torch.nn.init.zeros_(made.network.unet.out.bias)  # type: ignore[arg-type]
    pixels = torch.randint(256, (64, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    bits = made.measure({"pixels": pixels})["bits_per_dim"]
    nats = -made.log_prob({"pixels": pixels}).mean()
    assert bits.mean() == pytest.approx(nats.item() / (192 * math.log(2)), abs=0.01)
    gaussian = math.log(2 * math.pi * math.e / 3) / 2 / math.log(2) + 7  # 8.25: its entropy's cross
    assert bits.mean() == pytest.approx(gaussian, abs=0.02)
    assert bits.mean() > 8


def test_a_model_that_learned_with_captions_alone_is_measured_with_them() -> None:
    made = model(vocabulary=WORDS, max_words=1, caption_drop=0.0)
    batch = {"pixels": torch.rand(4, 3, 8, 8), "tokens": torch.tensor([[1], [2], [1], [2]])}
    told = made.measure(batch)["bits_per_dim"]
    other = made.measure({**batch, "tokens": 3 - batch["tokens"]})["bits_per_dim"]
    assert not torch.allclose(told, other, atol=1e-3)
    usual = model(vocabulary=WORDS, max_words=1)
    assert torch.equal(
        usual.measure(batch)["bits_per_dim"],
        usual.measure({"pixels": batch["pixels"]})["bits_per_dim"],
    )


def test_rows_joined_at_different_steps_end_as_they_do_alone() -> None:
    made = model(vocabulary=WORDS, max_words=1)
    orders = [
        Request(seeds=(5,), prompts=("dark",), steps=5, guidance=3.0),
        Request(seeds=(6,), prompts=("bright",), steps=2, guidance=1.0),
        Request(seeds=(7,), prompts=("dark",), steps=1, guidance=0.0),
    ]
    alone = [made.sample(order) for order in orders]
    engine = made.step(made.step(made.begin(orders[0])))
    engine = made.step(join([engine, made.begin(orders[1])]))
    engine = join([engine, made.begin(orders[2])])
    while not made.done(engine).all():
        assert 0 <= made.preview(engine).min() <= made.preview(engine).max() <= 1
        engine = made.step(engine)
    assert engine["index"].tolist() == [9, 3, 1]
    torch.testing.assert_close(made.finish(engine), torch.cat(alone), rtol=0, atol=1e-4)
    again = made.step(engine)
    assert all(torch.equal(engine[key], again[key]) for key in engine)


def test_guidance_moves_along_the_line_from_the_unconditional_denoiser() -> None:
    made = model(vocabulary=WORDS, max_words=1)
    moved = {
        scale: made.step(made.begin(Request((1,), prompts=("dark",), steps=9, guidance=scale)))[
            "x0"
        ]
        for scale in (0.0, 1.0, 2.0)
    }
    blank = made.step(made.begin(Request((1,), steps=9)))["x0"]
    torch.testing.assert_close(moved[0.0], blank, rtol=0, atol=1e-5)
    ahead, behind = moved[2.0] - moved[1.0], moved[1.0] - moved[0.0]
    torch.testing.assert_close(ahead, behind, rtol=0, atol=1e-4)
    assert behind.abs().max() > 1e-4
