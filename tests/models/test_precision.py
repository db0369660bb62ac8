"""What bf16 may not touch: losses, likelihoods and the choice of codes are computed in fp32 under autocast."""

import copy
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

from models import FAMILIES, JUDGES, trainable
from models.parts.mel import Mel
from models.text_to_speech.alignment import uniform_path
from tests.models.families_kit import batch_of, shaken, tiny

SPREAD: Final = 0.02  # of a loss, relative: networks round their products to 8 bits
LEARNED: Final = [name for name in FAMILIES if not trainable(name).counts]


def half() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # Wan's own norms
@pytest.mark.parametrize("name", LEARNED)
def test_a_loss_under_autocast_is_fp32_and_near_that_without(name: str) -> None:
    model = tiny(name)
    batch = batch_of(model)
    for player in model.players:
        torch.manual_seed(0)
        exact = model(batch, player)
        torch.manual_seed(0)
        with half():
            rounded = model(batch, player)
        for key, value in {"total": rounded.total, **rounded.parts}.items():
            assert value.dtype == torch.float32, key
        assert rounded.total.item() == pytest.approx(exact.total.item(), rel=SPREAD)
        assert all(rows.dtype != torch.bfloat16 for rows in rounded.seen.values())


@pytest.mark.parametrize("name", LEARNED)
def test_a_likelihood_under_autocast_is_fp32_and_near_that_without(name: str) -> None:
    model = tiny(name).eval()
    if not model.capabilities.likelihood:
        return
    batch = batch_of(model)
    torch.manual_seed(0)
    exact = model.log_prob(batch)
    torch.manual_seed(0)
    with half():
        rounded = model.log_prob(batch)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=SPREAD, atol=0)


@pytest.mark.parametrize("name", [name for name in LEARNED if tiny(name).capabilities.tokenizes])
def test_codes_of_the_same_latents_are_the_same_under_autocast(name: str) -> None:
    """Distances in bf16 find another vector where two are about as near."""
    model: Any = tiny(name, codes=512)
    pixels = batch_of(model)["pixels"]
    like = model.encoder(pixels * 2 - 1)
    latents = torch.randn(like.shape, generator=torch.Generator().manual_seed(0))
    given = copy.copy(model)
    given._modules = {**model._modules, "encoder": Fixed(latents)}
    with half():
        chosen = given.codes(pixels)
    assert torch.equal(chosen, given.codes(pixels))


@pytest.mark.parametrize("name", ["matcha", "vits", "vits-checkpoint"])
def test_an_alignment_with_the_same_means_is_the_same_under_autocast(name: str) -> None:
    """Where phonemes are as alike as at the beginning of a training, scores in bf16 give frames to neighbours."""
    model: Any = shaken(name)
    batch = batch_of(model, 4)
    tokens = model.encode(["ewe and ewe"] * 4)
    generator = torch.Generator().manual_seed(0)
    far_BSX = torch.randn(4, tokens.shape[1], 64, generator=generator) * 0.1
    x_BXF = torch.randn(4, 64, 60, generator=generator) + 1.0
    length_B, frames_B = (tokens > 0).sum(1), torch.full((4,), 60)
    given: dict[str, tuple[Any, ...]] = {
        "matcha": (far_BSX + 1.0, x_BXF, tokens, frames_B),
        "vits-checkpoint": (far_BSX + 1.0, 0 * far_BSX, x_BXF, length_B, frames_B),
    }
    if name == "vits":
        seen = model._seen(batch)._replace(log_mel=2 * x_BXF - 6, frames=frames_B)
        given["vits"] = (far_BSX + 1.0, seen, tokens)
    exact = model._aligned(*given[name])
    assert exact.sum() == 4 * 60
    with half():
        rounded = model._aligned(*given[name])
    assert torch.equal(rounded, exact)


def test_pitch_and_energy_of_phonemes_are_not_rounded_under_autocast() -> None:
    model: Any = shaken("matcha")
    sound = batch_of(model, 4)["sound"]
    frames = torch.full((4,), model.config.mel.frames_of(sound.shape[1]))
    path = uniform_path(torch.full((4,), 5), frames, (5, int(frames[0])))
    exact = model._heard(sound, path)
    with half():
        rounded = model._heard(sound, path)
    assert all(torch.equal(one, other) for one, other in zip(rounded, exact, strict=True))


def test_magnitudes_of_mels_are_not_rounded_under_autocast() -> None:
    log_mel = torch.randn(2, 40, 9, generator=torch.Generator().manual_seed(0)) * 3
    with half():
        rounded = Mel().envelope(log_mel)
    assert torch.equal(rounded, Mel().envelope(log_mel))


class Fixed(nn.Module):
    """Gives what it was given to give."""

    def __init__(self, found: Tensor) -> None:
        super().__init__()
        self.found = found

    def forward(self, _: Tensor) -> Tensor:
        return self.found


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_s_loss_is_fp32_too(name: str) -> None:
    config = trainable(name).presets["tiny"]
    judge = trainable(name)(config).eval()
    shape = (16, config.channels, config.image_size, config.image_size)
    frames = getattr(config, "frames", None)
    shown = {"pixels": torch.rand(shape)}
    if frames is not None:
        shown = {"frames": torch.rand(16, frames, *shape[1:])}
    values = [len(known) for _, known in config.attributes]
    batch = {**shown, "attributes": torch.arange(16)[:, None] % torch.tensor(values)}
    exact = judge(batch).total
    with half():
        rounded = judge(batch).total
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=SPREAD)
