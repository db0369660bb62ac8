"""Pictures as codes and codes as pictures, and how often codes are chosen without making the host wait for the device.

Shape letters: B pictures, P places of the grid, K codes, N = B P.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.family import Entry, Family
from models.parts.influence import influence
from models.parts.spaces import fingerprint
from models.ports import Port


class Coding(Family):
    """A family whose pictures are grids of codes, for whoever learns to write them: `codes` and `painted`."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Return `encode`, pixels to codes, and `decode`, codes to pixels; codes are those of these weights alone."""
        c = self.config
        codebook = fingerprint(*self.state_dict().values())
        pixels = {"pixels": Port("pixels", (c.channels, c.image_size, c.image_size))}
        codes = {"codes": Port("codes", (c.side**2,), space=codebook)}
        facts = {"codes": c.codes, "places": c.side**2, "codebook": codebook}
        return {"encode": Entry(pixels, codes, facts), "decode": Entry(codes, pixels)}

    def enter(self, entry: str, given: Mapping[str, Tensor]) -> Tensor:
        """Return the codes (B, P) int64 of pixels, or the pictures (B, C, H, W) of codes."""
        if entry == "encode":
            return self.codes(given["pixels"])
        if entry == "decode":
            return self.painted(given["codes"].long())
        return super().enter(entry, given)


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
    return _evenness(uses(index_BP, codes))


def perplexity_by_picture(index_BP: Tensor, codes: int) -> Tensor:
    """Return the perplexity as what each picture contributes to it (B,), by `influence`."""
    index_BP = index_BP.long()
    own_BK = torch.zeros(len(index_BP), codes, device=index_BP.device)
    own_BK.scatter_add_(1, index_BP, torch.ones_like(index_BP, dtype=torch.float32))
    uses_K = own_BK.sum(0)
    return influence(_evenness(uses_K), _evenness(uses_K - own_BK))


def relative_cost(painted_BCHW: Tensor, pixels_BCHW: Tensor) -> Tensor:
    """Return the squared error of pictures over what their mean picture costs, as each one's contribution (B,).

    Their mean is the ratio; by `influence`, since each picture has a part in the mean one.
    """
    count = len(pixels_BCHW)
    cost_B = (painted_BCHW - pixels_BCHW).square().flatten(1).sum(1)
    plain_B = (pixels_BCHW.mean(0) - pixels_BCHW).square().flatten(1).sum(1)
    others_B = plain_B.sum() - plain_B * count / max(1, count - 1)  # about the mean of the others
    return influence(cost_B.sum() / plain_B.sum(), (cost_B.sum() - cost_B) / others_B)


def _evenness(uses_K: Tensor) -> Tensor:
    """Return exp of the entropy of what was counted (..., K)."""
    share_K = uses_K / uses_K.sum(-1, keepdim=True)
    found: Tensor = torch.special.entr(share_K).sum(-1).exp()
    return found
