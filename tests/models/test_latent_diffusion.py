"""Latent diffusion: whose latents they are, what a mask of pixels leaves of them, and what guidance leads away from."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.parts.rows import join, take
from models.ports import Misfit, Node, check
from models.request import Request
from models.text_to_image.latent import LatentDiffusion

WORDS = ("a", "bright", "dark", "red")
BACKBONES: tuple[dict[str, Any], ...] = (
    {},
    {"backbone": "dit", "widths": (24,), "blocks": 2, "patch": 2},
)


def painter(**changes: Any) -> LatentDiffusion:
    torch.manual_seed(0)
    known = {"vocabulary": WORDS, "max_words": 3, **changes}
    model = LatentDiffusion(dataclasses.replace(LatentDiffusion.presets["tiny"], **known))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def some(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(3))


def test_latents_of_another_autoencoder_do_not_fit() -> None:
    ours, others = (painter(autoencoder=name) for name in ("aaaa", "bbbb"))
    nodes = {
        "other": Node({}, others.outputs, {}),
        "ours": Node(ours.inputs, ours.outputs, {"text": "request.text", "image": "other.latent"}),
    }
    with pytest.raises(
        Misfit, match=r"latent\? 4x4x4 of aaaa as image, but other.latent is latent 4x4x4 of bbbb"
    ):
        check(nodes, "ours.latent")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_loss_is_that_of_the_straight_line_from_latents_to_noise(
    backbone: dict[str, Any],
) -> None:
    """A network of zeros costs (eps - x0)^2 less its best linear guess: 1, for latents of deviation 1."""
    torch.manual_seed(0)
    config = dataclasses.replace(LatentDiffusion.presets["tiny"], **backbone)
    model = LatentDiffusion(config)
    latent = torch.randn(4000, 4, 4, 4)
    loss, at = model({"latent": latent}).total, model._training_times(4000, latent.device)
    alpha, sigma = at[:, 1], at[:, 2]
    wanted = (1 / (alpha.square() + sigma.square())).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=0.02)


def test_latents_are_not_clipped() -> None:
    model = painter()
    rows = model.begin(Request(seeds=(1,), prompts=("red",)))
    rows = {**rows, "x": 50 * rows["x"], "index": rows["count"]}
    assert torch.equal(model.finish(rows), rows["x"])


@pytest.mark.parametrize("backbone", BACKBONES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), pixel=st.integers(0, 63))
def test_a_place_is_open_where_one_of_its_pixels_is_and_others_stay_as_they_were(
    backbone: dict[str, Any], seed: int, pixel: int
) -> None:
    model, image = painter(**backbone), some()
    mask = torch.zeros(1, 1, 64)
    mask[..., pixel] = 1
    asked = {"image": image, "mask": mask.view(1, 1, 8, 8)}
    made = model.sample(Request(seeds=(seed,), prompts=("red",), given=asked))
    moved = (made != image).all(1)[0]
    row, column = divmod(pixel, 8)
    assert moved.nonzero().tolist() == [[row // 2, column // 2]]


def test_strength_begins_from_the_picture_s_latents() -> None:
    model, image = painter(), some()
    whole = {"image": image, "mask": torch.ones(1, 1, 8, 8)}
    distances = [
        (
            model.sample(
                Request(seeds=(1,), prompts=("red",), steps=12, strength=strength, given=whole)
            )
            - image
        ).norm()
        for strength in (0.1, 0.5, 1.0)
    ]
    assert distances == sorted(distances)
    plain = model.sample(Request(seeds=(1,), prompts=("red",), steps=12))
    torch.testing.assert_close(
        model.sample(Request(seeds=(1,), prompts=("red",), steps=12, strength=1.0, given=whole)),
        plain,
    )


def test_rows_of_all_kinds_share_a_batch() -> None:
    """Edited or not, guided away from a text or not, at different steps: each ends as it does alone."""
    model = painter()
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    kinds = [
        Request(seeds=(1,), prompts=("red",), steps=5, negative_prompt="dark"),
        Request(seeds=(2,), prompts=("a dark red",), steps=3, guidance=1.0),
        Request(seeds=(3,), prompts=("red",), given={"image": some(), "mask": mask}, strength=0.5),
        Request(seeds=(4,)),
    ]
    rows = model.step(model.step(model.begin(kinds[0])))
    rows = join([rows, *(model.begin(kind) for kind in kinds[1:])])
    while not model.done(rows).all():
        rows = model.step(rows)
    for place, kind in enumerate(kinds):
        ended = model.finish(take(rows, [place]))
        torch.testing.assert_close(ended, model.sample(kind), rtol=0, atol=1e-4)
