"""Dropout: as many zeros as asked for, of all sizes and layouts, and the same expectation."""

import pytest
import torch

from models.parts.dropout import Dropout, mask


@pytest.mark.parametrize("p", [0.1, 0.13, 0.5, 0.9])
def test_the_share_of_zeros_is_p_and_the_rest_makes_up_for_it(p: float) -> None:
    torch.manual_seed(0)
    drawn = mask(torch.ones(64, 4096), p)
    kept = (drawn != 0).double()
    error = 4 * (p * (1 - p) / drawn.numel()) ** 0.5
    assert abs(kept.mean() - (1 - p)) < error
    assert drawn.unique().numel() == 2
    assert drawn.max().item() * (1 - p) == pytest.approx(1, rel=1e-3)
    near = (kept[:, 1:] - 1 + p) * (kept[:, :-1] - 1 + p)
    assert near.mean().abs() < 4 * p * (1 - p) / near.numel() ** 0.5, "neighbours share no bits"


@pytest.mark.parametrize("shape", [(3, 5), (2, 7, 3), (4, 3, 5, 5), (1, 1), (2, 8, 4, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_mask_has_a_number_for_every_one_of_any_layout(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x = torch.ones(shape, dtype=dtype)
    if len(shape) == 4:
        x = x.contiguous(memory_format=layout)
    torch.manual_seed(0)
    found = mask(x, 0.5)
    assert found.shape == x.shape
    assert found.dtype == dtype
    assert set(found.flatten().tolist()) <= {0.0, 2.0}
    if len(shape) == 4:
        assert found.is_contiguous(memory_format=layout)
    torch.manual_seed(0)
    assert torch.equal(mask(x.contiguous(), 0.5).flatten(1).sum(1), found.flatten(1).sum(1))


def test_what_was_zero_gets_no_gradient_and_p_of_0_draws_nothing() -> None:
    torch.manual_seed(0)
    x = torch.ones(8, 64, requires_grad=True)
    out = Dropout(0.25)(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())
    before = torch.get_rng_state()
    for still in (Dropout(0.0)(x), Dropout(0.25).eval()(x)):
        assert still is x
    assert torch.equal(before, torch.get_rng_state())
