"""Unit selection: what is kept of recordings, which pieces say a text, and how they are joined."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import configure, trainable
from models.parts.wsola import spliced, stretched
from models.ports import Source
from models.request import Request
from models.text_to_speech.front_end import SYMBOLS, phonemes
from models.text_to_speech.phones import distance
from models.text_to_speech.pronunciation import PHONES
from models.text_to_speech.selection import Place, Selector
from models.text_to_speech.unit_selection import UnitSelection
from models.text_to_speech.units import TABLES, Inventory, Recording

RATE = 8000
TEXTS = ("see", "say", "sigh", "so", "me", "may", "my", "mow", "seam", "same")
VOICES = ("high", "low")


def spoken(text: str, voice: int, take: int) -> Tensor:
    """A text as tones: each phone 60 to 110 ms of a buzz of its own colour, at the voice's pitch."""
    generator = torch.Generator().manual_seed(
        hash((len(text), text[0] == "s", voice, take)) % 2**31
    )
    parts, start = [], 0
    for phone in (one for one in phonemes(text) if one in PHONES):
        size = int(torch.randint(480, 880, (1,), generator=generator))
        time = (start + torch.arange(size)) / RATE
        hertz, colour = (220.0, 110.0)[voice], 400.0 + 80 * PHONES.index(phone)
        waves = [
            (2 * torch.pi * hertz * k * time).sin() / (1 + ((hertz * k - colour) / 200) ** 2)
            for k in range(1, int(3800 / hertz))
        ]
        parts.append(0.2 * torch.stack(waves).sum(0))
        start += size
    sound = torch.cat(parts)
    return sound + 0.001 * torch.randn(len(sound), generator=generator)


@cache
def rows() -> tuple[dict[str, Tensor], list[str]]:
    said = [(text, voice, take) for text in TEXTS for voice in (0, 1) for take in range(3)]
    sounds = [spoken(*one) for one in said]
    model = empty()
    tokens = model.encode([text for text, _, _ in said])
    assert tokens is not None
    batch = {
        "sound": torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True),
        "length": torch.tensor([len(one) for one in sounds]),
        "tokens": tokens,
        "token_length": (tokens > 0).sum(1),
        "speaker": torch.tensor([voice for _, voice, _ in said]),
    }
    return batch, [text for text, _, _ in said]


def empty(**changes: object) -> UnitSelection:
    facts = {"sample_rate": RATE, "speakers": VOICES}
    model = trainable("unit-selection")(configure("unit-selection", "base", changes, facts))
    assert isinstance(model, UnitSelection)
    return model.eval()


def filled(model: UnitSelection, index: Tensor | None = None) -> UnitSelection:
    batch = rows()[0] if index is None else {key: one[index] for key, one in rows()[0].items()}
    for number in range(len(model.sums)):
        model.absorb(batch, number)
        model.settle(number)
    return model


def voices(model: UnitSelection, pieces: Sequence[Source]) -> set[str]:
    """Return whose recordings these are."""
    of = {f"{row[0]:016x}": VOICES[row[1]] for row in model.inventory.recording_RX.tolist()}
    return {of[recording] for recording, _, _ in pieces}


@cache
def trained() -> UnitSelection:
    return filled(empty())


def test_of_a_recording_that_says_the_same_no_more_than_half_is_heard() -> None:
    model = trained()
    seconds = {
        f"{digest:016x}": samples / RATE
        for digest, _, samples, _ in model.inventory.recording_RX.tolist()
    }
    longest = float((model.inventory.unit_UX[:, 5] - model.inventory.unit_UX[:, 4]).max()) / RATE
    for voice in VOICES:
        asked = Request(seeds=tuple(range(len(TEXTS))), prompts=TEXTS, voice=voice)
        for pieces in model.sources(asked):
            heard = Counter[str]()
            for recording, begin_s, end_s in pieces:
                heard[recording] += end_s - begin_s
            assert voices(model, pieces) == {voice}
            assert len(heard) > 1
            assert all(heard[one] <= seconds[one] / 2 + longest / 2 for one in heard)


def test_without_that_rule_a_recording_mostly_goes_on() -> None:
    """Neighbours in a recording share an edge, so that nothing is cheaper than to stay."""
    model = trained()
    other = empty(exclude_same_text=False)
    other.load_state_dict(model.state_dict())
    pieces = other.sources(Request(seeds=tuple(range(len(TEXTS))), prompts=TEXTS))
    assert sum(map(len, pieces)) <= 1.5 * len(pieces)
    selector = Selector(model.inventory, torch.zeros(len(SYMBOLS), len(SYMBOLS)), 8)
    first = torch.arange(2)
    assert (selector.join_costs(first, first + 1) > 0).tolist() == [[False, True], [True, False]]


def test_joins_cost_a_fraction_of_what_they_cost_by_lot_and_units_by_lot_are_told() -> None:
    model, lot = trained(), empty(costs="random")
    lot.load_state_dict(model.state_dict())
    batch = {key: one[::5] for key, one in rows()[0].items()}
    assert model.measure(batch)["relative_join_cost"].mean() < 0.5
    assert lot.measure(batch)["relative_join_cost"].mean() > 0.8


def test_what_a_voice_never_said_comes_from_another_and_what_nobody_said_from_the_nearest() -> None:
    batch, texts = rows()
    mows = torch.tensor([text == "mow" for text in texts])
    model = filled(empty(), (~(mows & (batch["speaker"] == 0))).nonzero()[:, 0])
    (pieces,) = model.sources(Request(seeds=(1,), prompts=("oh",), voice="high"))
    assert voices(model, pieces) == {"high"}, "it said `so`"
    unsaid = filled(empty(), torch.tensor(["m" not in text for text in texts]).nonzero()[:, 0])
    far = torch.tensor([[distance(one, other) for one in SYMBOLS] for other in SYMBOLS])
    selector = Selector(unsaid.inventory, far, 8)
    place = Place(SYMBOLS.index("M"), half=0, before=0, behind=SYMBOLS.index("IY"))
    pool = selector.pool(place, 1, torch.zeros_like(selector.row_U, dtype=torch.bool))
    assert {SYMBOLS[phone] for phone in selector.unit_UX[pool, 0].tolist()} == {"S"}, "no vowel"


def test_marks_are_silent_and_the_end_is_the_last_sound() -> None:
    model = trained()
    one, other, both = (
        model.sample(Request(seeds=(1,), prompts=(text,)))[0] for text in ("see", "me", "see, me.")
    )
    assert len(both) == len(one) + len(other) + round(0.2 * RATE)
    assert not both[len(one) : len(one) + round(0.2 * RATE)].any()


@pytest.mark.parametrize("speed", [0.5, 1.5])
def test_speed_changes_how_long_it_takes_and_not_how_high_it_is(speed: float) -> None:
    model = trained()
    usual, other = (
        model.sample(Request(seeds=(1,), prompts=("same",), voice="low", speed=one))[0]
        for one in (1.0, speed)
    )
    assert len(other) == round(len(usual) / speed)
    for sound in (usual, other):
        middle = sound[len(sound) // 2 - 400 : len(sound) // 2 + 400]
        lag = 60 + int(
            torch.stack([middle[:600] @ middle[k : k + 600] for k in range(60, 90)]).argmax()
        )
        assert abs(lag - RATE / 110) <= 2


def test_what_cannot_be_spoken_is_refused_by_name() -> None:
    model = trained()
    with pytest.raises(
        ValueError, match=r"^voice: this model has no voice 'deep'; choose one of high, low"
    ):
        model.sample(Request(seeds=(1,), prompts=("see",), voice="deep"))
    with pytest.raises(ValueError, match=r"^speed must be between 0.25 and 4, got 9"):
        model.sample(Request(seeds=(1,), prompts=("see",), speed=9))
    with pytest.raises(ValueError, match="this model has no recordings: train it first"):
        empty().sample(Request(seeds=(1,), prompts=("see",)))


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_an_inventory_is_the_same_however_its_recordings_were_shared(data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    recordings = [
        Recording(
            torch.rand(80 * frames, generator=generator) - 0.5,
            number % 2,
            (7, 8),
            (0, frames // 2, frames),
            torch.rand(frames, 3, generator=generator),
        )
        for number, frames in enumerate(torch.randint(2, 9, (8,), generator=generator).tolist())
    ]
    limit = data.draw(st.integers(80, 8 * 8 * 80))
    whole = Inventory(3, limit)
    whole.add(recordings, 80)
    workers = [Inventory(3, limit) for _ in range(2)]
    for recording in data.draw(st.permutations(recordings + recordings[:2])):
        workers[data.draw(st.integers(0, 1))].add([recording], 80)
    joined = Inventory(3, limit)
    for name in TABLES:
        setattr(joined, name, torch.cat([getattr(one, name) for one in workers]))
    joined.order()
    assert len(whole.sound_T) <= limit
    for name in TABLES:
        assert torch.equal(getattr(joined, name), getattr(whole, name))


def test_an_edge_between_a_voice_and_none_is_as_high_as_the_voice() -> None:
    high = math.log2(120)
    seen = torch.tensor([[1.0, high, 0.5], [3.0, 0.0, 1.5], [3.0, 0.0, 1.5], [1.0, high + 1, 0.5]])
    inventory = Inventory(3, 1000)
    inventory.add([Recording(torch.rand(320), 0, (7, 8), (0, 2, 4), seen)], 80)
    of_edges = [[1, high, 0.5], [2, high, 1], [3, 0, 1.5], [2, high + 1, 1], [1, high + 1, 0.5]]
    torch.testing.assert_close(inventory.edge_EX, torch.tensor(of_edges))


@given(turn=st.floats(0, 6.28), hertz=st.floats(100, 300))
@settings(max_examples=20, deadline=None)
def test_two_pieces_of_one_pitch_are_joined_without_a_click(turn: float, hertz: float) -> None:
    time = 2 * torch.pi * hertz * torch.arange(2000) / RATE
    one, other = time.sin(), (time + turn).sin()
    joined = spliced([(one, 0, 1000), (other, 1000, 2000)], overlap=80, reach=64)
    assert joined.diff().abs().max() <= 1.05 * one.diff().abs().max()
    assert joined.diff().diff().abs().max() <= 1.3 * one.diff().diff().abs().max()
    assert joined[200:-200].unfold(0, 200, 1).square().mean(1).min() > 0.4, "nor a hole"


@pytest.mark.parametrize("speed", [0.25, 0.8, 1.0, 4.0])
def test_sound_is_stretched_without_another_pitch_or_loudness(speed: float) -> None:
    tone = (2 * torch.pi * 200 * torch.arange(RATE) / RATE).sin()
    found = stretched(tone, speed, RATE)
    assert len(found) == round(RATE / speed)
    middle = found[300:-300]
    assert (middle[1:] * middle[:-1] < 0).sum() == pytest.approx(
        2 * 200 * len(middle) / RATE, rel=0.05
    )
    assert middle.square().mean().sqrt() == pytest.approx(0.5**0.5, rel=0.05)
    if speed == 1:
        torch.testing.assert_close(found, tone, rtol=0, atol=1e-3)
