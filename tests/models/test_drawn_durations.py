"""VITS' stochastic duration predictor: a flow with a density, and draws that are as durations are."""

import math

import pytest
import torch
from torch import Tensor

from models.request import Request
from models.text_to_speech.drawn_durations import (
    BINS,
    EDGE,
    DrawnDurations,
    PairFlow,
    spline,
)
from tests.models.families_kit import tiny


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for number, one in enumerate(module.parameters()):
            one.add_(0.1 * random(*one.shape, seed=number))
    return module


def test_a_spline_is_monotone_bends_within_its_edges_and_comes_back() -> None:
    shape = 2 * random(3 * BINS - 1)
    x = torch.linspace(-1.4 * EDGE, 1.4 * EDGE, 1001, dtype=torch.float64).requires_grad_()
    shapes = shape.double().expand(1001, -1)
    y, log_slope = spline(x, shapes)
    assert (y.diff() > 0).all()
    slope = torch.autograd.grad(y.sum(), x)[0]
    torch.testing.assert_close(log_slope.exp(), slope, rtol=1e-6, atol=0)
    outside = x.abs() > EDGE
    assert torch.equal(y[outside], x[outside])
    assert (y[~outside] - x[~outside]).abs().max() > 0.3
    back, _ = spline(y.detach(), shapes, back=True)
    torch.testing.assert_close(back, x.detach(), rtol=0, atol=1e-6)
    same, none = spline(x.detach(), torch.zeros(1001, 3 * BINS - 1).double())
    torch.testing.assert_close(same, x.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(none, torch.zeros_like(none), rtol=0, atol=1e-6)


def test_a_flow_comes_back_and_says_the_determinant_of_its_jacobian() -> None:
    flow, said, inside = shaken(PairFlow(8)), random(1, 4, 8), torch.ones(1, 4, 1)
    assert isinstance(flow, PairFlow)
    pair = random(2, 1, 4, seed=1)
    there, log_det = flow((pair[0], pair[1]), said, inside)
    back = flow.back(there, said, inside)
    torch.testing.assert_close(torch.stack(back), pair, rtol=0, atol=1e-4)

    def moved(flat: Tensor) -> Tensor:
        first, second = flat.view(2, 1, 4)
        return torch.stack(flow((first, second), said, inside)[0]).flatten()

    jacobian = torch.autograd.functional.jacobian(moved, pair.flatten())
    exact = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(log_det.sum(), exact, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def learned() -> DrawnDurations:
    """One that has seen a phoneme of 2 frames, three times in four, or of 12, and another of 5."""
    torch.manual_seed(0)
    durations = DrawnDurations(16, 0.0)
    x_BSW = torch.eye(16)[:2].expand(64, -1, -1)
    frames_BS = torch.stack([torch.where(torch.arange(64) % 4 > 0, 2, 12), torch.full((64,), 5)], 1)
    path_BSF = (torch.arange(12) < frames_BS[..., None]).float()
    optimizer = torch.optim.Adam(durations.parameters(), 0.01)
    for _ in range(250):
        optimizer.zero_grad()
        durations.errors(x_BSW, path_BSF, torch.ones(64, 2).bool()).mean().backward()
        optimizer.step()
    return durations


@torch.no_grad()
def test_draws_are_as_often_as_durations_were(learned: DrawnDurations) -> None:
    x_BSW, inside_BS = torch.eye(16)[:2].expand(400, -1, -1), torch.ones(400, 2).bool()
    frames_BS = learned.frames(x_BSW, inside_BS, 1.0, range(400))
    assert (frames_BS[:, 0] == 2).float().mean() == pytest.approx(0.75, abs=0.1)
    assert (frames_BS[:, 0] == 12).float().mean() == pytest.approx(0.25, abs=0.1)
    assert (frames_BS[:, 1] == 5).float().mean() > 0.9
    alone = learned.frames(x_BSW[:1], inside_BS[:1], 1.0, [7])
    assert torch.equal(alone[0], frames_BS[7])
    slow = learned.frames(x_BSW, inside_BS, 0.5, range(400))
    assert slow.mean() == pytest.approx(2 * float(frames_BS.mean()), rel=0.15)


@torch.no_grad()
def test_the_bound_is_near_the_entropy_and_never_below_it(learned: DrawnDurations) -> None:
    x_BSW = torch.eye(16)[:2].expand(400, -1, -1)
    frames_BS = torch.stack(
        [torch.where(torch.arange(400) % 4 > 0, 2, 12), torch.full((400,), 5)], 1
    )
    path_BSF = (torch.arange(12) < frames_BS[..., None]).float()
    torch.manual_seed(1)
    nats = learned.errors(x_BSW, path_BSF, torch.ones(400, 2).bool()).mean(0)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert entropy - 0.05 < nats[0] < entropy + 0.4
    assert -0.05 < nats[1] < 0.4


def test_a_network_that_draws_durations_says_a_text_at_many_paces() -> None:
    for durations, paces in (("drawn", 4), ("mean", 1)):
        model = tiny("vits", speakers=("ann",), durations=durations).eval()
        said = [model.sample(Request(seeds=(s,), prompts=("seven seven",))) for s in range(4)]
        assert (len({one.shape[1] for one in said}) > 1) == (paces > 1)
        again = model.sample(Request(seeds=(2,), prompts=("seven seven",)))
        assert torch.equal(again, said[2])
