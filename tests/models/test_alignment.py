"""Alignment of frames with tokens: the best path is found, and flat starts find out what was said."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.text_to_speech.alignment import FlatStart, monotonic_path


def best_by_search(log_p_SF: torch.Tensor) -> float:
    """Return the score of the best of all ways to cut the frames into one run a token."""
    tokens, frames = log_p_SF.shape
    scores = []
    for cuts in itertools.combinations(range(1, frames), tokens - 1):
        edges = (0, *cuts, frames)
        runs = zip(range(tokens), itertools.pairwise(edges), strict=True)
        scores.append(sum(float(log_p_SF[token, a:b].sum()) for token, (a, b) in runs))
    return max(scores)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_the_path_is_the_best_of_all_that_there_are(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 3))
    sizes = [
        (tokens := data.draw(st.integers(1, 4)), data.draw(st.integers(tokens, 8)))
        for _ in range(rows)
    ]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    log_p = torch.randn(rows, 5, 9, dtype=torch.float64, generator=generator)
    length_B, frames_B = torch.tensor(sizes).T
    path = monotonic_path(log_p, length_B, frames_B)
    for row, (tokens, frames) in enumerate(sizes):
        own = path[row, :tokens, :frames]
        assert path[row].sum() == own.sum() == frames, "one token a frame, nothing behind the ends"
        assert own.sum(1).min() >= 1
        assert (own.argmax(0).diff() >= 0).all()
        found = float((log_p[row, :tokens, :frames] * own).sum())
        assert math.isclose(found, best_by_search(log_p[row, :tokens, :frames]), abs_tol=1e-9)


def test_more_padding_changes_no_path() -> None:
    log_p = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    length_B, frames_B = torch.tensor([3, 2]), torch.tensor([7, 4])
    wider = torch.full((2, 6, 12), math.nan)
    wider[:, :3, :7] = log_p
    found = monotonic_path(wider, length_B, frames_B)[:, :3, :7]
    assert torch.equal(found, monotonic_path(log_p, length_B, frames_B))


def test_a_row_with_fewer_frames_than_tokens_has_no_path() -> None:
    path = monotonic_path(torch.zeros(2, 3, 4), torch.tensor([3, 3]), torch.tensor([2, 3]))
    assert path.sum((1, 2)).tolist() == [0, 3]


def spoken(rows: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Rows of symbols 2 to 5, each of its own band for 4 to 9 frames; amid them 1, a pause, in every other row."""
    generator = torch.Generator().manual_seed(seed)
    mel = torch.randn(rows, 6, 64, generator=generator) * 0.1
    tokens_BS, bounds_BS = torch.zeros(rows, 5, dtype=torch.long), torch.zeros(rows, 6).long()
    for row in range(rows):
        order = (torch.randperm(4, generator=generator) + 2).tolist()
        tokens_BS[row] = torch.tensor([*order[:2], 1, *order[2:]])
        sizes = torch.randint(4, 10, (5,), generator=generator)
        sizes[2] *= row % 2
        bounds_BS[row, 1:] = sizes.cumsum(0)
        for place, token in enumerate(tokens_BS[row].tolist()):
            begin, end = bounds_BS[row, place : place + 2].tolist()
            mel[row, token, begin:end] += 3
    return mel, bounds_BS[:, -1], tokens_BS, torch.full((rows,), 5), bounds_BS


def trained(parts: int, rows: int = 32) -> FlatStart:
    *batch, _ = spoken(rows)
    model = FlatStart(6, 6, optional=(1,))
    for number in range(5):
        for part in zip(*(one.chunk(parts) for one in batch), strict=True):
            model.absorb(*part, flat=number == 0)
        model.settle()
    return model


def test_a_flat_start_finds_where_each_token_is_and_which_pauses_are_not() -> None:
    mel, frames_B, tokens_BS, length_B, bounds_BS = spoken(16, seed=1)
    found_BS = trained(1).bounds(mel, frames_B, tokens_BS, length_B)
    assert (found_BS - bounds_BS).abs().float().mean() < 0.1
    assert torch.equal(found_BS[:, 2] == found_BS[:, 3], bounds_BS[:, 2] == bounds_BS[:, 3])


def test_sums_of_parts_make_the_same_gaussians() -> None:
    one, other = trained(1), trained(5)
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-9, atol=1e-9)


def test_what_does_not_fit_is_left_out_and_said_where_nothing_fits() -> None:
    model = trained(1)
    tokens_BS, length_B = torch.tensor([[2, 3, 4]]), torch.tensor([3])
    bounds = model.bounds(torch.zeros(1, 6, 8), torch.tensor([5]), tokens_BS, length_B)
    assert bounds.tolist() == [[-1] * 4]
    model.absorb(torch.zeros(1, 6, 8), torch.tensor([5]), tokens_BS, length_B, flat=False)
    with pytest.raises(ValueError, match="no recording has 2 frames a phone"):
        model.settle()
