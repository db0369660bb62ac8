"""Matcha: what it learns of sounds and their phonemes, and how it speaks."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import build, configure, describe
from models.ports import Misfit, Node, Port, check
from models.request import Request
from models.text_to_speech.acoustic import mels_of
from models.text_to_speech.front_end import phonemes
from models.text_to_speech.matcha import Matcha, MatchaConfig
from tests.models.families_kit import batch_of, shaken, tiny

HERTZ = {"IY": 400.0, "UW": 1200.0}
TWO = MatchaConfig(width=32, layers=1, dilations=(1, 2), dropout=0.0, speakers=("ann", "bob"))


def said(count: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Sounds of "e" and "oo" in turn, a tone a phoneme of 5 to 25 frames each, and where the second one begins.

    The mark at the end and the beginning are two frames of silence each.
    """
    generator = torch.Generator().manual_seed(seed)
    first_B, second_B = torch.randint(5, 26, (2, count), generator=generator)
    sound_BT = torch.zeros(count, 54 * 80)
    for row, (first, second) in enumerate(zip(first_B.tolist(), second_B.tolist(), strict=True)):
        hertz = torch.tensor([HERTZ["IY"]] * first * 80 + [HERTZ["UW"]] * second * 80)
        tone_T = 0.5 * (2 * torch.pi * (hertz / 8000).cumsum(0)).sin()
        sound_BT[row, 160 : 160 + len(tone_T)] = tone_T
    batch = {
        "sound": sound_BT,
        "length": (4 + first_B + second_B) * 80,
        "tokens": Matcha(TWO).encode(["ewe"] * count),
        "speaker": torch.arange(count) % 2,
    }
    return batch, 2 + first_B


def trained(config: MatchaConfig, steps: int = 40) -> Matcha:
    torch.manual_seed(0)
    model = Matcha(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        found = model(said(8, step)[0])
        optimizer.zero_grad()
        found.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.follow(found.seen, torch.ones(()))
    return model.eval()


@pytest.fixture(scope="module")
def speaker() -> Matcha:
    return trained(TWO)


def test_it_finds_by_itself_which_frames_each_phoneme_has(speaker: Matcha) -> None:
    batch, begins_B = said(16, 999)
    found_B = begun(speaker, batch)
    assert (found_B - begins_B).abs().float().mean() < 1.5


def begun(model: Matcha, batch: dict[str, Tensor]) -> Tensor:
    """Return the frame at which each row's second vowel begins, as aligned."""
    log_mel_BMF, frames_B, _ = mels_of(model.config.mel, batch)
    mean_M1, spread_M1 = model._scale()
    mean_BSM = model.mean(model.encoder(batch["tokens"], batch["speaker"]))
    given = (mean_BSM, (log_mel_BMF - mean_M1) / spread_M1, batch["tokens"], frames_B)
    place = phonemes("ewe").index("UW")
    return model._aligned(*given).sum(2)[:, :place].sum(1).long()


def test_uniform_durations_are_a_broken_control_with_a_larger_error(speaker: Matcha) -> None:
    uniform = trained(dataclasses.replace(TWO, alignment="uniform"))
    batch, _ = said(32, 999)
    ours, broken = (model.measure(batch)["mel_l1"].mean() for model in (speaker, uniform))
    assert ours < broken - 0.2


def test_padding_changes_no_loss() -> None:
    model: Any = tiny("matcha", speakers=("ann", "bob"), mel=TWO.mel)
    batch, _ = said(4)
    padded = {
        **batch,
        "sound": F.pad(batch["sound"], (0, 1600)),
        "tokens": F.pad(batch["tokens"], (0, 3)),
    }
    losses = []
    for one in (batch, padded):
        torch.manual_seed(1)
        losses.append(model(one))
    torch.testing.assert_close(losses[1].total, losses[0].total, rtol=1e-5, atol=0)
    assert losses[1].count == losses[0].count == (batch["length"] // 80).sum()
    for name, part in losses[0].parts.items():
        torch.testing.assert_close(losses[1].parts[name], part, rtol=1e-5, atol=1e-6)


def test_a_recording_too_short_for_its_phonemes_is_not_learned_from() -> None:
    model: Any = tiny("matcha", speakers=("ann", "bob"), mel=TWO.mel)
    batch, _ = said(4)
    short = {**batch, "length": torch.cat([batch["length"][:3], torch.tensor([160])])}
    found = model(short)
    assert found.count == (batch["length"][:3] // 80).sum()
    assert found.total.isfinite()
    nothing = model({**batch, "length": torch.full((4,), 160)})
    assert (nothing.count, nothing.total) == (0, 0)


def test_mels_are_scaled_by_all_that_were_seen() -> None:
    model: Any = tiny("matcha", speakers=("ann", "bob"), mel=TWO.mel)
    for seed in range(3):
        model.follow(model(said(16, seed)[0]).seen, torch.ones(()))
    mean_M1, spread_M1 = model._scale()
    log_mel_BMF, _, inside_B1F = mels_of(model.config.mel, said(64, 7)[0])
    frames_MX = log_mel_BMF.transpose(0, 1)[:, inside_B1F[:, 0] > 0]
    torch.testing.assert_close(mean_M1[:, 0], frames_MX.mean(1), rtol=0, atol=0.35)
    torch.testing.assert_close(spread_M1[:, 0], frames_MX.std(1), rtol=0.15, atol=0)


def asked(**options: Any) -> Request:
    return Request(seeds=(1,), prompts=("ewe",), **options)


def test_twice_the_speed_is_half_as_long_and_seconds_are_those_of_what_was_learned(
    speaker: Matcha,
) -> None:
    frames = {speed: speaker.sample(asked(speed=speed)).shape[2] for speed in (0.5, 1.0, 2.0)}
    assert frames[1.0] == pytest.approx(34, abs=8)  # two vowels of 15 on average, and silence
    assert frames[0.5] == pytest.approx(2 * frames[1.0], abs=3)
    assert frames[2.0] == pytest.approx(frames[1.0] / 2, abs=3)


def test_the_levels_that_a_sampler_visits_lie_within_those_trained() -> None:
    model, seen = shaken("matcha"), list[Tensor]()
    model.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    batch = batch_of(model, 50)
    with torch.no_grad():
        for _ in range(80):
            model.train()(batch)
    trained = torch.cat(seen)
    for steps in (1, 2, 18, 100):
        seen.clear()
        model.eval().sample(asked(steps=steps))
        visited = torch.cat(seen)
        assert (visited <= trained.amax(0) * (1 + 1e-5)).all()
        assert (visited >= trained.amin(0) * (1 - 1e-5)).all()


def test_voices_and_pitch_are_heeded_and_a_voice_nobody_has_is_refused() -> None:
    model: Any = shaken("matcha")
    model = Matcha(dataclasses.replace(model.config, speakers=("ann", "bob"))).eval()
    ann, bob, first = (model.begin(asked(voice=voice))["said"] for voice in ("ann", "bob", None))
    assert torch.equal(ann, first)
    assert ann.shape != bob.shape or not torch.equal(ann, bob)
    with torch.no_grad():
        model.variances.out.bias[1] = 9.0  # all have a voice
    low, high = (model.begin(asked(pitch=pitch))["said"] for pitch in (0.0, 3.0))
    assert not torch.equal(low, high)
    for options, says in (
        ({"voice": "eve"}, "voice: this model has no voice 'eve'; choose one of ann, bob"),
        ({"speed": 5.0}, "speed must be between 0.25 and 4, got 5.0"),
        ({"pitch": 13.0}, "pitch must be between -12 and 12, got 13.0"),
        ({"steps": 0}, "steps must be between 1 and 100, got 0"),
    ):
        with pytest.raises(ValueError, match=f"^{says}"):
            model.begin(asked(**options))


def test_a_text_that_takes_too_long_is_refused() -> None:
    model: Any = shaken("matcha")
    with torch.no_grad():
        model.durations.out.bias.fill_(5.0)
    with pytest.raises(ValueError, match=r"^prompt: it takes .* frames; at most .* s are made"):
        model.sample(Request(seeds=(1,), prompts=("ewe and ewe and ewe and ewe and ewe",)))


def test_a_vocoder_of_other_mels_is_refused_before_anything_is_drawn() -> None:
    model = tiny("matcha")
    other = dataclasses.replace(model.config.mel, hop=32).space
    takes = {"mel": Port("mel", (8, None), other)}
    nodes = {
        "acoustic": Node(model.inputs, model.outputs, {"text": "request.text"}),
        "vocoder": Node(
            takes, {"sound": Port("sound", (None,), "8000 Hz")}, {"mel": "acoustic.mel"}
        ),
    }
    with pytest.raises(Misfit, match=r"vocoder takes mel .* as mel, but acoustic\.mel is mel"):
        check(nodes, "vocoder.sound")


def test_mel_settings_are_part_of_the_config_and_come_back_from_json() -> None:
    config = configure("matcha", "tiny", {"mel": {"hop": 64, "mels": 20}}, {"speakers": ("ann",)})
    assert config.mel.hop == 64
    assert build(describe(Matcha(config))).config == config
