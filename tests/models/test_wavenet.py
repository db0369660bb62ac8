"""WaveNet against its definition: it sums to one, sees all samples before and no more, and draws what it says."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import build, describe
from models.autoregressive.wavenet import CHUNK, WaveNet, WaveNetConfig
from models.family import Request, Rows
from models.parts.levels import drawn, levels_of, sound_of
from models.parts.rows import join, take
from tests.models.densities_kit import WORDS, sharp
from tests.models.naive_kit import sample_naively


def tone(*hertz: float, seconds: float = 0.05) -> Tensor:
    time_T = torch.arange(round(8000 * seconds)) / 8000
    return torch.stack([0.5 * torch.sin(2 * math.pi * one * time_T) for one in hertz])


def test_a_long_sound_that_is_rated_in_parts_is_rated_as_a_whole() -> None:
    model = sharp(WaveNet, levels=16, vocabulary=WORDS, max_words=1)
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


def every_sound(samples: int, levels: int) -> Tensor:
    grid = itertools.product(range(levels), repeat=samples)
    return sound_of(torch.tensor(list(grid)), levels)


@pytest.mark.parametrize(("samples", "levels"), [(4, 4), (8, 2)])
def test_the_probabilities_of_all_sounds_sum_to_one(samples: int, levels: int) -> None:
    model, sounds = sharp(WaveNet, levels=levels), every_sound(samples, levels)
    total = model.log_prob({"sound": sounds}).double().exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)
    leaking = (
        sharp(WaveNet, levels=levels, shift=False).log_prob({"sound": sounds}).double().exp().sum()
    )
    assert abs(leaking.item() - 1) > 0.1


def test_they_sum_to_one_given_any_caption() -> None:
    model = sharp(WaveNet, levels=4, vocabulary=WORDS, max_words=2)
    sounds, found = every_sound(4, 4), []
    for caption in (*WORDS, "two three"):
        tokens = model.encode([caption] * len(sounds))
        assert tokens is not None
        found.append(model.log_prob({"sound": sounds, "tokens": tokens}))
        assert found[-1].double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(found, 2))


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
    model = sharp(WaveNet)
    field = model.config.receptive_field
    assert field == 2 * (1 + 2 + 4) + 1
    for place, moved in zip((0, 20, 44), first_changes(model, (0, 20, 44)), strict=True):
        assert moved == list(range(place + 1, place + 1 + field))


def test_without_the_shift_a_sample_sees_itself() -> None:
    ((first, *_),) = first_changes(sharp(WaveNet, shift=False), [20])
    assert first == 20


@settings(max_examples=8, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3),
    dilations=st.sampled_from([(1, 2, 4), (3, 1), (1, 64)]),
    block=st.sampled_from([1, 7, 50]),
    conditional=st.booleans(),
)
def test_the_sampler_with_queues_draws_what_the_naive_one_draws(
    seeds: list[int], dilations: tuple[int, ...], block: int, conditional: bool
) -> None:
    """Sums differ in the last bits, so a level could differ with a chance near 1e-5 a sample; these do not."""
    model = sharp(
        WaveNet,
        dilations=dilations,
        block=block,
        levels=16,
        vocabulary=WORDS if conditional else (),
        max_words=1,
    )
    prompts = tuple(WORDS[seed % 3] for seed in seeds) if conditional else ()
    request = Request(seeds=tuple(seeds), prompts=prompts, seconds=0.015)
    assert torch.equal(model.sample(request), sample_naively(model, request))


def test_the_logits_of_the_queues_are_those_of_the_convolutions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is drawn: the numbers behind it, sample after sample, to 1e-4."""
    seen: list[Tensor] = []

    def watching(logits_BK: Tensor, u_B: Tensor) -> Tensor:
        seen.append(logits_BK)
        return drawn(logits_BK, u_B)

    monkeypatch.setattr("models.autoregressive.wavenet.drawn", watching)
    model = sharp(WaveNet, vocabulary=WORDS, max_words=2)
    prompts = ("one", "two three")
    sounds = model.sample(Request(seeds=(1, 2), prompts=prompts))
    with torch.no_grad():
        whole = model.logits(levels_of(sounds, 256), model.encode(prompts))
    torch.testing.assert_close(torch.stack(seen, 1), whole, rtol=0, atol=1e-4)


def test_sounds_are_drawn_as_often_as_their_probability_says() -> None:
    """16 sounds of 4 samples, 10,000 draws: a standard error of 0.005 at most."""
    model = sharp(WaveNet, levels=2)
    sounds = model.sample(Request(seeds=tuple(range(10_000)), seconds=4 / 8000))
    places = (levels_of(sounds, 2) @ torch.tensor([8, 4, 2, 1])).long()
    often = places.bincount(minlength=16) / len(places)
    true = model.log_prob({"sound": every_sound(4, 2)}).exp()
    torch.testing.assert_close(often, true, rtol=0, atol=0.02)


def ended(model: WaveNet, rows: Rows) -> Rows:
    while not model.done(rows).all():
        rows = model.step(rows)
    return rows


def test_rows_of_other_lengths_and_at_other_steps_share_a_batch() -> None:
    """The arithmetic of a row depends on the batch's size in the last bits, hence 16 levels and these seeds."""
    model = sharp(WaveNet, vocabulary=WORDS, max_words=1, levels=16)
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
    model = sharp(WaveNet)
    rows = model.step(model.begin(Request(seeds=(1, 2))))
    early, whole = model.preview(rows), model.finish(ended(model, rows))
    step = model.config.step
    assert torch.equal(early[:, :step], whole[:, :step])
    assert (early[:, step:] == 0).all()
    assert early.shape == whole.shape == (2, 400)


def test_a_sound_is_as_long_as_was_asked_for() -> None:
    model = sharp(WaveNet)
    assert model.sample(Request(seeds=(1,), seconds=0.0101)).shape == (1, 81)
    with pytest.raises(ValueError, match=r"seconds must be above 0 and at most 60\.0, got 61"):
        model.sample(Request(seeds=(1,), seconds=61))


def test_silence_after_the_length_is_not_scored() -> None:
    model = sharp(WaveNet)
    sound = tone(440.0)
    longer = torch.cat([sound, torch.zeros(1, 100)], 1)
    batch = {"sound": longer, "length": torch.tensor([400])}
    assert torch.equal(model.log_prob(batch), model.log_prob({"sound": sound}))
    bits = model.measure(batch)["bits_per_sample"]
    expected = -model.log_prob(batch) / (400 * math.log(2))
    torch.testing.assert_close(bits, expected, rtol=0, atol=1e-6)


def test_the_loss_is_of_windows_inside_the_length_with_all_that_comes_before() -> None:
    """On average over the windows it is the mean of the exact nats: of sounds that are all as likely as another."""
    model = sharp(WaveNet, window=60)
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
    model = sharp(WaveNet)
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
        sharp(WaveNet).sample(Request(seeds=(1,), **asked))  # type: ignore[arg-type]
    sharp(WaveNet).begin(Request(seeds=(1,), temperature=1, top_p=1))


def test_captions_are_needed_where_they_were_learned() -> None:
    model = sharp(WaveNet, vocabulary=WORDS, max_words=1)
    assert model.capabilities.condition == "text"
    with pytest.raises(ValueError, match="give one prompt a seed"):
        model.sample(Request(seeds=(1,)))
    with pytest.raises(ValueError, match="unknown word 'four'"):
        model.sample(Request(seeds=(1,), prompts=("four",)))
    with pytest.raises(ValueError, match="the batch needs tokens"):
        model.log_prob({"sound": torch.zeros(1, 8)})
    assert sharp(WaveNet, vocabulary=WORDS, text="none").capabilities.condition == "none"


def test_a_conditional_model_is_rebuilt_from_json() -> None:
    model = sharp(WaveNet, vocabulary=WORDS, max_words=1)
    again = build(describe(model))
    again.load_state_dict(model.state_dict())
    assert isinstance(again, WaveNet)
    request = Request(seeds=(7,), prompts=("two",))
    assert torch.equal(again.sample(request), model.sample(request))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": 1}, "levels must be between 2 and 65536, got 1"),
        ({"dilations": ()}, "at least one"),
        ({"dilations": (0,)}, "dilations must be at least 1"),
        ({"window": 100}, "window must be more than the receptive field of 511, got 100"),
        ({"seconds": 0.0}, "seconds must be above 0"),
        ({"block": 0}, "block must be at least 1, got 0"),
    ],
)
def test_a_config_that_would_fail_late_fails_early(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WaveNetConfig(**change)  # type: ignore[arg-type]


def test_a_version_from_when_there_were_frames_can_still_be_built() -> None:
    """Nothing ever made them, so every version has none."""
    document = describe(sharp(WaveNet))
    older = {**document, "config": {**document["config"], "features": 0, "hop": 80}}
    assert describe(build(older)) == document
