"""Drawing a token from logits: by temperature, from the likeliest k, from the likeliest of a joint probability p.

Shape letters: B rows, K tokens of the vocabulary.
"""

import torch
from torch import Tensor

from models.family import Request


def drawn(
    logits_BK: Tensor, u_B: Tensor, temperature_B: Tensor, top_k_B: Tensor, top_p_B: Tensor
) -> Tensor:
    """Return a token a row (B,) int64, by inversion of each row's own uniform draw.

    Args:
        logits_BK: -inf where a token must not come.
        u_B: in [0, 1].
        temperature_B: what logits are divided by; 0 gives the likeliest token.
        top_k_B: int64; only the k likeliest tokens, 0 for all.
        top_p_B: only the likeliest tokens whose sum reaches p (Holtzman et al. 2019, arXiv:1904.09751), 1 for all.
    """
    scaled_BK = logits_BK.double() / temperature_B.clamp(min=1e-6)[:, None]
    sorted_BK, order_BK = scaled_BK.sort(stable=True, dim=1, descending=True)
    p_BK = sorted_BK.softmax(1)
    before_BK = p_BK.cumsum(1) - p_BK
    rank_K = torch.arange(logits_BK.shape[1], device=logits_BK.device)
    most_B = torch.where(top_k_B > 0, top_k_B, logits_BK.shape[1])
    kept_BK = (rank_K < most_B[:, None]) & (before_BK < top_p_B[:, None]) & (p_BK > 0)
    kept_BK[:, 0] = True
    reached_BK = (p_BK * kept_BK).cumsum(1)
    place_B = (reached_BK <= u_B[:, None] * reached_BK[:, -1:]).sum(1)
    place_B = torch.where(temperature_B > 0, place_B, 0)
    place_B = place_B.minimum(kept_BK.sum(1) - 1)  # u of 1 is the last one
    token_B: Tensor = order_BK.gather(1, place_B[:, None])[:, 0]
    return token_B


def asked(request: Request, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return temperature, top_k and top_p a row (B,), as `drawn` takes them; the likeliest where nothing is asked.

    Raises:
        ValueError: one of them is out of range.
    """
    temperature, top_k = request.temperature or 0.0, request.top_k or 0
    top_p = 1.0 if request.top_p is None else request.top_p
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            "temperature and top_k must be at least 0, top_p above 0 and at most 1, got"
            f" {temperature}, {top_k} and {top_p}"
        )
    count = len(request.seeds)
    return (
        torch.full((count,), float(temperature), device=device),
        torch.full((count,), top_k, device=device),
        torch.full((count,), float(top_p), device=device),
    )
