"""How often codes are chosen; nothing here makes the host wait for the device.

Shape letters: B pictures, P places of the grid, K codes, N = B P.
"""

import torch
from torch import Tensor


def recount(places_PK: Tensor, index_BP: Tensor, pace: Tensor) -> None:
    """Move how often each place has each code by one step's codes, in place."""
    index_PB = index_BP.T.long()
    places_PK.mul_(1 - pace).scatter_add_(1, index_PB, pace.expand(index_PB.shape))


def uses(index_BP: Tensor, codes: int) -> Tensor:
    """Return how often each code was chosen, (K,) float32; `bincount` would make the host wait."""
    index_N = index_BP.flatten().long()
    ones_N = torch.ones_like(index_N, dtype=torch.float32)
    return torch.zeros(codes, device=index_N.device).scatter_add(0, index_N, ones_N)


def perplexity(index_BP: Tensor, codes: int) -> Tensor:
    """Return exp of the entropy of the codes' use, a scalar: K where all are used alike, 1 where one is."""
    found: Tensor = torch.special.entr(uses(index_BP, codes) / index_BP.numel()).sum().exp()
    return found


def relative_cost(painted_BCHW: Tensor, pixels_BCHW: Tensor) -> Tensor:
    """Return the squared error of each picture (B,) as a share of what the batch's mean picture costs on average."""
    cost_B = (painted_BCHW - pixels_BCHW).square().flatten(1).sum(1)
    plain_B = (pixels_BCHW.mean(0) - pixels_BCHW).square().flatten(1).sum(1)
    return cost_B / plain_B.mean()
