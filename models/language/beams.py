"""Beam search over rows of a decoder (Wu et al. 2016, arXiv:1609.08144, eq. 14, without the coverage penalty).

Shape letters: N sources, W beams, R = N W rows, X continuations looked at, T places, K tokens of the vocabulary.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from models.family import Rows
from models.parts.tokens import EOS

Advance: TypeAlias = Callable[[Rows], Tensor]
"""Returns log-probabilities (R, K) of every row's next token, -inf for what must not be written; moves its `kv`."""


def search(rows: Rows, advance: Advance, beams: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the best candidate a source, tokens (N, T) with -1 from the end on, and its score (N,).

    The score is log p / ((5 + length) / 6)^alpha, <eos> counted. A candidate is over when its <eos> is among the best W
    continuations, and a source when it has W that are over; so one beam is greedy decoding.

    Args:
        rows: W equal rows a source, which have written nothing: `tokens`, `kv`, `index`, `limit` and what
            `advance` needs besides.
        advance: reads the newest token of each row.
        beams: W.
        alpha: of the length penalty; 0 for none.
    """
    tokens_RT = rows["tokens"]
    count, device = len(tokens_RT) // beams, tokens_RT.device
    first_N1 = torch.arange(count, device=device)[:, None] * beams
    total_NW = torch.full((count, beams), -math.inf, device=device)
    total_NW[:, 0] = 0  # at first there is one
    best_NT, best_N = tokens_RT[::beams], total_NW.new_full((count,), -math.inf)
    over_N = torch.zeros(count, dtype=torch.long, device=device)
    limit = int(rows["limit"][0])
    for place in range(limit):
        nats_RK = advance(rows)
        size = nats_RK.shape[1]
        nats_NX = (total_NW[:, :, None] + nats_RK.view(count, beams, size)).flatten(1)
        nats_NX, at_NX = nats_NX.topk(min(2 * beams, beams * size), 1)
        token_NX, from_NX = at_NX % size, at_NX // size + first_N1
        ends_NX = token_NX == EOS
        over_NX = ends_NX | (place + 1 == limit)
        over_NX[:, beams:] = False
        over_NX &= nats_NX.isfinite() & (over_N < beams)[:, None]
        score_NX = (nats_NX / ((5 + place + 1) / 6) ** alpha).masked_fill(~over_NX, -math.inf)
        score_N, pick_N = score_NX.max(1)
        last_N, origin_N = (x.gather(1, pick_N[:, None])[:, 0] for x in (token_NX, from_NX))
        ended_NT = tokens_RT[origin_N]
        ended_NT[:, place] = last_N.masked_fill(last_N == EOS, -1)
        best_NT = torch.where((score_N > best_N)[:, None], ended_NT, best_NT)
        best_N = best_N.maximum(score_N)
        over_N = over_N + over_NX.sum(1)
        if (over_N >= beams).all():
            break
        total_NW, on_NW = nats_NX.masked_fill(ends_NX, -math.inf).topk(beams, 1)
        from_R = from_NX.gather(1, on_NW).flatten()
        tokens_RT = tokens_RT[from_R]
        tokens_RT[:, place] = token_NX.gather(1, on_NW).flatten()
        index = rows["index"] + 1
        rows = {**rows, "tokens": tokens_RT, "kv": rows["kv"][from_R], "index": index}
    return best_NT, best_N
