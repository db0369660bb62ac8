"""Linear discriminant analysis (Fisher 1936; Rao 1948) as a generative model: p(x | y) = N(mu_y, Sigma).

Sigma is pooled over the classes and shrunk towards a multiple of the identity: by a given amount, or by Ledoit & Wolf's
(2004) estimate of the best one, class by class on standardised pixels, as scikit-learn does with shrinkage="auto".
Amount 0 is scikit-learn's SVD solver: directions without variance are left out, so pictures have no density.

Shape letters: B pictures, C channels, H and W pixels, D = C H W, Y classes, R <= D directions, G = Y or 1 scatters.
Pixels are in [0, 1]. Statistics and likelihoods are float64; log p(x) is a density's, in nats a picture.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds, classes
from models.parts.noise import normals
from models.request import Request

CONSTANT: Final = 1e-12  # a pixel's least variance, over its mean square; below is rounding
LEAST_SPREAD: Final = (
    1e-4  # of a direction kept at shrinkage 0, in standardised pixels; scikit-learn's tol
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LDAConfig(classes.Classed):
    """The classes, and how much the covariance is shrunk."""

    image_size: int = 28  # pixels a side
    channels: int = 1
    vocabulary: tuple[str, ...] = ()  # the classes; empty: one class
    shrinkage: float | Literal["ledoit-wolf"] = 0.1  # share of the identity

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(self, dict.fromkeys(("image_size", "channels"), bounds.SIZE))
        amount: object = self.shrinkage  # from JSON or YAML, so of any type
        known = amount == "ledoit-wolf" or (isinstance(amount, int | float) and 0 <= amount <= 1)
        if not known:
            raise ValueError(f"shrinkage must be 0 to 1 or 'ledoit-wolf', got {self.shrinkage!r}")


class LDA(Family):
    """Classes that differ in their mean and share their covariance."""

    Config = LDAConfig
    presets: ClassVar[Mapping[str, LDAConfig]] = {
        "tiny": LDAConfig(image_size=8),
        "base": LDAConfig(),
        "ledoit-wolf": LDAConfig(shrinkage="ledoit-wolf"),
        "svd": LDAConfig(shrinkage=0),
    }
    counts = True
    config: LDAConfig
    count_Y: Tensor
    sum_YD: Tensor
    scatter_GDD: Tensor
    fourth_Y: Tensor
    log_prior_Y: Tensor
    mean_YD: Tensor
    whiten_DD: Tensor
    colour_DD: Tensor
    log_det: Tensor

    def __init__(self, config: LDAConfig) -> None:
        super().__init__()
        self.config = config
        pixels, count = config.channels * config.image_size**2, max(1, len(config.vocabulary))
        groups = count if config.shrinkage == "ledoit-wolf" else 1

        def keep(name: str, value: Tensor) -> None:
            self.register_buffer(name, value.double())

        keep("count_Y", torch.zeros(count))
        keep("sum_YD", torch.zeros(count, pixels))
        keep("scatter_GDD", torch.zeros(groups, pixels, pixels))  # of x x^T, not yet centred
        if config.shrinkage == "ledoit-wolf":
            keep("fourth_Y", torch.zeros(count))  # of |z|^4, z standardised within the class
        keep("log_prior_Y", torch.full((count,), -math.log(count)))
        keep("mean_YD", torch.full((count, pixels), 0.5))
        keep("whiten_DD", torch.eye(pixels))  # W: W W^T is the inverse of Sigma
        keep("colour_DD", torch.eye(pixels))  # A: A A^T is Sigma
        keep("log_det", torch.zeros(()))  # of Sigma

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return Capabilities(
            condition="text" if self.config.vocabulary else "none",
            unprompted=bool(self.config.vocabulary),
            likelihood=self.config.shrinkage != 0,
        )

    @property
    def sums(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the sums; Ledoit and Wolf's fourth moment needs the means, so a second pass."""
        first = ("count_Y", "sum_YD", "scatter_GDD")
        return (first, ("fourth_Y",)) if self.config.shrinkage == "ledoit-wolf" else (first,)

    @torch.no_grad()
    def absorb(self, batch: Batch, number: int = 0) -> None:
        """Add the rows, the pixels and their products; in the second pass, the fourth moment."""
        x_BD = batch["pixels"].flatten(1).double()
        class_B = classes.of_batch(batch, len(self.count_Y))
        if number == 1:
            z_BD = (x_BD - self.mean_YD[class_B]) / self._scale()[class_B]
            self.fourth_Y.index_add_(0, class_B, z_BD.square().sum(1).square())
            return
        self.count_Y.index_add_(0, class_B, torch.ones_like(x_BD[:, 0]))
        self.sum_YD.index_add_(0, class_B, x_BD)
        if len(self.scatter_GDD) == 1:
            self.scatter_GDD[0].addmm_(x_BD.T, x_BD)
            return
        for y in set(class_B.tolist()):
            own_ND = x_BD[class_B == y]
            self.scatter_GDD[y].addmm_(own_ND.T, own_ND)

    @torch.no_grad()
    def settle(self, number: int = 0) -> None:
        """Turn the sums into priors, means and, after the last pass, the covariance.

        Raises:
            ValueError: a class has no rows, or nothing varies within the classes.
        """
        self.log_prior_Y.copy_(classes.log_prior(self.count_Y, self.config.vocabulary))
        self.mean_YD.copy_(self.sum_YD / self.count_Y[:, None])
        if number + 1 < len(self.sums):
            return
        covariance_DD = self._ledoit_wolf() if number else self._shrunk()
        scale_D = covariance_DD.diagonal().sqrt()
        if not bool(scale_D.any()):
            raise ValueError("the pictures of each class are all equal: LDA needs some variance")
        scale_D = torch.where(scale_D > 0, scale_D, 1.0)
        value_D, vector_DD = torch.linalg.eigh(covariance_DD / scale_D[:, None] / scale_D)
        least = LEAST_SPREAD**2 if self.config.shrinkage == 0 else 0.0
        if self.config.shrinkage != 0 and not float(value_D[0]) > 0:
            raise ValueError(
                f"the covariance is singular with shrinkage {self.config.shrinkage}: raise it"
            )
        root_D = torch.where(value_D > least, value_D, 0.0).sqrt()
        inverse_D = torch.where(value_D > least, value_D, math.inf).rsqrt()
        self.whiten_DD.copy_(vector_DD / scale_D[:, None] * inverse_D)
        self.colour_DD.copy_(vector_DD * scale_D[:, None] * root_D)
        self.log_det.copy_(2 * scale_D.log().sum() - 2 * inverse_D[inverse_D > 0].log().sum())

    def _within(self, group: int) -> Tensor:
        """Return a class's scatter, or the pooled one, about the means, (D, D), without rounding's leavings."""
        spread_YD = self.sum_YD / self.count_Y.sqrt()[:, None]
        own_YD = spread_YD if len(self.scatter_GDD) == 1 else spread_YD[group : group + 1]
        within_DD = torch.addmm(self.scatter_GDD[group], own_YD.T, own_YD, alpha=-1)
        varies_D = within_DD.diagonal() > CONSTANT * self.scatter_GDD[group].diagonal()
        return within_DD.mul_(varies_D[:, None]).mul_(varies_D)

    def _scale(self) -> Tensor:
        """Return each class's standard deviations (Y, D); 1 where a pixel is constant."""
        square_YD = self.scatter_GDD.diagonal(dim1=1, dim2=2)
        within_YD = square_YD - self.sum_YD.square() / self.count_Y[:, None]
        variance_YD = within_YD / self.count_Y[:, None]
        return torch.where(within_YD > CONSTANT * square_YD, variance_YD, 1.0).sqrt()

    def _shrunk(self) -> Tensor:
        """Return (1 - s) S + s tr(S) / D I, S the pooled covariance."""
        assert not isinstance(self.config.shrinkage, str)
        covariance_DD = self._within(0).div_(self.count_Y.sum())
        return _move_to_identity(covariance_DD, self.config.shrinkage)

    def _ledoit_wolf(self) -> Tensor:
        """Return the classes' covariances, each shrunk by its own amount, weighted by the priors.

        The amount is beta / delta of Ledoit & Wolf 2004, lemma 3.3 and section 3.2, in scikit-learn's letters.
        """
        total_DD = torch.zeros_like(self.scatter_GDD[0])
        for y, scale_D in enumerate(self._scale()):
            count, pixels = self.count_Y[y], len(scale_D)
            own_DD = self._within(y).div_(count).div_(scale_D[:, None]).div_(scale_D)
            mean_square = torch.linalg.vector_norm(own_DD).square()
            beta = (self.fourth_Y[y] / count - mean_square) / (pixels * count)
            delta = mean_square / pixels - (own_DD.trace() / pixels).square()
            amount = float(torch.minimum(beta, delta) / delta) if float(delta) > 0 else 0.0
            _move_to_identity(own_DD, amount).mul_(scale_D[:, None]).mul_(scale_D)
            total_DD.add_(own_DD.mul_(count))
        return total_DD.div_(self.count_Y.sum())

    @torch.no_grad()
    def forward(self, batch: Batch, player: str = "model") -> Losses:  # noqa: ARG002 - one player
        """Return the mean of -log p(x) and, where there are classes, the share recognised."""
        joint_BY = self.log_joint(batch["pixels"])
        parts = {}
        if "tokens" in batch and len(self.count_Y) > 1:
            right_B = joint_BY.argmax(1) == classes.of_batch(batch, len(self.count_Y))
            parts["accuracy"] = right_B.double().mean()
        return Losses(-joint_BY.logsumexp(1).mean(), len(joint_BY), parts)

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Return draws of N(mu_y, Sigma) (B, C, H, W), cut off at [0, 1]; y is the prompt's or a draw of p(y).

        Raises:
            ValueError: a prompt that is not one word of the vocabulary.
        """
        self.check(request)
        c = self.config
        class_B = classes.of_request(request, c.vocabulary, self.log_prior_Y)
        noise_BD = normals(request.seeds, self.mean_YD.shape[1:], self.mean_YD.device, draws=1)
        x_BD = self.mean_YD[class_B] + noise_BD.double() @ self.colour_DD.T
        return x_BD.clamp(0, 1).float().view(-1, c.channels, c.image_size, c.image_size)

    def log_prob(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,  # noqa: ARG002 - draws nothing
    ) -> Tensor:
        """Return log p(x) = log sum_y p(x, y) in nats (B,), of the density over pixels.

        Raises:
            NotImplementedError: shrinkage 0: the covariance has no inverse.
        """
        if self.config.shrinkage == 0:
            return super().log_prob(batch)
        return self.log_joint(batch["pixels"]).logsumexp(1)

    @torch.no_grad()
    def log_joint(self, pixels: Tensor) -> Tensor:
        """Return log p(x, y) in nats, (B, Y); at shrinkage 0, of the directions that vary."""
        x_BD = pixels.flatten(1).double()
        white_BD, centre_YD = x_BD @ self.whiten_DD, self.mean_YD @ self.whiten_DD
        distance = [(white_BD - centre_D).square().sum(1) for centre_D in centre_YD]
        directions = (self.whiten_DD != 0).any(0).sum()
        constant = self.log_det + directions * math.log(2 * math.pi)
        return self.log_prior_Y - (torch.stack(distance, 1) + constant) / 2


def _move_to_identity(covariance_DD: Tensor, amount: float) -> Tensor:
    """Return (1 - amount) covariance + amount tr(covariance) / D I, in place: a matrix may have gigabytes."""
    mean = covariance_DD.trace() / len(covariance_DD)
    covariance_DD.mul_(1 - amount).diagonal().add_(amount * mean)
    return covariance_DD
