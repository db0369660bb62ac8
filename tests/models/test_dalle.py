"""DALL-E against its definition: words, then codes, each of what came before, and no other codebook's."""

import dataclasses
import itertools
import math
from typing import Any, Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.parts.rows import join, take
from models.ports import Misfit, Node, check
from models.request import Request
from models.text_to_image.dalle import DALLE
from models.variational.vqvae import VQVAE
from tests.models.naive_kit import sample_naively

WORDS: Final = ("blue", "dot", "red", "square")
CAPTIONS: Final = ("red dot", "blue dot", "red square", "blue square")


def dalle(scale: float = 8, **change: Any) -> DALLE:
    """A model whose weights are large enough that every word and code matters to the codes after it."""
    torch.manual_seed(0)
    given = {"vocabulary": WORDS, "max_words": 3, **change}
    model = DALLE(dataclasses.replace(DALLE.presets["tiny"], **given))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1 if "norm" in name else scale)
    return model.eval()


def some(model: DALLE, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return captions and codes, as many as asked for."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(model.config.codes, (count, model.config.places), generator=generator)
    words = model.encode([CAPTIONS[row % len(CAPTIONS)] for row in range(count)])
    assert words is not None
    return words, codes


@settings(max_examples=8, deadline=None)
@given(cut=st.integers(0, 15), seed=st.integers(0, 1000))
def test_a_code_hears_of_the_caption_and_of_the_codes_before_it_alone(cut: int, seed: int) -> None:
    model = dalle()
    words, codes = some(model, 2, seed)
    other = codes.clone()
    other[:, cut:] = (other[:, cut:] + 1) % model.config.codes
    with torch.no_grad():
        (_, before), (_, after) = model.logits(words, codes), model.logits(words, other)
        (_, reworded) = model.logits(words.flip(0), codes)
    torch.testing.assert_close(before[:, : cut + 1], after[:, : cut + 1], rtol=0, atol=1e-4)
    assert cut == 15 or (before[:, cut + 1 :] - after[:, cut + 1 :]).abs().amax(2).min() > 1e-3
    assert (before - reworded).abs().amax(2).min() > 1e-3


def test_the_probabilities_of_all_codes_sum_to_one_and_so_do_those_of_all_captions() -> None:
    """16 grids of four bits, and 27 captions of three places: two words or the padding of the place."""
    model = dalle(codes=2, places=4, vocabulary=("a", "b"))
    grids = torch.tensor(list(itertools.product(range(2), repeat=4)))
    captions = torch.tensor(list(itertools.product(range(3), repeat=3)))
    with torch.no_grad():
        _, of_codes = model.logits(captions[5].expand(16, -1), grids)
        of_words, _ = model.logits(captions, grids[:1].expand(27, -1))
    assert of_words is not None
    for logits, target in ((of_codes, grids), (of_words, captions)):
        log_p = logits.double().log_softmax(2).gather(2, target[:, :, None]).sum((1, 2))
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_the_loss_is_one_eighth_the_caption_s_and_seven_the_picture_s() -> None:
    model = dalle()
    words, codes = some(model, 6)
    of_words, of_codes = model.logits(words, codes)
    assert of_words is not None
    text, image = (
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        for logits, target in ((of_words, words), (of_codes, codes))
    )
    found = model({"tokens": words, "codes": codes})
    torch.testing.assert_close(found.total, text / 8 + 7 * image / 8)
    torch.testing.assert_close(found.parts["text_nats"], text)
    torch.testing.assert_close(found.parts["image_nats"], image)
    parts = [
        model({"tokens": words[rows], "codes": codes[rows]})
        for rows in (slice(0, 2), slice(2, None))
    ]
    whole = sum(part.total * part.count for part in parts) / 6
    torch.testing.assert_close(found.total, whole)
    assert [part.count for part in parts] == [2, 4]


def test_each_place_behind_a_caption_has_a_padding_of_its_own() -> None:
    model = dalle()
    words, codes = some(model, 1)
    words[0] = torch.tensor([3, 0, 0])
    _, of_codes = model.logits(words, codes)  # a word's own logits would move every word
    of_codes.square().sum().backward()
    grad = model.tokens.weight.grad
    assert grad is not None
    read = grad.abs().amax(1) > 0
    padding = model.first_padding + torch.arange(3)
    assert read[padding].tolist() == [False, True, True]
    assert read[model.first_word :].tolist() == [False, False, True, False]


def test_a_place_of_the_grid_is_its_row_and_its_column() -> None:
    model = dalle(codes=4)
    words, codes = some(model, 1)
    with torch.no_grad():
        _, before = model.logits(words, codes)
        other = torch.randn(model.config.width, generator=torch.Generator().manual_seed(0))
        first = {
            "rows_RE": 9,
            "columns_CE": 3,
        }  # the code after the first one in row 2, in column 2
        for name, place in first.items():
            table = model.get_parameter(name)
            table[2] += other
            _, after = model.logits(words, codes)
            table[2] -= other
            moved = (before - after).abs().amax(2)[0] > 1e-3
            assert moved.tolist() == [False] * place + [True] * (16 - place)


def requests(**options: Any) -> Request:
    return Request(seeds=(5, 6, 7, 8), prompts=CAPTIONS, **options)


@pytest.mark.parametrize("guidance", [1.0, 2.5, 0.0])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.6}])
def test_what_is_kept_of_the_codes_before_changes_no_draw(
    guidance: float, options: dict[str, float]
) -> None:
    model = dalle()
    asked = requests(guidance=guidance, **options)
    if guidance == 0:  # as without a caption
        plain = Request(seeds=asked.seeds, **options)
        assert torch.equal(model.sample(asked), model.sample(plain))
        return
    assert torch.equal(model.sample(asked), sample_naively(model, asked))


def test_rows_of_all_kinds_share_a_batch() -> None:
    """Guided or not, with a caption or without, cold or hot, one at its first code and the other at its fourth."""
    model = dalle()
    kinds = [
        Request(seeds=(1,), prompts=("red dot",), guidance=3.0, temperature=0.5),
        Request(seeds=(2,), prompts=("blue dot",), top_k=2),
        Request(seeds=(3,)),
        Request(seeds=(4,), prompts=("red square",), guidance=0.0, top_p=0.5),
        Request(seeds=(5,), prompts=("blue square",), guidance=1.5),
    ]
    early = join([model.begin(one) for one in kinds[:2]])
    for _ in range(3):
        early = model.step(early)
    rows = join([early, *(model.begin(one) for one in kinds[2:])])
    while not model.done(rows).all():
        rows = model.step(rows)
    for place, one in enumerate(kinds):
        assert torch.equal(model.finish(take(rows, [place])), model.sample(one))


def test_the_likeliest_codes_are_those_of_temperature_zero_and_of_the_one_likeliest() -> None:
    model = dalle()
    cold = model.sample(requests(temperature=0))
    assert torch.equal(cold, model.sample(requests(top_k=1)))
    again = Request(seeds=(1, 2, 3, 4), prompts=CAPTIONS, temperature=0)
    assert torch.equal(cold, model.sample(again))
    words = model.encode(CAPTIONS)
    with torch.no_grad():
        assert torch.equal(model.logits(words, cold)[1].argmax(2), cold)


def learned(*, shuffled: bool) -> dict[str, float]:
    """Return what a model measures that has learned four pictures, each of its caption or each of all four."""
    torch.manual_seed(0)
    model = dalle(scale=1, places=4, codes=8, caption_drop=0.5)
    words, _ = some(model, 16)
    codes = torch.arange(4)[:, None] + torch.tensor([0, 2, 1, 3])
    batch = {"tokens": words, "codes": codes[torch.arange(16) % 4]}
    if shuffled:
        batch["codes"] = codes[torch.arange(16) // 4]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    model.train()
    for _ in range(80):
        optimizer.zero_grad()
        model(batch).total.backward()
        optimizer.step()
    return {name: rows.mean().item() for name, rows in model.eval().measure(batch).items()}


def test_what_captions_tell_of_pictures_is_measured() -> None:
    """Four pictures by name: their codes cost nothing, and their captions tell ln 4 nats; of others', none."""
    own, others = learned(shuffled=False), learned(shuffled=True)
    assert own["relative_nats"] < 0.05
    assert own["caption_nats"] == pytest.approx(math.log(4), abs=0.35)
    assert others["relative_nats"] == pytest.approx(math.log(4) / 4 / math.log(8), abs=0.05)
    assert others["caption_nats"] < 0.2


def test_a_prior_without_captions_draws_grids_and_is_not_guided() -> None:
    model = dalle(text="none")
    assert model.logits(None, torch.zeros(1, 16, dtype=torch.long))[0] is None
    assert model.measured == ("relative_nats",)
    assert "guidance" not in model.takes
    drawn = model.sample(Request(seeds=(1, 2), temperature=0.8))
    assert drawn.shape == (2, 16)
    assert not torch.equal(drawn[0], drawn[1])


def vqvae(seed: int) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE(VQVAE.presets["tiny"]).eval()


def graph(prior: DALLE, stage: VQVAE) -> dict[str, Node]:
    """A prior whose codes a stage paints."""
    decode = stage.entries["decode"]
    return {
        "prior": Node(prior.inputs, prior.outputs, {"text": "request.text"}),
        "vqvae/decode": Node(decode.inputs, decode.outputs, {"codes": "prior.codes"}),
    }


def test_codes_of_another_codebook_are_refused_by_name() -> None:
    """One of the same sizes, trained from another seed; forced upon it, the codes are other pictures."""
    own, other = vqvae(seed=0), vqvae(seed=1)
    facts = own.entries["encode"].facts
    prior = dalle(**facts)
    assert (prior.config.codes, prior.config.places) == (16, 16)
    assert check(graph(prior, own), "vqvae/decode.pixels").keys() == {"text"}
    theirs = other.entries["encode"].facts["codebook"]
    message = (
        f"vqvae/decode takes codes 16 of {theirs} as codes,"
        f" but prior.codes is codes 16 of {facts['codebook']}"
    )
    with pytest.raises(Misfit, match=message):
        check(graph(prior, other), "vqvae/decode.pixels")
    codes = prior.sample(requests())
    pictures = [stage.enter("decode", {"codes": codes}) for stage in (own, other)]
    assert (pictures[0] - pictures[1]).abs().mean() > 1e-3
