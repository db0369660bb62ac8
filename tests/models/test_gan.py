"""The GAN's losses by hand, its penalties by finite differences, and who learns at whose turn."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.adversarial.gan import GAN, LAZY
from models.family import Batch
from models.request import Request

WORDS = ("one", "two", "three")


def gan(seed: int = 0, **change: object) -> GAN:
    torch.manual_seed(seed)
    return GAN(dataclasses.replace(GAN.presets["tiny"], **change))  # type: ignore[arg-type]


def real(count: int = 6, side: int = 8) -> Batch:
    return {"pixels": torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(7))}


def scores_of(model: GAN, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
    """Return the critic's scores of real pictures and of the fakes that this seed gives."""
    torch.manual_seed(seed)
    noise = torch.randn(len(batch["pixels"]), model.config.latent)
    with torch.no_grad():
        fake = model.generator(noise, None)
        return model.critic(2 * batch["pixels"] - 1, None), model.critic(fake, None)


@pytest.mark.parametrize("loss", ["non-saturating", "wasserstein"])
def test_the_losses_are_the_papers(loss: str) -> None:
    model, batch = gan(loss=loss, r1=0.0, gradient_penalty=0.0), real()
    on_real, on_fake = scores_of(model, batch, 3)
    torch.manual_seed(3)
    critic = model(batch, "critic").total
    torch.manual_seed(3)
    generator = model(batch, "generator").total
    if loss == "wasserstein":
        wanted = on_fake.mean() - on_real.mean(), -on_fake.mean()
    else:
        right = on_real.sigmoid().log().mean() + (1 - on_fake.sigmoid()).log().mean()
        wanted = -right, -on_fake.sigmoid().log().mean()
    torch.testing.assert_close((critic, generator), wanted)


def test_a_generator_that_fools_nobody_still_learns() -> None:
    """The minimax form's gradient would vanish here: e^-20."""
    model = gan()
    with torch.no_grad():
        model.critic.head.bias.fill_(-20.0)
    model(real(), "generator").total.backward()
    weight = model.generator.painter[0].weight  # type: ignore[index]
    assert weight.grad.norm() > 1e-4


def numeric_slopes(model: GAN, x: Tensor, step: float = 1e-5) -> Tensor:
    """Return d score / d pixel (B, C, H, W) by central differences."""
    flat, slopes = x.flatten(1), torch.zeros_like(x).flatten(1)
    for pixel in range(flat.shape[1]):
        shift = torch.zeros_like(flat)
        shift[:, pixel] = step
        high, low = (
            model.critic((flat + sign * shift).view_as(x), None).detach() for sign in (1, -1)
        )
        slopes[:, pixel] = (high - low) / (2 * step)
    return slopes.view_as(x)


def exact(**change: object) -> GAN:
    """A model in double precision whose scores are no step functions: head outputs are not cut to float."""
    model = gan(image_size=4, **change).double()
    model.critic.forward = lambda x, _: model.critic.head(model.critic.viewer(x))[:, 0]  # type: ignore[method-assign]
    return model


def penalty_by_hand(model: GAN, batch: Batch) -> Tensor:
    x = 2 * batch["pixels"] - 1
    if model.config.loss == "non-saturating":
        squares = numeric_slopes(model, x).square().flatten(1).sum(1)
        return LAZY * model.config.r1 / 2 * squares.mean()
    torch.manual_seed(3)
    noise = torch.randn(len(x), model.config.latent, dtype=torch.float64)
    with torch.no_grad():
        fake = model.generator.painter(noise).tanh()
    share = torch.rand(len(x), 1, 1, 1, dtype=torch.float64)
    norms = numeric_slopes(model, share * x + (1 - share) * fake).flatten(1).norm(dim=1)
    return model.config.gradient_penalty * (norms - 1).square().mean()


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("loss", ["non-saturating", "wasserstein"])
def test_a_penalty_and_its_gradient_are_those_of_finite_differences(loss: str) -> None:
    """Second derivatives by differences of differences; the scores are piecewise linear in pixels and weights."""
    model, batch = exact(loss=loss), real(3, 4)

    def penalty() -> Tensor:
        torch.manual_seed(3)
        x = 2 * batch["pixels"] - 1
        with torch.no_grad():
            fake = model.generator.painter(torch.randn(len(x), model.config.latent)).tanh()
        found = model._penalty(x, fake, None)
        assert found is not None
        return found

    torch.testing.assert_close(penalty().detach(), penalty_by_hand(model, batch), rtol=1e-6, atol=0)
    penalty().backward()
    weight = model.critic.viewer[1].weight  # type: ignore[index]
    for place in ((0, 0), (5, 3), (17, 11)):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * 1e-5
            ends.append(float(penalty_by_hand(model, batch)))
            with torch.no_grad():
                weight[place] -= sign * 1e-5
        assert float(weight.grad[place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3)


def test_r1_comes_at_every_sixteenth_step_however_many_parts_a_step_has() -> None:
    model, batch, due = gan(), real(), []
    for step in range(LAZY + 2):
        model.steps_taken = step
        due.append([float(model(batch, "critic").parts["penalty"]) > 0 for _ in range(2)])
    assert [step for step, is_due in enumerate(due) if is_due == [True, True]] == [0, LAZY]
    assert due.count([False, False]) == LAZY


def test_judging_does_not_penalise() -> None:
    """Validation runs without gradients, where no penalty can be taken."""
    model = gan(loss="wasserstein").eval()
    with torch.no_grad():
        assert model(real(), "critic").parts["penalty"] == 0


@pytest.mark.parametrize("loss", ["non-saturating", "wasserstein"])
def test_the_critics_turn_gives_the_generator_no_gradient(loss: str) -> None:
    model = gan(loss=loss)
    model(real(), "critic").total.backward()
    assert all(p.grad is None for p in model.player_parameters("generator"))
    assert all(p.grad is not None for p in model.player_parameters("critic"))


def test_a_generators_part_is_as_large_as_one_of_the_critics() -> None:
    model = gan(critic_steps=3)
    seen: list[int] = []
    model.critic.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    model(real(12), "generator")
    assert seen == [4]
    assert (model.turns("critic"), model.turns("generator")) == (3, 1)


def test_one_pictures_score_does_not_depend_on_the_others() -> None:
    """A batch norm in the critic would break both penalties, which are of one picture's gradient."""
    for network in ("mlp", "dcgan"):
        model = gan(network=network, hidden=(16, 32))
        x = (2 * real()["pixels"] - 1).requires_grad_()
        (slopes,) = torch.autograd.grad(model.critic(x, None)[2], x)
        others = torch.arange(len(x)) != 2
        assert slopes[others].abs().max() == 0 < slopes[2].abs().max()


@pytest.mark.parametrize("side", [8, 28, 32])
def test_dcgans_networks_fit_the_usual_sides(side: int) -> None:
    model = gan(network="dcgan", image_size=side, hidden=(8, 16)).eval()
    assert model.sample(Request(seeds=(1, 2))).shape == (2, 1, side, side)
    assert model(real(4, side), "critic").total.isfinite()


def captioned(count: int = 240) -> Batch:
    """Pictures that are dark, grey or light, as their captions say."""
    kinds = torch.arange(count) % 3
    pixels = (0.1 + 0.4 * kinds)[:, None, None, None].expand(count, 1, 8, 8)
    return {"pixels": pixels + 0.05 * torch.rand(count, 1, 8, 8), "tokens": kinds[:, None] + 1}


def learned(model: GAN, batch: Batch, steps: int) -> GAN:
    players = [
        (
            name,
            torch.optim.Adam(model.player_parameters(name), lr=3e-3, betas=(0.0, 0.99), fused=True),
        )
        for name in model.players
    ]
    for _ in range(steps):
        for name, optimizer in players:
            optimizer.zero_grad()
            model(batch, name).total.backward()
            optimizer.step()
    return model.eval()


def test_a_caption_says_what_is_drawn() -> None:
    """The broken control: a critic without the caption's projection lets the generator ignore it."""
    errors = {}
    for heeded in (True, False):
        torch.manual_seed(0)
        model = gan(text="caption", vocabulary=WORDS, hidden=(64,))
        if not heeded:
            assert model.critic.words is not None
            with torch.no_grad():
                model.critic.words.weight.zero_()
            model.critic.words.weight.requires_grad_(requires_grad=False)
            model.player_parameters = lambda player, m=model: [  # type: ignore[method-assign,misc]
                p for p in getattr(m, player).parameters() if p.requires_grad
            ]
        learned(model, captioned(), 250)
        prompts = WORDS * 20
        drawn = model.sample(Request(seeds=tuple(range(60)), prompts=prompts))
        wanted = torch.tensor([0.125, 0.525, 0.925]).repeat(20)
        errors[heeded] = float((drawn.mean((1, 2, 3)) - wanted).abs().mean())
    assert errors[True] < 0.1 < errors[False]


def test_precision_does_not_touch_the_penalty() -> None:
    """bfloat16 would give a gradient's square three digits at best."""
    model, batch = gan(), real()
    exactly = model(batch, "critic").parts["penalty"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(batch, "critic").parts["penalty"]
    assert F.mse_loss(exactly, rounded) == 0


def test_dcgan_is_normalised_everywhere_but_at_the_generators_end_and_the_critics_start() -> None:
    """Radford et al. 2016, section 3, with weights from N(0, .02): 50,000 weights leave an error of .0001."""
    config = dataclasses.replace(
        GAN.presets["dcgan"], norm="batch", r1=0.0, hidden=(32, 64, 128), image_size=32
    )
    torch.manual_seed(0)
    model = GAN(config)
    kinds = [
        [type(layer).__name__ for layer in part]
        for part in (model.generator.painter, model.critic.viewer)
    ]  # type: ignore[union-attr]
    middle = ["BatchNorm2d", "ReLU", "ConvTranspose2d"]
    assert kinds[0] == ["Linear", "Unflatten", *middle * 3]
    assert kinds[1] == [
        "Conv2d",
        "LeakyReLU",
        *["Conv2d", "BatchNorm2d", "LeakyReLU"] * 2,
        "Flatten",
    ]
    weights = [p.flatten() for name, p in model.named_parameters() if p.dim() > 1]
    assert torch.cat(weights).std().item() == pytest.approx(0.02, rel=0.02)
    for player in GAN.players:
        model(real(8, 32), player).total.backward()
    with pytest.raises(ValueError, match="norm 'batch' needs network 'dcgan' and no penalty"):
        dataclasses.replace(config, r1=1.0)


def test_a_version_from_when_passes_were_counted_still_loads() -> None:
    model = GAN(GAN.presets["tiny"])
    GAN(GAN.presets["tiny"]).load_state_dict({**model.state_dict(), "passes": torch.tensor(3)})
