"""Pictures are changed as their own rows say, and a network that is told of it draws as if they had not been."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data.loaders import Loader
from flows.recipe import Augment
from flows.training.augmenting import DRAWN, augmented, drawn, edm_pipe
from models.request import Request
from tests.flows.training_kit import prepare
from tests.models.families_kit import tiny

STILL = torch.tensor([0.9] * (DRAWN - 1))
"""Numbers for which EDM's pipe does nothing."""
ANGLE, AXIS, RIGHT, DOWN = 5, 9, 11, 12


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("data") / "shades")


def learned(prepared: Path, rank: int, world: int, steps: int, rules: Augment) -> list[Tensor]:
    """Return the pictures of a rank, step by step, 8 a step over all ranks."""
    loader = Loader(prepared, "train", batch_size=8 // world, rank=rank, world=world)
    found = []
    for step in range(steps):
        batch, u = loader.batch(step), drawn(7, loader.places(step))
        found.append(augmented(batch, u, rules)["pixels"])
    return found


@pytest.mark.parametrize("rules", [Augment(flip=0.5), Augment(edm=0.5)])
def test_a_row_is_changed_in_the_same_way_whatever_the_number_of_workers(
    prepared: Path, rules: Augment
) -> None:
    alone = learned(prepared, 0, 1, 8, rules)
    together = [learned(prepared, rank, 2, 8, rules) for rank in range(2)]
    for step, pixels in enumerate(alone):
        assert torch.equal(pixels, torch.cat([rank[step] for rank in together]))
    plain = learned(prepared, 0, 1, 8, Augment())
    assert not torch.equal(torch.cat(alone), torch.cat(plain))


def test_in_another_epoch_and_under_another_seed_a_row_is_changed_in_another_way() -> None:
    rows = [drawn(seed, range(first, first + 64)) for seed in (0, 1) for first in (0, 64)]
    assert torch.cat(rows)[:, 0].unique().numel() == 256
    assert torch.equal(drawn(0, [64, 65]), rows[1][:2])


def test_half_are_mirrored_and_each_other_change_is_as_frequent_as_asked() -> None:
    pictures = torch.rand(1, 1, 8, 8).expand(20_000, 1, 8, 8)
    pixels, said = edm_pipe(pictures, drawn(0, range(20_000))[:, 1:], 0.12)
    for shares, expected in (
        (said[:, 0], 0.5),
        (said[:, 1], 0.06),
        (said[:, 2] != 0, 0.12),
        (said[:, 4] != 0, 0.12),
        (said[:, 5] != 0, 0.12),
        (said[:, 7] != 0, 0.12),
    ):
        assert shares.float().mean().item() == pytest.approx(expected, abs=0.012)
    for column in (2, 7, 8):
        some = said[said[:, column] != 0, column]
        assert some.mean().abs() < 0.1
        assert some.std().item() == pytest.approx(1, abs=0.1)
    untouched = (said == 0).all(1)
    assert 0.2 < untouched.float().mean() < 0.35
    assert torch.equal(pixels[untouched], pictures[untouched])
    assert bool(((pixels >= 0) & (pixels <= 1)).all())
    mirrored = augmented({"pixels": pictures}, drawn(0, range(20_000)), Augment(flip=0.25))
    share = (mirrored["pixels"] != pictures).flatten(1).any(1).float().mean()
    assert share.item() == pytest.approx(0.25, abs=0.012)


def changed(picture: Tensor, *numbers: tuple[int, float]) -> tuple[Tensor, Tensor]:
    u = STILL.clone()
    for place, value in numbers:
        u[place] = value
    pixels, said = edm_pipe(picture[None], u[None], 0.5)
    return pixels[0], said[0]


def test_what_the_network_is_told_is_what_was_done() -> None:
    torch.manual_seed(0)
    picture, gate = torch.rand(3, 8, 8), 0.1
    ndtr = torch.special.ndtr(torch.tensor(1.0)).item()  # of which the normal number is 1
    pixels, said = changed(picture)
    assert torch.equal(pixels, picture)
    assert said.tolist() == [0] * 9
    pixels, said = changed(picture, (0, gate))
    assert torch.equal(pixels, picture.flip(2))
    assert said.tolist() == [1] + [0] * 8
    pixels, said = changed(picture, (1, gate))
    assert torch.equal(pixels, picture.flip(1))
    assert said.tolist() == [0, 1] + [0] * 7
    pixels, said = changed(picture, (4, gate), (ANGLE, 0.75))  # of -pi to pi
    torch.testing.assert_close(pixels, picture.rot90(1, (1, 2)), rtol=0, atol=1e-4)
    torch.testing.assert_close(said, torch.tensor([0.0, 0, 0, -1, 1, 0, 0, 0, 0]))
    pixels, said = changed(picture, (10, gate), (RIGHT, ndtr), (DOWN, ndtr))  # an eighth of 8
    torch.testing.assert_close(pixels[:, 1:, 1:], picture[:, :-1, :-1], rtol=0, atol=1e-3)
    torch.testing.assert_close(said, torch.tensor([0.0] * 7 + [1, 1]), rtol=0, atol=1e-4)


def test_a_stretched_picture_is_longer_in_one_direction_and_a_larger_one_in_both() -> None:
    inside = torch.zeros(1, 32, 32)
    inside[:, 12:20, 12:20] = 1
    (_, height, width), gate, u = inside.shape, 0.1, torch.special.ndtr(torch.tensor(2.5)).item()
    for numbers, across, along in (
        ([(2, gate), (3, u)], 2**0.5, 2**0.5),
        ([(6, gate), (7, u)], 2**0.5, 2**-0.5),
    ):
        pixels, _ = changed(inside, *numbers)
        assert pixels[0, height // 2].sum().item() == pytest.approx(8 * across, rel=0.1)
        assert pixels[0, :, width // 2].sum().item() == pytest.approx(8 * along, rel=0.1)


@pytest.mark.parametrize(("rules", "steps"), [(Augment(edm=0.12), 300), (Augment(flip=0.5), 100)])
def test_samples_stand_as_the_data_do_where_the_network_is_told(rules: Augment, steps: int) -> None:
    """Every picture has its light at the upper left; the control's network is not told that half are mirrored."""
    torch.manual_seed(0)
    sizes = {"channels": 1, "widths": (24,), "attention": 0, "patch": 4, "steps": 8}
    model = tiny("edm", **sizes, augmented=rules.edm > 0)
    pixels = torch.zeros(32, 1, 8, 8)
    pixels[:, :, 1:4, 1:4] = 0.6 + 0.4 * torch.rand(32, 1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        batch = augmented({"pixels": pixels}, drawn(0, range(32 * step, 32 * step + 32)), rules)
        optimizer.zero_grad()
        model(batch).total.backward()
        optimizer.step()
    samples = model.eval().sample(Request(seeds=tuple(range(128))))
    brightest_B = F.adaptive_avg_pool2d(samples, 2).flatten(1).argmax(1)
    upper_left, upper_right = ((brightest_B == corner).float().mean() for corner in (0, 1))
    if model.config.augmented:
        assert upper_left > 0.9
    else:
        assert upper_right > 0.3
