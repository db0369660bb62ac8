"""WaveNet against its definition: it sums to one, sees all samples before and no more, and draws what it says."""

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import build, describe
from models.autoregressive.wavenet import CHUNK, WaveNet
from models.family import Rows
from models.parts.levels import drawn, levels_of, sound_of
from models.parts.mel import PRESETS
from models.parts.rows import join, take
from models.request import Request
from tests.models.densities_kit import WORDS, sharp


def tone(*hertz: float, seconds: float = 0.05) -> Tensor:
    time_T = torch.arange(round(8000 * seconds)) / 8000
    return torch.stack([0.5 * torch.sin(2 * math.pi * one * time_T) for one in hertz])


def test_a_long_sound_that_is_rated_in_parts_is_rated_as_a_whole() -> None:
    model = sharp("wavenet", levels=16, vocabulary=WORDS, max_words=1)
    generator = torch.Generator().manual_seed(0)
    sound = torch.rand(2, 2 * CHUNK + 17, generator=generator) * 2 - 1
    tokens = model.encode(WORDS[:2])
    assert tokens is not None
    length = torch.tensor([2 * CHUNK + 17, CHUNK + 1])
    level = levels_of(sound, 16)
    with torch.no_grad():
        logits = model.logits(level, tokens)
    nats = torch.nn.functional.cross_entropy(logits.mT, level, reduction="none").double()
    inside = torch.arange(sound.shape[1]) < length[:, None]
    found = model.log_prob({"sound": sound, "length": length, "tokens": tokens})
    torch.testing.assert_close(found.double(), -(nats * inside).sum(1), rtol=1e-5, atol=0)


@settings(max_examples=50, deadline=None)
@given(levels=st.sampled_from([2, 16, 256]), x=st.floats(-1, 1, width=32))
def test_companding_is_symmetric_and_as_fine_as_its_levels(levels: int, x: float) -> None:
    sound = torch.tensor(x)
    level = levels_of(sound, levels)
    assert 0 <= level <= levels - 1
    back = sound_of(level, levels)
    mu = levels - 1
    slope = math.log1p(mu) * (1 + mu * max(abs(x), abs(back.item()))) / mu  # of a level's width
    assert abs(back.item() - x) <= slope / mu + 1e-6
    mirrored = int(levels_of(-sound, levels))
    assert abs(int(level) + mirrored - mu) <= 1  # where a level ends, rounding is upwards for both


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_every_level_is_its_own_sound_and_mirrors_another(levels: int) -> None:
    every = torch.arange(levels)
    sound = sound_of(every, levels)
    assert torch.equal(levels_of(sound, levels), every)
    torch.testing.assert_close(sound.flip(0), -sound, rtol=0, atol=1e-6)
    assert sound.min() == -1
    assert sound.max() == 1
    assert (sound.diff() > 0).all()


def first_changes(model: WaveNet, places: Sequence[int], samples: int = 60) -> list[list[int]]:
    """Where the logits change when the sample at a place does."""
    generator = torch.Generator().manual_seed(0)
    level_BT = torch.randint(256, (1, samples), generator=generator)
    found = []
    with torch.no_grad():
        before = model.logits(level_BT)
        for place in places:
            other = level_BT.clone()
            other[0, place] = 255 - other[0, place]
            moved = (model.logits(other) - before).abs().amax(2)[0] > 0
            found.append(moved.nonzero()[:, 0].tolist())
    return found


def test_a_logit_sees_the_whole_field_before_it_and_nothing_else() -> None:
    model = sharp("wavenet")
    field = model.config.receptive_field
    assert field == 2 * (1 + 2 + 4) + 1
    for place, moved in zip((0, 20, 44), first_changes(model, (0, 20, 44)), strict=True):
        assert moved == list(range(place + 1, place + 1 + field))


def ended(model: WaveNet, rows: Rows) -> Rows:
    while not model.done(rows).all():
        rows = model.step(rows)
    return rows


def test_rows_of_other_lengths_and_at_other_steps_share_a_batch() -> None:
    """The arithmetic of a row depends on the batch's size in the last bits, hence 16 levels and these seeds."""
    model = sharp("wavenet", vocabulary=WORDS, max_words=1, levels=16)
    long = model.begin(Request(seeds=(1,), prompts=("one",), seconds=0.03))
    short = model.begin(Request(seeds=(2, 3), prompts=("two", "three"), seconds=0.0125))
    rows = ended(model, join([model.step(long), short]))
    together = model.finish(rows)
    assert together.shape == (3, 240)
    assert (together[1:, 100:] == 0).all()
    for row, alone in ((take(rows, [0]), long), (take(rows, [1, 2]), short)):
        assert torch.equal(model.finish(row), model.finish(ended(model, alone)))
    assert torch.equal(model.finish(model.step(rows)), together)  # what is done stays as it is


def test_a_preview_is_the_beginning_of_the_sound() -> None:
    model = sharp("wavenet")
    rows = model.step(model.begin(Request(seeds=(1, 2))))
    early, whole = model.preview(rows), model.finish(ended(model, rows))
    step = model.config.step
    assert torch.equal(early[:, :step], whole[:, :step])
    assert (early[:, step:] == 0).all()
    assert early.shape == whole.shape == (2, 400)


def test_a_sound_is_as_long_as_was_asked_for() -> None:
    model = sharp("wavenet")
    assert model.sample(Request(seeds=(1,), seconds=0.0101)).shape == (1, 81)
    with pytest.raises(ValueError, match=r"seconds must be above 0 and at most 60\.0, got 61"):
        model.sample(Request(seeds=(1,), seconds=61))


def test_silence_after_the_length_is_not_scored() -> None:
    model = sharp("wavenet")
    sound = tone(440.0)
    longer = torch.cat([sound, torch.zeros(1, 100)], 1)
    batch = {"sound": longer, "length": torch.tensor([400])}
    assert torch.equal(model.log_prob(batch), model.log_prob({"sound": sound}))
    bits = model.measure(batch)["bits_per_sample"]
    expected = -model.log_prob(batch) / (400 * math.log(2))
    torch.testing.assert_close(bits, expected, rtol=0, atol=1e-6)


def test_the_loss_is_of_windows_inside_the_length_with_all_that_comes_before() -> None:
    """On average over the windows it is the mean of the exact nats: of sounds that are all as likely as another."""
    model = sharp("wavenet", window=60)
    sound = torch.cat([tone(300.0, seconds=0.02), torch.ones(1, 90)], 1)  # ones are never heard
    batch = {"sound": sound, "length": torch.tensor([160])}
    with torch.no_grad():
        nats = torch.nn.functional.cross_entropy(
            model.logits(levels_of(sound[:, :160], 256)).mT,
            levels_of(sound[:, :160], 256),
            reduction="none",
        )[0]
        field = model.config.receptive_field
        begins = [nats[:60].mean()] + [nats[s + field : s + 60].mean() for s in range(1, 101)]
        torch.manual_seed(0)
        for _ in range(30):
            loss = model(batch).total
            assert min(abs(float(loss - one)) for one in begins) < 1e-4


def test_whole_short_sounds_are_learned() -> None:
    model = sharp("wavenet")
    batch = {"sound": tone(440.0, 300.0)[:, :150], "length": torch.tensor([150, 20])}
    nats = -model.log_prob(batch).sum() / 170
    assert model(batch).total.item() == pytest.approx(nats.item(), abs=1e-4)


def coins(seed: int, count: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1 - 2 * torch.randint(2, (count, 200), generator=generator).float()


def bits_of_coins(*, shift: bool) -> float:
    """Bits a sample of unheard fair coins, after 40 steps on others."""
    torch.manual_seed(0)
    model = WaveNet(dataclasses.replace(WaveNet.presets["tiny"], levels=2, shift=shift))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(40):
        optimizer.zero_grad()
        model({"sound": coins(step)}).total.backward()
        optimizer.step()
    return model.eval().measure({"sound": coins(1000)})["bits_per_sample"].mean().item()


def test_nothing_foretells_a_coin_but_a_model_that_sees_itself() -> None:
    assert bits_of_coins(shift=True) > 0.99
    assert bits_of_coins(shift=False) < 0.1


@pytest.mark.parametrize(
    "asked", [{"temperature": 0.5}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.9}]
)
def test_what_would_change_how_likely_a_level_is_is_refused_and_not_ignored(
    asked: dict[str, float],
) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(asked))}: .* leave it out, got"):
        sharp("wavenet").sample(Request(seeds=(1,), **asked))  # type: ignore[arg-type]
    sharp("wavenet").begin(Request(seeds=(1,), temperature=1, top_p=1))


def test_a_version_from_when_there_were_frames_can_still_be_built() -> None:
    """Nothing ever made them, so every version has none."""
    document = describe(sharp("wavenet"))
    older = {**document, "config": {**document["config"], "features": 0, "hop": 80}}
    assert describe(build(older)) == document


def vocoder(**changes: object) -> WaveNet:
    """Return a tiny WaveNet that is told mels, with every weight at work."""
    return sharp("wavenet", text="none", mel=PRESETS["tiny"], levels=16, **changes)


def mels(*frames: int) -> Tensor:
    """Return mels of so many frames a row, silence behind them."""
    mel = PRESETS["tiny"]
    generator = torch.Generator().manual_seed(2)
    found = torch.randn(len(frames), mel.mels, max(frames), generator=generator) - 4
    inside = torch.arange(max(frames)) < torch.tensor(frames)[:, None]
    return torch.where(inside[:, None], found, mel.floor)


def test_a_sample_is_told_the_frame_of_its_hop_and_no_other() -> None:
    model, hop = vocoder(), PRESETS["tiny"].hop
    level = torch.randint(0, 16, (1, 4 * hop), generator=torch.Generator().manual_seed(0))
    frames = mels(4).requires_grad_()
    heard = model._heard(frames, torch.arange(4 * hop)[None])
    for place in (hop - 1, hop, 3 * hop):
        (slope,) = torch.autograd.grad(
            model.logits(level, None, heard)[0, place].square().sum(), frames, retain_graph=True
        )
        told = slope[0].abs().sum(0) > 0
        first = max(0, place - model.config.receptive_field + 1) // hop
        assert told.tolist() == [first <= frame <= place // hop for frame in range(4)]


def test_what_is_drawn_of_mels_is_what_the_logits_say_of_it_all_at_once() -> None:
    """From caches, sample after sample, beside a row of another length: the same levels."""
    model, frames = vocoder(), mels(7, 4)
    rows = model.begin(Request(seeds=(1, 2), given={"mel": frames}))
    while not model.done(rows).all():
        rows = model.step(rows)
    hop = PRESETS["tiny"].hop
    for row, count in enumerate((7 * hop, 4 * hop)):
        level = rows["level"][row : row + 1, :count]
        heard = model._heard(frames[row : row + 1], torch.arange(count)[None])
        logits = model.logits(level, None, heard)[0]
        assert torch.equal(drawn(logits, rows["u"][row, :count]).long(), level[0])
    made = model.finish(rows)
    assert made.shape == (2, 7 * hop)
    assert not made[1, 4 * hop :].any()


def test_a_wavenet_of_mels_lasts_as_long_as_they_do_and_takes_no_seconds() -> None:
    model = vocoder()
    assert str(model.inputs["mel"]) == f"mel 8x* of {PRESETS['tiny'].space}"
    with pytest.raises(ValueError, match=r"^seconds: this model makes no sound of a length"):
        model.sample(Request(seeds=(1,), given={"mel": mels(2)}, seconds=1.0))
    with pytest.raises(ValueError, match=r"^mel: this model needs mel 8x"):
        model.sample(Request(seeds=(1,)))
    again = build(describe(model))
    assert again.config == model.config


def test_a_sound_that_is_rated_in_parts_is_told_its_mels_at_their_places() -> None:
    model = vocoder()
    sound = torch.rand(1, CHUNK + 300, generator=torch.Generator().manual_seed(0)) - 0.5
    level = levels_of(sound, 16)
    heard = model._heard(PRESETS["tiny"].log_mel(sound), torch.arange(sound.shape[1])[None])
    with torch.no_grad():
        logits = model.logits(level, None, heard)
    nats = torch.nn.functional.cross_entropy(logits.mT, level, reduction="none").double().sum(1)
    found = model.log_prob({"sound": sound}).double()
    torch.testing.assert_close(found, -nats, rtol=1e-5, atol=0)
    assert model({"sound": sound, "length": torch.tensor([CHUNK])}).total.isfinite()
