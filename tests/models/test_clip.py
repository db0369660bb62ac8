"""CLIP's loss against its definition, its temperature's bound, and what a few pictures with captions teach it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from data.makers import shapes
from models import configure
from models.request import Request
from models.text_to_image.clip import CLIP, CLIPConfig, Pairs, contrast

WORDS = tuple(sorted({word for caption in shapes.CAPTIONS for word in caption.split()}))


def pairs(rows: int, kinds: int, seed: int = 0) -> Pairs:
    """Some embeddings on the sphere; of `kinds` captions."""
    generator = torch.Generator().manual_seed(seed)
    picture, caption = (
        F.normalize(torch.randn(rows, 5, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    return Pairs(picture, caption, torch.arange(rows)[:, None] % kinds + 1)


def by_definition(of: Pairs, scale: Tensor) -> Tensor:
    """Figure 3 of the paper, row by row, with every row of a caption a positive of it."""
    losses = []
    for one, other in ((of.picture, of.caption), (of.caption, of.picture)):
        for row, said in enumerate(of.tokens):
            nats = -(scale * other @ one[row]).log_softmax(0)
            right = (of.tokens == said).all(1)
            losses.append(nats[right].mean() - right.sum().log())
    return torch.stack(losses).mean()


@settings(max_examples=20, deadline=None)
@given(kinds=st.integers(1, 12), cut=st.lists(st.integers(1, 12), max_size=4))
def test_parts_have_the_loss_of_figure_3_and_together_its_gradient(
    kinds: int, cut: list[int]
) -> None:
    """However a batch is cut: into unequal parts, or left whole."""
    rows = 12
    whole = pairs(rows, kinds)
    leaves = (*whole[:2], torch.tensor(9.0, dtype=torch.float64))
    for leaf in leaves:
        leaf.requires_grad_()
    expected = by_definition(whole, leaves[2])
    wanted = torch.autograd.grad(expected, leaves)
    everybody = Pairs(*(one.detach() for one in whole))
    edges = sorted({0, *(one for one in cut if one < rows), rows})
    found = torch.zeros((), dtype=torch.float64)
    for start, end in itertools.pairwise(edges):
        part = Pairs(*(one[start:end] for one in whole))
        found = found + contrast(part, everybody, leaves[2]) * (end - start) / rows
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, leaves), wanted)


def test_captions_alike_are_no_negatives_and_the_best_loss_is_zero() -> None:
    """Three captions, each four times: what belongs together lies together, and the scale is large."""
    place = torch.eye(3)[torch.arange(12) % 3]
    together = Pairs(place, place, torch.arange(12)[:, None] % 3)
    assert contrast(together, together, torch.tensor(99.0)).item() == pytest.approx(0, abs=1e-5)
    apart = together._replace(tokens=torch.arange(12)[:, None])  # as if each were another's
    assert contrast(apart, apart, torch.tensor(99.0)).item() == pytest.approx(math.log(4), abs=1e-5)


def test_the_scale_begins_at_one_over_point_07_and_comes_back_from_its_bound() -> None:
    model = CLIP(CLIP.presets["tiny"])
    assert model.scale.item() == pytest.approx(1 / 0.07, rel=1e-6)
    with torch.no_grad():
        model.scale_logit.fill_(12.0)
    assert 99 < model.scale.item() <= 100
    batch = {"pixels": torch.rand(4, 1, 8, 8), "tokens": torch.tensor([[1], [2], [1], [2]])}
    model(batch).total.backward()
    assert model.scale_logit.grad is not None
    assert model.scale_logit.grad > 0, "captions and pictures by lot are too far apart so"


def test_padding_and_neighbours_change_no_embedding() -> None:
    torch.manual_seed(0)
    model = CLIP(CLIP.presets["tiny"]).eval()
    alone = model.of_text(torch.tensor([[1, 2]]))
    padded = model.of_text(torch.tensor([[1, 2, 0, 0, 0, 0, 0, 0], [2, 2, 2, 2, 1, 1, 1, 1]]))
    torch.testing.assert_close(alone[0], padded[0])
    assert (model.embed(["dark light"]) - model.embed(["light dark"])).abs().max() > 1e-3
    assert torch.equal(model.sample(Request(seeds=(1,), prompts=("dark",))), model.embed(["dark"]))


def test_embeddings_have_length_1_in_float32_under_autocast_too() -> None:
    torch.manual_seed(0)
    model = CLIP(CLIP.presets["tiny"])
    batch = {"pixels": torch.rand(4, 1, 8, 8), "tokens": torch.tensor([[1], [2], [1], [2]])}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, losses = (
            (model.of_pixels(batch["pixels"]), model.of_text(batch["tokens"])),
            model(batch),
        )
    for one in found:
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.norm(dim=1), torch.ones(4))
    assert losses.total.dtype == torch.float32


def test_tokens_in_place_of_a_caption_are_refused() -> None:
    with pytest.raises(ValueError, match="reads captions of words, and no tokens"):
        CLIP(CLIP.presets["tiny"]).embed([(1, 2)])


def test_pictures_find_their_captions_unless_captions_were_shuffled() -> None:
    """Of 24 captions, by 8 pictures each: all of 96 new pictures find theirs, against chance after a shuffle."""
    captions = shapes.CAPTIONS[::10]
    learned, asked = drawn(captions, 8, seed=0), drawn(captions, 4, seed=1)
    shuffled = torch.randperm(len(learned), generator=torch.Generator().manual_seed(0))
    number = torch.arange(len(captions))
    honest = fitted(learned, captions, number.repeat_interleave(8))
    broken = fitted(learned, captions, number.repeat_interleave(8)[shuffled])
    right = number.repeat_interleave(4)
    shares = [
        (model.of_pixels(asked) @ model.embed(captions).T).argmax(1).eq(right).float().mean()
        for model in (honest, broken)
    ]
    assert shares[0] > 0.9
    assert shares[1] < 0.25


def drawn(captions: tuple[str, ...], each: int, seed: int) -> Tensor:
    """Return pictures (N, 3, 16, 16), `each` a caption."""
    made = [
        np.asarray(shapes.draw(caption, np.random.default_rng((seed, row, number)), 16))
        for row, caption in enumerate(captions)
        for number in range(each)
    ]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255


def fitted(pixels: Tensor, captions: tuple[str, ...], said: Tensor) -> CLIP:
    torch.manual_seed(0)
    small = {"image_size": 16, "hidden": (16, 32), "layers": 1, "width": 32, "feedforward": 64}
    config = configure("clip", "base", small, {"vocabulary": WORDS})
    assert isinstance(config, CLIPConfig)
    model = CLIP(config)
    tokens = config.encode(captions)[said]
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3, fused=True)
    for _ in range(60):
        index = torch.randperm(len(pixels))[:64]
        optimizer.zero_grad()
        model({"pixels": pixels[index], "tokens": tokens[index]}).total.backward()
        optimizer.step()
    return model.eval().requires_grad_(requires_grad=False)
