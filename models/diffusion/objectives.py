"""What the network of a diffusion predicts of x = alpha x0 + sigma eps: the noise, v, or a flow's velocity.

| objective | target | source |
|---|---|---|
| eps | eps | Ho et al. 2020 (arXiv:2006.11239), eq. 14 |
| v | alpha eps - sigma x0 | Salimans & Ho 2022 (arXiv:2202.00512), section 4 |
| flow | eps - x0, with alpha = 1 - sigma | Liu et al. 2022 (arXiv:2209.03003), eq. 1 |
| x0 | x0 itself | Ramesh et al. 2022 (arXiv:2204.06125), eq. 2 |

Given x they are linear in one another, so that every sampler may speak of x0, whatever was learned.
"""

from torch import Tensor


def target(objective: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return what the network has to predict."""
    if objective == "flow":
        return eps - x0
    return alpha * eps - sigma * x0 if objective == "v" else eps


def clean(objective: str, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the x0 that a prediction at x stands for."""
    if objective == "flow":
        return x - sigma * prediction
    if objective == "v":
        return alpha * x - sigma * prediction
    return (x - sigma * prediction) / alpha


def precondition(
    objective: str, alpha: Tensor, sigma: Tensor, data_std: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (scale, keep, gain): the prediction is keep x + gain network(scale x).

    keep x is the best linear guess of the target, for data of deviation `data_std`; network input
    and target then have unit variance, and the network need not copy the noise it is given (Karras
    et al. 2022, arXiv:2206.00364, section 5, worked out for eps, v, flow and x0).
    """
    power = data_std**2
    scale = ((alpha * data_std).square() + sigma.square()).rsqrt()
    if objective == "eps":
        return scale, sigma * scale.square(), alpha * data_std * scale
    if objective == "x0":
        return scale, alpha * power * scale.square(), data_std * sigma * scale
    keep = alpha * sigma * (1 - power) if objective == "v" else sigma - alpha * power
    return scale, keep * scale.square(), data_std * scale
