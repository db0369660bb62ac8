"""VITS: one network that learns latents of sounds, what phonemes say of them, and to speak."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import build, configure, describe
from models.family import Batch
from models.request import Request
from models.text_to_speech.acoustic import Durations
from models.text_to_speech.vits import VITS
from tests.models.families_kit import batch_of, shaken, tiny

VOICES = ("ann", "bob")


def vits(**changes: Any) -> VITS:
    model = tiny("vits", speakers=VOICES, **{"durations": "drawn", **changes})
    assert isinstance(model, VITS)
    return model


def spoken(more: int = 0) -> dict[str, Tensor]:
    """Noise of 40, 25 and 12 frames, in two voices, each of a text that is shorter."""
    length = torch.tensor([640, 400, 190])
    sound = torch.randn(3, 640, generator=torch.Generator().manual_seed(1)) * 0.1
    sound = sound * (torch.arange(640) < length[:, None])
    tokens = vits().encode(["seven", "two", "ewe"])
    assert tokens is not None
    return {
        "sound": F.pad(sound, (0, more)),
        "length": length,
        "tokens": F.pad(tokens, (0, more // 100)),
        "speaker": torch.tensor([0, 1, 1]),
    }


@pytest.mark.parametrize("player", VITS.players)
def test_padding_changes_no_loss(player: str) -> None:
    found = []
    for more in (0, 333):
        model = vits(by_text=0.5)
        torch.manual_seed(3)
        found.append(model(spoken(more), player))
    torch.testing.assert_close(found[1].total, found[0].total, rtol=1e-5, atol=1e-5)
    assert found[1].count == found[0].count == 40 + 25 + 12
    torch.testing.assert_close(dict(found[1].parts), dict(found[0].parts), rtol=1e-4, atol=1e-5)


def test_a_recording_too_short_for_its_phonemes_is_not_learned_from() -> None:
    batch = {**spoken(), "length": torch.tensor([640, 400, 48])}
    for player in VITS.players:
        found = vits()(batch, player)
        assert found.count == 40 + 25
        assert found.total.isfinite()
        nothing = vits()({**batch, "length": torch.full((3,), 32)}, player)
        assert (nothing.count, nothing.total) == (0, 0)


def test_the_flow_goes_back_where_it_came_from_and_keeps_volumes() -> None:
    model: Any = shaken("vits", speakers=VOICES)
    z_BZF = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    given = model.voices(torch.tensor([0, 1])), torch.ones(2, 1, 5)
    there = model.flow(z_BZF, *given)
    assert (there - z_BZF).abs().max() > 0.1
    torch.testing.assert_close(model.flow.back(there, *given), z_BZF, rtol=0, atol=1e-5)
    one = [given[0][:1], given[1][:1]]
    jacobian = torch.autograd.functional.jacobian(
        lambda z: model.flow(z.view(1, 8, 5), *one).flatten(), z_BZF[0].flatten()
    )
    assert torch.linalg.slogdet(jacobian).logabsdet.abs() < 1e-4


def test_the_divergence_is_that_of_the_posterior_from_its_phonemes_gaussians() -> None:
    """With a flow that does nothing the mean over draws is that of two Gaussians in closed form."""
    model, batch = vits(durations="mean"), spoken()
    with torch.no_grad():
        seen = model._seen(batch)
        means = [model._said(batch["tokens"], batch["speaker"], seen)[0]["kl"] for _ in range(200)]
        x_BSW = model.encoder(batch["tokens"], batch["speaker"])
        told = model._prior(x_BSW)
        path_BSF = model._aligned(model.mean(x_BSW), seen, batch["tokens"])
        mean_BZF, log_scale_BZF = (one.mT @ path_BSF for one in told)
        prior = torch.distributions.Normal(mean_BZF, log_scale_BZF.exp())
        posterior = torch.distributions.Normal(seen.mean, seen.log_scale.exp())
        exact_BZF = torch.distributions.kl_divergence(posterior, prior) * seen.inside
    exact_B = exact_BZF.sum((1, 2)) / seen.frames
    torch.testing.assert_close(torch.stack(means).mean(0), exact_B, rtol=0.03, atol=0)


def told(model: VITS, batch: Batch, place: int) -> Tensor:
    """Return how many frames one of the tokens has of each row, as aligned."""
    seen = model._seen(batch)
    x_BSW = model.encoder(batch["tokens"], batch["speaker"])
    path_BSF = model._aligned(model.mean(x_BSW), seen, batch["tokens"])
    return path_BSF.sum(2)[:, place]


def test_every_frame_is_of_a_phoneme_and_uniform_durations_are_a_broken_control() -> None:
    batch = spoken()
    frames, tokens = batch["length"].div(16).ceil(), (batch["tokens"] > 0).sum(1)
    for alignment in ("learned", "uniform"):
        model = vits(alignment=alignment)
        counts = torch.stack([told(model, batch, place) for place in range(tokens.max())], 1)
        assert torch.equal(counts.sum(1), frames)
        if alignment == "uniform":
            said = torch.arange(tokens.max()) < tokens[:, None]
            assert ((counts - (frames / tokens)[:, None]).abs() * said).max() < 1


def test_a_share_of_sounds_is_made_by_their_texts_and_so_texts_learn_of_mels() -> None:
    moved = {}
    for share in (0.0, 1.0):
        model = vits(by_text=share, kl_weight=0.0, adversary=0.0)
        model(spoken()).total.backward()
        assert model.prior.weight.grad is not None
        moved[share] = model.prior.weight.grad[: model.config.latent].abs().max()
        seen = model.posterior.first.weight.grad
        assert seen is not None
        assert bool(seen.any()) == (share == 0)
    assert moved[0.0] == 0 < moved[1.0]


def test_the_critics_turn_gives_the_generator_no_gradient() -> None:
    model = vits()
    model(spoken(), "critic").total.backward()
    assert all(one.grad is None for one in model.player_parameters("generator"))
    assert all(one.grad is not None for one in model.player_parameters("critic"))


@pytest.mark.parametrize(("by_text", "heard"), [(0.0, False), (1.0, True)])
def test_critics_hear_what_texts_tell_in_the_share_in_which_the_generator_plays_it(
    by_text: float, heard: bool
) -> None:
    model: Any = shaken("vits", speakers=VOICES, by_text=by_text)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(model(spoken(), "critic").parts["made"])
        with torch.no_grad():  # a text tells other latents
            model.prior.bias.add_(1.0)
    assert (found[0] != found[1]) == heard


def test_without_an_adversary_there_are_no_critics_and_nothing_is_paid_to_them() -> None:
    model = vits(adversary=0.0)
    assert (len(model.critics), model.turns("critic"), model.turns("generator")) == (0, 0, 1)
    losses = model(spoken(), "generator")
    parts = losses.parts
    rest = sum(parts[name] for name in ("kl", "duration", "mean"))
    torch.testing.assert_close(losses.total, 45 * parts["mel"] + rest)


def asked(**options: Any) -> Request:
    return Request(seeds=(1,), prompts=("ewe and ewe",), **options)


def test_voice_speed_and_seed_are_heeded_and_what_it_cannot_do_is_refused() -> None:
    model: Any = shaken("vits", speakers=VOICES, durations="mean")
    with torch.no_grad():
        model.durations.out.bias.fill_(2.5)  # 11 frames a phoneme
    first, ann, bob = (model.sample(asked(voice=voice)) for voice in (None, "ann", "bob"))
    assert torch.equal(first, ann)
    assert ann.shape != bob.shape or not torch.equal(ann, bob)
    lengths = {speed: model.sample(asked(speed=speed)).shape[1] for speed in (0.5, 1.0, 2.0)}
    assert lengths[0.5] == pytest.approx(2 * lengths[1.0], rel=0.1)
    assert lengths[2.0] == pytest.approx(lengths[1.0] / 2, rel=0.1)
    other = model.sample(dataclasses.replace(asked(), seeds=(2,)))
    assert other.shape == first.shape
    assert not torch.equal(other, first)
    for options, says in (
        ({"voice": "eve"}, "voice: this model has no voice 'eve'; choose one of ann, bob"),
        ({"speed": 5.0}, "speed must be between 0.25 and 4, got 5.0"),
    ):
        with pytest.raises(ValueError, match=f"^{says}"):
            model.sample(asked(**options))
    with torch.no_grad():
        model.durations.out.bias.fill_(6.0)
    with pytest.raises(ValueError, match=r"^prompt: it takes .* frames; at most .* s are made"):
        model.sample(asked())


def test_the_text_is_said_with_real_durations_where_mels_are_measured() -> None:
    """So what a text leaves open of a sound, and not its pace, is what `mel_l1` tells."""
    model = shaken("vits", speakers=VOICES, temperature=0.0, durations="mean")
    batch = batch_of(model, 4)
    before = model.measure(batch)
    with torch.no_grad():
        model.durations.out.bias.add_(1.0)  # type: ignore[union-attr, operator] # VITS has them
    after = model.measure(batch)
    assert torch.equal(before["mel_l1"], after["mel_l1"])
    assert torch.equal(before["mel_error"], after["mel_error"])
    assert not torch.equal(before["length_error"], after["length_error"])


def test_its_settings_come_back_from_json_and_those_of_another_front_end_are_refused() -> None:
    config = configure("vits", "tiny", {"mel": {"hop": 64, "mels": 20}}, {"speakers": VOICES})
    assert config.mel.hop == 64
    document = describe(VITS(config))
    assert build(document).config == config
    document["config"]["front_end"] = "english-arpabet 0"
    with pytest.raises(ValueError, match="front_end: this model reads text by 'english-arpabet 0'"):
        build(document)


def test_durations_are_learned_at_their_mean_and_rounding_leaves_nothing_out() -> None:
    """A sum of geometric means is below the mean of sums: of 1, 1, 1 and 13 frames it has 1.9."""
    torch.manual_seed(0)
    durations, x_BSW = Durations(4, 0.0), torch.ones(4, 1, 4)
    path_BSF = (torch.arange(13) < torch.tensor([1, 1, 1, 13])[:, None, None]).float()
    inside_BS = torch.ones(4, 1).bool()
    optimizer = torch.optim.Adam(durations.parameters(), 0.03)
    for _ in range(150):
        optimizer.zero_grad()
        durations.errors(x_BSW, path_BSF, inside_BS).sum().backward()
        optimizer.step()
    told = durations(x_BSW, inside_BS).exp()
    torch.testing.assert_close(told, torch.full_like(told, 4.0), rtol=0.02, atol=0)
    with torch.no_grad():
        for value in (0.2, 1.0, 2.5, 3.3, 3.5, 7.49):
            durations.out.weight.zero_()
            durations.out.bias.fill_(value).log_()
            frames_1S = durations.frames(torch.ones(1, 9, 4), torch.arange(9)[None] < 8, 1.0)
            assert frames_1S.sum() == math.floor(8 * max(1, value) + 0.5)
            assert frames_1S[0, :8].min() >= 1
            assert frames_1S[0, 8] == 0
