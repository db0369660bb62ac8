"""Drawing a token from its logits: by temperature, from the k likeliest, from the likeliest of a joint probability p.

And its log-probability. Shape letters: B rows, V tokens of the vocabulary, K of the likeliest.
"""

from typing import Final

import torch
from torch import Tensor

from models.family import Rows
from models.request import Request

MOST_LOGPROBS: Final = 20  # likeliest tokens
ALL: Final = 2**31 - 1  # tokens: no vocabulary has more


def drawn(
    logits_BV: Tensor, u_B: Tensor, temperature_B: Tensor, top_k_B: Tensor, top_p_B: Tensor
) -> Tensor:
    """Return a token a row (B,) int64: where the likelihoods of the kept tokens, the likeliest first, add up to u.

    Kept are the k likeliest (0: all), and of those the fewest that together have top_p of their probability (Holtzman
    et al. 2019, arXiv:1904.09751); a temperature of 0 keeps the likeliest alone. Logits may be -inf where a token must
    not come; all behind them is float64.

    Example:
        >>> one = torch.ones(1)
        >>> drawn(torch.tensor([[0.1, 0.7, 0.2]]).log(), 0.75 * one, one, 0 * one, one).tolist()
        [2]
    """
    # a temperature of 0 divides by something; what it keeps is decided by `most_B` below
    scaled_BV = logits_BV.double() / temperature_B.clamp(min=1e-6)[:, None]
    sorted_BV, order_BV = scaled_BV.sort(stable=True, dim=1, descending=True)
    rank_V = torch.arange(logits_BV.shape[1], device=logits_BV.device)
    most_B = torch.where(top_k_B > 0, top_k_B, logits_BV.shape[1])
    most_B = most_B.masked_fill(temperature_B == 0, 1)
    p_BV = sorted_BV.masked_fill(rank_V >= most_B[:, None], -torch.inf).softmax(1)
    kept_BV = p_BV.masked_fill(p_BV.cumsum(1) - p_BV >= top_p_B[:, None], 0)
    below_BV = kept_BV.cumsum(1)
    place_B = (below_BV <= u_B[:, None] * below_BV[:, -1:]).sum(1)
    place_B = place_B.minimum((kept_BV > 0).sum(1) - 1)  # whatever rounding leaves of u
    token_B: Tensor = order_BV.gather(1, place_B[:, None])[:, 0]
    return token_B


def no_logprobs(count: int, size: int) -> Rows:
    """Return the part of `count` rows that `logprobs` fills in, of a vocabulary of `size` tokens."""
    most = min(MOST_LOGPROBS, size)
    return {
        "nats": torch.zeros(count),
        "likeliest": torch.zeros(count, most, dtype=torch.long),
        "likeliest_nats": torch.zeros(count, most),
    }


def logprobs(rows: Rows, logits_BV: Tensor, token_B: Tensor) -> Rows:
    """Return log p of the tokens just drawn and the likeliest ones (B, K), in nats, where any row has `logprobs`.

    That is of all tokens, at temperature 1, before top_k and top_p: the distribution that likelihoods are of.
    """
    return token_logprobs(logits_BV, token_B) if rows["logprobs"].any() else {}


def token_logprobs(logits_BV: Tensor, token_B: Tensor) -> Rows:
    """Return log p of the tokens and the likeliest ones (B, K), in nats, on the CPU."""
    nats_BV = logits_BV.float().log_softmax(1)
    nats_BK, likeliest_BK = nats_BV.topk(min(MOST_LOGPROBS, nats_BV.shape[1]), 1)
    nats_B = nats_BV.gather(1, token_B.to(nats_BV.device)[:, None])[:, 0]
    found = {"nats": nats_B, "likeliest": likeliest_BK, "likeliest_nats": nats_BK}
    return {name: value.cpu() for name, value in found.items()}


def sampling_rules(
    request: Request, default: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return temperature (`default` where none is asked), top_k and top_p a row (B,), as `drawn` takes them.

    Raises:
        ValueError: temperature, top_k, top_p or max_tokens is out of its range.
    """
    temperature = request.options.get("temperature", default)
    top_k, top_p = request.options.get("top_k"), request.options.get("top_p")
    max_tokens = request.options.get("max_tokens")
    if not 0 <= temperature <= 100:
        raise ValueError(f"temperature must be in 0..100, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    count = len(request.seeds)
    return (
        torch.full((count,), float(temperature), dtype=torch.float64, device=device),
        torch.full((count,), min(top_k or 0, ALL), device=device),
        torch.full((count,), float(top_p or 1), dtype=torch.float64, device=device),
    )
