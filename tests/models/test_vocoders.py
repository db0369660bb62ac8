"""Vocoders: losses that padding does not change, sounds that neighbours do not, and mels that must be the same ones."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.family import Batch, Family
from models.parts.mel import Mel
from models.ports import Misfit, Node, Port, check
from models.request import Request
from models.text_to_speech.critics import inside
from models.text_to_speech.vocoder import Vocoder, mel_error, spectra_apart
from tests.models.families_kit import counted, shaken, tiny

GAMES = ("hifi-gan", "vocos")
VOCODERS = (*GAMES, "griffin-lim")


def spoken(samples: int = 400, more: int = 0) -> Batch:
    """Return noise as speech comes: one row of all samples, one of half, one shorter than a segment, then nothing."""
    length = torch.tensor([samples, samples // 2, 70])
    sound = torch.randn(3, samples, generator=torch.Generator().manual_seed(1)) * 0.1
    sound = sound * (torch.arange(samples) < length[:, None])
    return {"sound": F.pad(sound, (0, more)), "length": length}


def game(name: str, **changes: object) -> Vocoder:
    model = tiny(name, **changes)
    assert isinstance(model, Vocoder)
    return model


@pytest.mark.parametrize("name", VOCODERS)
def test_more_padding_changes_no_loss(name: str) -> None:
    model: Family = tiny(name)
    for player in model.players:
        found = []
        for more in (0, 333):
            torch.manual_seed(3)
            losses = model(spoken(more=more), player)
            found.append((losses.total.item(), float(losses.count)))
        assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_counts_do_not_depend_on_padding_either() -> None:
    models = [counted(tiny("griffin-lim"), spoken(more=more)) for more in (0, 333)]
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict())


def test_as_many_places_have_sound_as_frames_are_there() -> None:
    for size in range(1, 300):
        frames = torch.arange(1, size + 1)
        assert torch.equal(inside(frames / size, size).sum(1).long(), frames)
        assert torch.equal(inside(frames / size, 256 * size).sum(1).long(), 256 * frames)


def test_sound_there_and_back_is_judged_alike_alone_and_beside_longer_rows() -> None:
    model = shaken("griffin-lim")
    mel, beside = model.config.mel, spoken(208)
    beside["length"][2] = 7 * mel.hop  # 7 of 13 frames
    beside["sound"][2, 7 * mel.hop :] = 0
    alone = {"sound": beside["sound"][2:, : 7 * mel.hop], "length": beside["length"][2:]}
    found = mel_error(model, mel, beside)[2:]
    torch.testing.assert_close(found, mel_error(model, mel, alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", GAMES)
def test_a_loss_is_the_mean_of_its_rows_each_weighed_by_its_frames(name: str) -> None:
    model, batch = game(name, segment=40), spoken()  # whole rows: nothing is drawn
    for player in model.players:
        together = model(batch, player)
        alone = [
            model({key: value[row : row + 1] for key, value in batch.items()}, player)
            for row in range(3)
        ]
        counts = torch.stack([torch.as_tensor(one.count) for one in alone])
        totals = torch.stack([one.total for one in alone])
        torch.testing.assert_close(together.total, (totals * counts).sum() / counts.sum())
        assert together.count == counts.sum() == model.config.mel.frames_of(batch["length"]).sum()


def test_an_error_is_a_share_of_all_magnitudes_however_rows_are_shared() -> None:
    model, batch = tiny("griffin-lim"), spoken()
    together = model(batch)
    alone = [model({key: value[row : row + 1] for key, value in batch.items()}) for row in range(3)]
    count = sum(one.count for one in alone)
    shared = sum(one.total * one.count for one in alone) / count
    assert float(count) == pytest.approx(float(together.count))
    assert float(shared) == pytest.approx(float(together.total))


def test_the_critics_game_is_of_least_squares() -> None:
    model = game("hifi-gan", segment=25, mel_weight=0.0, feature_weight=0.0)
    batch: Batch = {key: rows[:1] for key, rows in spoken().items()}
    real, made = batch["sound"], model.generator(model.given_of(batch)["mel"])
    on_real, on_made = ([critic(one)[-1] for critic in model.critics] for one in (real, made))
    pairs = zip(on_real, on_made, strict=True)
    critic = sum((1 - a).square().mean() + b.square().mean() for a, b in pairs)
    generator = sum((1 - one).square().mean() for one in on_made)
    for player, wanted in (("critic", critic), ("generator", generator)):
        assert isinstance(wanted, Tensor)
        torch.testing.assert_close(model(batch, player).total, wanted)


@pytest.mark.parametrize("name", GAMES)
def test_a_generator_without_adversary_has_no_critics_and_learns_mels_alone(name: str) -> None:
    model = game(name, adversary=0.0)
    assert (len(model.critics), model.turns("critic"), model.turns("generator")) == (0, 0, 1)
    losses = model(spoken(), "generator")
    torch.testing.assert_close(losses.total, 45 * losses.parts["mel"])


@pytest.mark.parametrize("name", GAMES)
def test_spectra_are_compared_at_three_resolutions_whatever_the_padding(name: str) -> None:
    model = game(name, adversary=0.0, mel_weight=0.0, spectra_weight=2.0)
    found = []
    for more in (0, 333):
        torch.manual_seed(3)
        losses = model(spoken(more=more), "generator")
        torch.testing.assert_close(losses.total, 2 * losses.parts["spectra"])
        found.append(losses.total.item())
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    sound, whole = spoken()["sound"][:1], torch.ones(1)
    assert spectra_apart(64, sound, sound, whole).item() == 0
    # half as loud is .5 off and log 2, at every resolution
    wanted = 0.5 + math.log(2)
    assert spectra_apart(64, sound, sound / 2, whole).item() == pytest.approx(wanted, abs=1e-2)


@pytest.mark.parametrize("name", VOCODERS)
def test_a_row_sounds_alike_alone_and_beside_a_longer_one(name: str) -> None:
    model = shaken(name)
    mel: Mel = model.config.mel
    given = model.given_of(spoken(1600))["mel"]
    together = model.sample(Request(seeds=(1, 2, 3), given={"mel": given}))
    assert together.shape == (3, 1600)
    for row, frames in enumerate(mel.lengths(given).tolist()):
        alone = model.sample(Request(seeds=(1,), given={"mel": given[row : row + 1, :, :frames]}))
        end = frames * mel.hop
        torch.testing.assert_close(together[row, :end], alone[0], atol=1e-5, rtol=0)
        assert not together[row, end:].any()


@pytest.mark.parametrize("name", GAMES)
def test_a_segment_is_heard_as_it_was_seen(name: str) -> None:
    """What the critics hear of a row begins at the frame that the generator begins with, inside the row."""
    model = game(name)
    ramp = torch.linspace(0.1, 0.9, 400)[None].expand(8, -1)
    size, hop = model.config.segment, model.config.mel.hop
    length = torch.full((8,), 300)
    sound = ramp * (torch.arange(400) < 300)
    torch.manual_seed(0)
    mel, heard, frames = model._segments({"sound": sound, "length": length})
    assert mel.shape[2] == size
    assert (frames == size).all()
    starts = ((heard[:, 0] - 0.1) / 0.8 * 399).round().long()
    assert len(set(starts.tolist())) > 3
    assert (starts % hop == 0).all()
    assert (starts + size * hop <= math.ceil(300 / hop) * hop).all()
    whole = model.config.mel.log_mel(sound, length)
    for row, start in enumerate((starts // hop).tolist()):
        torch.testing.assert_close(mel[row], whole[row, :, start : start + size])


@pytest.mark.parametrize("name", VOCODERS)
def test_mels_of_other_settings_are_refused_before_anything_is_drawn(name: str) -> None:
    model = tiny(name)
    other = dataclasses.replace(model.config.mel, high_hz=3800.0)
    acoustic = Node(
        inputs={"text": Port("text")}, outputs={"mel": other.port}, wires={"text": "request.text"}
    )
    vocoder = Node(inputs=model.inputs, outputs=model.outputs, wires={"mel": "acoustic.mel"})
    with pytest.raises(Misfit, match=rf"takes mel 8x\* of {model.config.mel.space} as mel"):
        check({"acoustic": acoustic, "vocoder": vocoder}, "vocoder.sound")
    with pytest.raises(ValueError, match="mel: this model takes mel 8x"):
        model.sample(Request(seeds=(1,), given={"mel": torch.zeros(1, 9, 4)}))
