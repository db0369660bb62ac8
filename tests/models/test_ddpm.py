"""The diffusion family: its configs, its text, its schedules, its steps and its rows."""

import dataclasses
import itertools
import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from data.makers import words as caption_words
from models.diffusion import objectives, schedules
from models.diffusion.ddpm import DDPM
from models.parts import words
from models.parts.rows import join, take
from models.request import Request

TINY = DDPM.presets["tiny"]
WORDS = ("a", "dark", "bright", "picture", "red")
BETWEEN_BATCHES = 2e-5  # oneDNN rounds differently at another batch size; measured below 2e-6


def model(**changes: object) -> DDPM:
    """A tiny model whose weights are all away from zero, so that text and time matter."""
    torch.manual_seed(0)
    made = DDPM(dataclasses.replace(TINY, **changes))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.eval()


def painter(**changes: object) -> DDPM:
    return model(**{"vocabulary": WORDS, "max_words": 4, "text_layers": 1, **changes})


def test_zero_terminal_snr_ends_in_pure_noise_and_the_plain_schedules_do_not() -> None:
    for schedule in ("linear", "cosine"):
        plain = schedules.alphas(schedules.betas(schedule))
        rescaled = schedules.alphas(schedules.betas(schedule, zero_terminal_snr=True))
        assert plain[-1] > 0
        assert rescaled[-1] == 0
        assert rescaled[0] == pytest.approx(plain[0].item(), abs=1e-12)
        assert (rescaled.diff() < 0).all()


@settings(deadline=None)
@given(steps=st.integers(1, 1000))
def test_trailing_times_start_at_the_last_time_and_fall(steps: int) -> None:
    times = schedules.trailing(steps)
    assert len(times) == steps
    assert times[0] == 999
    assert (times.diff() < 0).all()
    assert times[-1] >= 0


@pytest.mark.parametrize("objective", ["eps", "v", "flow"])
@settings(max_examples=50, deadline=None)
@given(sigma=st.floats(0.05, 0.95), data_std=st.floats(0.1, 2.0))
def test_preconditioning_gives_the_network_unit_variance(
    objective: str, sigma: float, data_std: float
) -> None:
    """Closed form for Gaussian data: variance of target - keep x is gain^2, uncorrelated with x."""
    s = torch.tensor(sigma, dtype=torch.float64)
    alpha = 1 - s if objective == "flow" else (1 - s.square()).sqrt()
    scale, keep, gain = objectives.precondition(objective, alpha, s, data_std)
    picture, noise = {"eps": (0, 1), "v": (-s, alpha), "flow": (-1, 1)}[objective]
    left = torch.tensor([(picture - keep * alpha) * data_std, noise - keep * s]).double()
    x = torch.tensor([alpha * data_std, s]).double()
    torch.testing.assert_close(left.norm(), gain.to(left), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((x * scale).norm(), torch.ones(()).double(), rtol=1e-5, atol=0)
    assert abs(float(left @ x)) < 1e-5 * (1 + data_std**2)


def test_words_become_tokens_and_an_unknown_one_is_named_with_its_neighbours() -> None:
    made = painter()
    tokens = made.encode(["A dark picture.", "red"])
    assert tokens is not None
    assert tokens.tolist() == [[1, 2, 4, 0], [5, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"'brigt'; did you mean 'bright'\?"):
        made.encode(["a brigt picture"])
    with pytest.raises(ValueError, match=r"'zzz'; the nearest that the model knows: [a-z]+, "):
        made.encode(["zzz"])
    with pytest.raises(ValueError, match="the caption has 5 words, the model reads 4"):
        made.encode(["a dark dark dark picture"])
    with pytest.raises(ValueError, match=r"the caption ' \.' has no words"):
        made.encode([" ."])
    assert model().encode(["anything"]) is None
    assert painter(text="none").encode(["anything"]) is None


@settings(max_examples=100, deadline=None)
@given(caption=st.text(max_size=40))
def test_a_prompt_is_split_as_captions_are_when_they_are_prepared(caption: str) -> None:
    said = caption_words.normal(caption)
    assert words.split(caption) == said.split()
    assert (words.WORD, words.DOTTED) == (caption_words.WORD, caption_words.DOTTED)
    assert caption_words.normal(said) == said
    assert caption_words.normal(unicodedata.normalize("NFD", caption)) == said


def test_capabilities_follow_the_config() -> None:
    assert painter().capabilities.condition == "text"
    assert not painter().capabilities.upscales
    upscaler = painter(text="none", low_size=4).capabilities
    assert (upscaler.condition, upscaler.upscales, upscaler.stepwise) == ("none", True, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "flow", "sampler": "euler"},
        {"objective": "flow", "sampler": "dpmpp"},
        {"objective": "v", "sampler": "ddim", "zero_terminal_snr": True},
        {"objective": "v", "sampler": "dpmpp", "zero_terminal_snr": True},
        {"objective": "eps", "sampler": "ddpm", "schedule": "linear"},
        {"objective": "eps", "sampler": "ddim", "eta": 1.0},
        {"objective": "flow", "low_size": 4, "low_noise": 0.2, "low_noise_sampling": 0.1},
    ],
)
def test_rows_joined_at_different_steps_end_as_they_do_alone(changes: dict[str, object]) -> None:
    made = painter(**changes)
    low = torch.rand(3, 3, 4, 4) if "low_size" in changes else None
    orders = [
        Request(seeds=(5,), prompts=("a dark picture",), steps=6, guidance=3.0),
        Request(seeds=(6,), prompts=("red",), steps=3, guidance=1.0),
        Request(seeds=(7,), prompts=("a bright picture",), steps=4, guidance=0.0),
    ]
    if low is not None:
        orders = [
            dataclasses.replace(order, given={"low": low[row : row + 1]})
            for row, order in enumerate(orders)
        ]
    alone = [made.sample(order) for order in orders]
    engine = made.step(made.step(made.begin(orders[0])))
    engine = made.step(join([engine, made.begin(orders[1])]))
    engine = join([engine, made.begin(orders[2])])
    while not made.done(engine).all():
        assert 0 <= made.preview(engine).min() <= made.preview(engine).max() <= 1
        engine = made.step(engine)
    assert engine["index"].tolist() == [6, 3, 4]
    torch.testing.assert_close(made.finish(engine), torch.cat(alone), rtol=0, atol=BETWEEN_BATCHES)
    assert made.finish(engine).std() > 0.01


def test_in_a_batch_of_one_size_a_row_is_bit_equal_whatever_its_neighbours() -> None:
    made = painter(objective="v", sampler="ddim", eta=1.0)
    first = Request(seeds=(1, 2, 3, 4), prompts=("red",) * 4, guidance=2.0)
    second = Request(seeds=(9, 4, 1, 8), prompts=("red", "red", "red", "a dark red"), guidance=2.0)
    one, two = made.sample(first), made.sample(second)
    assert torch.equal(one[0], two[2])
    assert torch.equal(one[3], two[1])
    apart = join([made.begin(Request((s,), prompts=("red",), guidance=2.0)) for s in first.seeds])
    while not made.done(apart).all():
        apart = made.step(apart)
    assert torch.equal(made.finish(apart), one)
    unguided = dataclasses.replace(first, options={**first.options, "guidance": 1.0})
    mixed = join([take(made.begin(unguided), [0, 1]), take(made.begin(second), [0, 1])])
    while not made.done(mixed).all():
        mixed = made.step(mixed)
    assert torch.equal(made.finish(mixed)[:2], made.sample(unguided)[:2])


def test_taking_rows_keeps_their_order_and_a_mask_selects() -> None:
    made = painter()
    rows = made.begin(Request(seeds=(1, 2, 3), prompts=("red",) * 3))
    assert take(rows, [2, 0, 0])["seed"].tolist() == [3, 1, 1]
    assert take(rows, torch.tensor([False, True, True]))["seed"].tolist() == [2, 3]
    assert torch.equal(join([take(rows, [0]), take(rows, [1, 2])])["x"], rows["x"])
    with pytest.raises(ValueError, match="different models"):
        join([rows, model().begin(Request(seeds=(1,)))])
    with pytest.raises(ValueError, match="at least one"):
        join([])


def test_seeds_that_agree_in_their_low_bits_give_different_pictures() -> None:
    made = model()
    pictures = made.sample(Request(seeds=(0, 2**32, 1, 2**62)))
    for one, other in itertools.combinations(pictures, 2):
        assert (one - other).abs().max() > 1e-3


def test_stages_of_a_cascade_share_a_seed_but_no_noise() -> None:
    """Of 192 numbers a correlation has a standard deviation of 0.07."""
    low = torch.rand(1, 3, 4, 4)
    first = model().begin(Request(seeds=(1,)))["x"]
    second = model(low_size=4).begin(Request(seeds=(1,), given={"low": low}))["x"]
    both = torch.stack([first.flatten(), second.flatten()])
    assert abs(both.corrcoef()[0, 1]) < 0.35


def test_a_request_out_of_range_is_refused() -> None:
    made = painter()
    with pytest.raises(ValueError, match="steps must be between 1 and 1000, got 1001"):
        made.begin(Request(seeds=(1,), steps=1001))
    with pytest.raises(ValueError, match="guidance must be between 0 and 50, got -1"):
        made.begin(Request(seeds=(1,), prompts=("red",), guidance=-1.0))
    upscaler = model(low_size=4)
    with pytest.raises(ValueError, match=r"^low: this model needs pixels 3x4x4, got none"):
        upscaler.begin(Request(seeds=(1,)))
    with pytest.raises(ValueError, match=r"^low: this model takes pixels 3x4x4, got 3x8x8"):
        upscaler.begin(Request(seeds=(1,), given={"low": torch.rand(1, 3, 8, 8)}))


def test_guidance_leads_from_the_negative_prompt_to_the_prompt_and_beyond() -> None:
    """In place of the prediction without a prompt (Ho & Salimans' eq. 6 with another condition)."""
    made = painter()

    def first(said: str, **asked: object) -> torch.Tensor:
        return made.step(made.begin(Request(seeds=(1,), prompts=(said,), **asked)))["x0"]

    here, there = (first(said, guidance=1.0) for said in ("a dark picture", "a bright picture"))
    inside = (here.abs() < 1) & (there.abs() < 1)  # what is not clipped is linear
    both = first("a bright picture", guidance=1.5, negative_prompt="a dark picture")
    wanted = here + 1.5 * (there - here)
    inside &= wanted.abs() < 1
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(both[inside], wanted[inside], rtol=0, atol=1e-4)
    plain = first("a bright picture", guidance=1.5)
    assert (both - plain).abs().max() > 1e-3


def test_a_negative_prompt_that_would_change_nothing_is_refused_and_so_is_what_it_cannot_read() -> (
    None
):
    made = painter()
    told = {"seeds": (1,), "negative_prompt": "red"}
    for asked in (
        {"prompts": ("red",), "guidance": 1.0},
        {"prompts": ("red",), "guidance": 0.0},
        {},
    ):
        with pytest.raises(ValueError, match=r"^negative_prompt: guidance leads away from it"):
            made.begin(Request(**told, **asked))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^negative_prompt: unknown word 'four'"):
        made.begin(Request(seeds=(1,), prompts=("red",), negative_prompt="four"))
    with pytest.raises(ValueError, match=r"^negative_prompt: this model has none; leave it out"):
        model().begin(Request(seeds=(1,), negative_prompt="red"))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), fill=st.floats(0, 1))
def test_an_untrained_upscaler_starts_from_the_enlarged_picture(seed: int, fill: float) -> None:
    """The residual is what is learned: a network at zero leaves the picture nearly alone."""
    made = DDPM(dataclasses.replace(TINY, low_size=4, low_gain=100.0))
    low = torch.full((1, 3, 4, 4), fill)
    out = made.sample(Request(seeds=(seed,), given={"low": low}))
    torch.testing.assert_close(out, torch.full((1, 3, 8, 8), fill), rtol=0, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"objective": "flow"}, {"objective": "v", "sampler": "ddim", "zero_terminal_snr": True}],
)
def test_captions_are_learned(changes: dict[str, object]) -> None:
    """Dark or bright as told, which shuffled captions cannot give."""
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, vocabulary=WORDS, max_words=4, **changes)  # type: ignore[arg-type]
    made = DDPM(config)
    captions = ["a dark picture", "a bright picture"] * 16
    tokens = made.encode(captions)
    assert tokens is not None
    level = torch.tensor([0.2, 0.8]).repeat(16)[:, None, None, None]
    optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3, fused=True)
    # else the last steps decide
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, 300)
    for _ in range(300):
        pixels = (level + 0.05 * torch.randn(32, 1, 1, 1)).clamp(0, 1).expand(32, 3, 8, 8)
        optimizer.zero_grad()
        made({"pixels": pixels, "tokens": tokens}).total.backward()
        optimizer.step()
        falling.step()
    drawn = made.sample(
        Request(seeds=tuple(range(16)), prompts=tuple(captions[:16]), steps=8, guidance=1.0)
    )
    means = drawn.mean((1, 2, 3))
    assert (means[0::2] - 0.2).abs().max() < 0.15
    assert (means[1::2] - 0.8).abs().max() < 0.15


def test_low_resolution_is_the_mean_of_the_pixels() -> None:
    """What the upscaler is trained on is what a base model at half the side learns."""
    picture = torch.rand(2, 3, 8, 8)
    folded = picture.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    torch.testing.assert_close(F.interpolate(picture, 4, mode="area"), folded)


def test_a_negative_prompt_leads_where_captions_were_never_left_out() -> None:
    made = model(vocabulary=("red", "blue"), max_words=1, caption_drop=0.0)
    asked = Request(seeds=(1,), prompts=("red",), steps=2, guidance=3.0)
    with pytest.raises(ValueError, match="guidance must be 1 where caption_drop is 0"):
        made.sample(asked)
    away = Request(seeds=(1,), prompts=("red",), steps=2, guidance=3.0, negative_prompt="blue")
    assert made.sample(away).isfinite().all()


@pytest.mark.parametrize(
    ("objective", "sampler"),
    [("eps", "ddpm"), ("eps", "ddim"), ("eps", "dpmpp"), ("flow", "euler"), ("flow", "dpmpp")],
)
def test_a_change_lands_on_what_the_network_sees_whichever_sampler_begins_in_the_middle(
    objective: str, sampler: str
) -> None:
    """Where every estimate is one picture, the noisy one stays on its way: no step looks back on what is not there."""
    made = model(objective=objective, sampler=sampler)
    side = made.config.image_size
    image = torch.full((1, 3, side, side), 0.55)
    given = {"image": image, "mask": torch.ones(1, 1, side, side)}
    asked = Request(seeds=(1,), given=given, steps=8, strength=0.5)
    rows, target = made.begin(asked), 2 * image - 1
    assert made.steps_of(asked) == 4
    for index in range(4, 8):
        keep, new, old, _ = rows["table"][0, index, 3:].tolist()
        after = [*rows["table"][0, :, 1].tolist(), 1.0][index + 1]
        alpha = float(rows["table"][0, index, 1])
        before = target if index > 4 else 0 * target
        moved = keep * alpha * target + new * target + old * before
        torch.testing.assert_close(moved, after * target, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [1, 4, 16])
def test_a_mask_of_another_size_than_the_picture_is_refused(side: int) -> None:
    """One of one pixel would stand for all of them, and another would end the step of all rows beside it."""
    made = model(sizes=("8x8", "16x8"))
    given = {"image": torch.rand(1, 3, 8, 8), "mask": torch.ones(1, 1, 8, side)}
    with pytest.raises(ValueError, match=f"^mask: it has {side}x8 places, what is drawn has 8x8"):
        made.begin(Request(seeds=(1,), given=given))


def test_the_strength_of_a_change_is_where_its_sampling_begins() -> None:
    """At a share of the steps, the picture and the noise of that level are what is drawn from: SDEdit."""
    made = model()
    side = made.config.image_size
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    given = {"image": image, "mask": torch.ones(1, 1, side, side)}
    whole = made.begin(Request(seeds=(1,), given=given, steps=8))
    rows = made.begin(Request(seeds=(1,), given=given, steps=8, strength=0.5))
    assert (int(whole["index"]), int(rows["index"]), int(rows["count"])) == (0, 4, 8)
    _, alpha, sigma = rows["table"][0, 4, :3].tolist()
    torch.testing.assert_close(rows["x"], alpha * (2 * image - 1) + sigma * whole["x"])
    with pytest.raises(ValueError, match=r"^strength: it is of a change to a picture"):
        made.begin(Request(seeds=(1,), strength=0.5))
    with pytest.raises(ValueError, match=r"^strength must be between 0 and 1, got 2"):
        made.begin(Request(seeds=(1,), given=given, strength=2))
