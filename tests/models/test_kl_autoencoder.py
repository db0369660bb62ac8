"""The KL autoencoder's costs by hand, the latents' scale that training follows, and what a forgotten one does."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from models import configure
from models.text_to_image.latent import LatentDiffusion
from models.variational.kl_autoencoder import KLAutoencoder
from tests.models.autoencoder_kit import digits, fitted, found


def autoencoder(**change: object) -> KLAutoencoder:
    torch.manual_seed(0)
    return KLAutoencoder(dataclasses.replace(KLAutoencoder.presets["tiny"], **change))  # type: ignore[arg-type]


def pictures(count: int = 32) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def trained() -> KLAutoencoder:
    """Learns digits as grids of 4x4x4 numbers, a quarter as many places as pixels."""
    model = fitted(autoencoder(hidden=(32,), adversary=0.0), 150, rate=1e-2)
    assert isinstance(model, KLAutoencoder)
    return model


def test_the_cost_is_absolute_error_kl_and_the_critics_score_a_picture() -> None:
    model, x = autoencoder(kl_weight=2.0, adversary=3.0), pictures()
    mean, log_variance = model.posterior(x)
    law = Normal(mean, (log_variance / 2).exp())
    torch.manual_seed(5)
    z = law.rsample()
    torch.manual_seed(5)
    losses = model({"pixels": x})
    drawn = model.decode(z)  # the scale is still 1
    assert model.critic is not None
    score = model.critic(2 * drawn - 1).mean()
    kl = kl_divergence(law, Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    wanted = (drawn - x).abs().sum((1, 2, 3)).mean() + 2 * kl - 3 * score
    torch.testing.assert_close(losses.total, wanted, rtol=1e-5, atol=0)


def test_a_critic_pays_for_real_patches_below_one_and_painted_ones_above_minus_one() -> None:
    """The hinge: ((1 - real)+ + (1 + painted)+) / 2."""
    model, x = autoencoder(), pictures()
    assert model.critic is not None
    last = model.critic[-1]
    assert isinstance(last, torch.nn.Conv2d)
    torch.nn.init.zeros_(last.weight)
    for score, cost in ((0.0, 1.0), (1.0, 1.0), (2.0, 1.5)):  # all patches alike
        with torch.no_grad():
            assert last.bias is not None
            last.bias.fill_(score)
        assert model({"pixels": x}, "critic").total.item() == pytest.approx(cost)


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(0.01, 100), shift=st.floats(-5, 5), parts=st.integers(1, 4))
def test_the_scale_is_one_over_the_deviation_of_what_training_saw(
    factor: float, shift: float, parts: int
) -> None:
    """Whatever it is, and however a step's batch was shared."""
    model, x = autoencoder(), pictures()
    last = model.encoder[-1]
    assert isinstance(last, torch.nn.Conv2d)
    with torch.no_grad():
        assert last.bias is not None
        last.weight *= factor
        last.bias += shift
    for _ in range(3):
        seen = [model({"pixels": part}).seen["powers"] for part in x.chunk(parts)]
        model.follow({"powers": torch.cat(seen)}, torch.ones(()))
    assert model.latents(x).std().item() == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(model.scale, 1 / model.posterior(x)[0].std(), rtol=0.02, atol=0)


def test_a_skipped_step_leaves_the_scale_alone() -> None:
    model = autoencoder()
    model.follow({"powers": torch.tensor([[1.0, 5.0]])}, torch.ones(()))
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert before["scale"].item() == pytest.approx(0.5)
    model.follow({"powers": torch.zeros(1, 2)}, torch.zeros(()))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_what_it_measures_are_decibels_and_the_deviation_of_latents_as_they_leave() -> None:
    model, x = autoencoder(), pictures()
    measured = model.measure({"pixels": x})
    there_and_back = model.decode(model.latents(x))
    error = (there_and_back - x)[0].square().mean()
    assert measured["psnr"][0].item() == pytest.approx(-10 * error.log10().item())
    assert measured["deviation"].mean().item() == pytest.approx(model.latents(x).std().item())


def test_it_learns_to_give_pictures_back_from_latents_of_deviation_one(
    trained: KLAutoencoder,
) -> None:
    """Digits at 20 dB and more; their mean picture is 9 dB."""
    measured = found(trained)
    assert measured["psnr"] > 20
    assert 0.9 < measured["deviation"] < 1.1


def test_a_forgotten_scale_shows_in_what_is_measured(trained: KLAutoencoder) -> None:
    """Pictures are as good as before, so nothing but the deviation tells."""
    forgotten = autoencoder(hidden=(32,), adversary=0.0).eval()
    forgotten.load_state_dict({**trained.state_dict(), "scale": torch.ones(())})
    measured = found(forgotten)
    assert measured["psnr"] == pytest.approx(found(trained)["psnr"], abs=1e-3)
    assert not 0.9 < measured["deviation"] < 1.1


def test_latents_are_the_posteriors_mode_the_same_every_time(trained: KLAutoencoder) -> None:
    pixels = digits()[1][:4]
    latent = trained.latents(pixels)
    assert latent.shape == (4, *trained.config.latent_shape)
    assert torch.equal(latent, trained.latents(pixels))
    torch.testing.assert_close(latent[:1], trained.latents(pixels[:1]))


def test_without_a_weight_there_is_no_critic_and_it_takes_no_turn() -> None:
    model = autoencoder(adversary=0.0)
    assert (model.turns("critic"), model.player_parameters("critic")) == (0, [])
    assert not [name for name in model.state_dict() if name.startswith("critic")]


def test_a_decoded_edit_is_the_picture_itself_outside_of_the_mask(trained: KLAutoencoder) -> None:
    pixels = digits()[1][:4]
    latent = trained.enter("encode", {"pixels": pixels})
    assert torch.equal(latent, trained.latents(pixels))
    drawn = trained.enter("decode", {"latent": latent.flip(0)})
    mask = (torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    edited = trained.enter("decode", {"latent": latent.flip(0), "image": pixels, "mask": mask})
    kept = mask == 0
    assert torch.equal(edited[kept], pixels[kept])
    assert torch.equal(edited[~kept], drawn[~kept])


def test_who_learns_its_latents_takes_them_from_it_and_from_no_other() -> None:
    one, other = autoencoder(hidden=(32,)), autoencoder(hidden=(32,), kl_weight=0.5)
    with torch.no_grad():
        other.scale *= 2
    learner = LatentDiffusion(
        configure("latent-diffusion", "tiny", {}, one.entries["encode"].facts)
    )
    (wanted,) = learner.outputs.values()
    assert one.entries["decode"].inputs["latent"].takes(wanted)
    assert not other.entries["decode"].inputs["latent"].takes(wanted)
    assert learner.inputs["image"].takes(one.entries["encode"].outputs["latent"])
    assert str(learner.inputs["mask"]) == str(one.entries["decode"].inputs["mask"])
