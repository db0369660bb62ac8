"""Naive Bayes (Maron 1961; event models: McCallum & Nigam 1998): p(x, y) = p(y) prod_i p(x_i | y), in closed form.

Gaussian pixels; Bernoulli pixels, on where above 1/2; or multinomial pixels, counts of `levels` that a picture's total
is shared out into. The estimates are scikit-learn's: class frequencies, and Laplace's rule of succession or a variance
floor. A total's probability, which the classes share, is a normal's over the whole numbers 0..D levels.

Shape letters: B pictures, C channels, H and W pixels, D = C H W, Y classes. Pixels are in [0, 1]. Statistics and
likelihoods are float64, in nats a picture: of bits, of counts, or a density over the unit cube's coordinates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds, classes
from models.parts.noise import normals, places, uniforms
from models.request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class NaiveBayesConfig(classes.Classed):
    """What a pixel is, and how what was never seen is allowed for."""

    image_size: int = 28  # pixels a side
    channels: int = 1
    vocabulary: tuple[str, ...] = ()  # the classes; empty: one class
    likelihood: Literal["gaussian", "bernoulli", "multinomial"] = "bernoulli"
    alpha: float = 1.0  # bernoulli, multinomial: rows or counts added to each value
    var_smoothing: float = 0.01  # gaussian: variance added, as a share of the largest pixel's
    levels: int = 16  # multinomial: what a white pixel counts

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        bounds.check(self, dict.fromkeys(("image_size", "channels", "levels"), bounds.SIZE))
        for name in ("alpha", "var_smoothing"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be above 0, got {getattr(self, name)}:"
                    " what training never saw would have probability 0"
                )


class NaiveBayes(Family):
    """Pixels that are independent, given the class."""

    Config = NaiveBayesConfig
    presets: ClassVar[Mapping[str, NaiveBayesConfig]] = {
        "tiny": NaiveBayesConfig(image_size=8),
        "base": NaiveBayesConfig(),
        "gaussian": NaiveBayesConfig(likelihood="gaussian"),
        "multinomial": NaiveBayesConfig(likelihood="multinomial"),
    }
    counts = True
    config: NaiveBayesConfig
    count_Y: Tensor
    sum_YD: Tensor
    square_YD: Tensor
    total_2: Tensor
    log_prior_Y: Tensor
    mean_YD: Tensor
    variance_YD: Tensor
    size_2: Tensor

    def __init__(self, config: NaiveBayesConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.channels * config.image_size**2
        size = (max(1, len(config.vocabulary)), pixels)

        def keep(name: str, value: Tensor) -> None:
            self.register_buffer(name, value.double())

        keep("count_Y", torch.zeros(size[0]))
        keep("sum_YD", torch.zeros(size))
        keep("log_prior_Y", torch.full(size[:1], -math.log(size[0])))
        start = 1 / pixels if config.likelihood == "multinomial" else 0.5
        keep("mean_YD", torch.full(size, start))  # of a pixel; multinomial: its share of the total
        if config.likelihood == "gaussian":
            keep("square_YD", torch.zeros(size))
            keep("variance_YD", torch.ones(size))
        if config.likelihood == "multinomial":
            keep("total_2", torch.zeros(2))  # of a picture's total and of its square
            most = pixels * config.levels
            keep("size_2", torch.tensor([most / 2, most]))  # a total's mean and variance

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return Capabilities(
            condition="text" if self.config.vocabulary else "none",
            unprompted=bool(self.config.vocabulary),
            likelihood=True,
        )

    @property
    def sums(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the sums: one pass is enough."""
        more = {"gaussian": ("square_YD",), "multinomial": ("total_2",), "bernoulli": ()}
        return (("count_Y", "sum_YD", *more[self.config.likelihood]),)

    @torch.no_grad()
    def absorb(self, batch: Batch, number: int = 0) -> None:  # noqa: ARG002 - one pass
        """Add the rows, the pixels and, where they are needed, the squares, class by class."""
        x_BD = self._observed(batch["pixels"])
        class_B = classes.of_batch(batch, len(self.count_Y))
        self.count_Y.index_add_(0, class_B, torch.ones_like(x_BD[:, 0]))
        self.sum_YD.index_add_(0, class_B, x_BD)
        if self.config.likelihood == "gaussian":
            self.square_YD.index_add_(0, class_B, x_BD.square())
        if self.config.likelihood == "multinomial":
            total_B = x_BD.sum(1)
            self.total_2 += torch.stack([total_B.sum(), total_B.square().sum()])

    @torch.no_grad()
    def settle(self, number: int = 0) -> None:  # noqa: ARG002 - one pass
        """Turn the sums into priors, means and, where there are any, variances.

        Raises:
            ValueError: a class has no rows, or Gaussian pixels that never vary.
        """
        config, count_Y1 = self.config, self.count_Y[:, None]
        self.log_prior_Y.copy_(classes.log_prior(self.count_Y, config.vocabulary))
        if config.likelihood == "bernoulli":
            self.mean_YD.copy_((self.sum_YD + config.alpha) / (count_Y1 + 2 * config.alpha))
        elif config.likelihood == "multinomial":
            share_YD = self.sum_YD + config.alpha
            self.mean_YD.copy_(share_YD / share_YD.sum(1, keepdim=True))
            mean, square = (self.total_2 / self.count_Y.sum()).tolist()
            self.size_2.copy_(torch.tensor([mean, max(square - mean**2, 1.0)]))
        else:
            self.mean_YD.copy_(self.sum_YD / count_Y1)
            own_YD = (self.square_YD / count_Y1 - self.mean_YD.square()).clamp(min=0)
            rows = self.count_Y.sum()
            all_D = self.square_YD.sum(0) / rows - (self.sum_YD.sum(0) / rows).square()
            if not float(all_D.max()) > 0:
                raise ValueError(
                    "all training pictures are equal: Gaussian pixels need some variance"
                )
            self.variance_YD.copy_(own_YD + config.var_smoothing * all_D.max())

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
        """Return draws of p(x | y) (B, C, H, W), y the prompt's word or else a draw of p(y).

        Bernoulli pixels are 0 or 1; normal ones and counts above `levels` are cut off at [0, 1].

        Raises:
            ValueError: a prompt that is not one word of the vocabulary.
        """
        self.check(request)
        c = self.config
        class_B = classes.of_request(request, c.vocabulary, self.log_prior_Y)
        draw = {
            "bernoulli": self._bits,
            "gaussian": self._normal,
            "multinomial": self._counts,
        }[c.likelihood]
        shape = (-1, c.channels, c.image_size, c.image_size)
        return draw(class_B, request.seeds).clamp(0, 1).float().view(shape)

    @torch.no_grad()
    def log_prob(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,  # noqa: ARG002 - draws nothing
    ) -> Tensor:
        """Return log p(x) = log sum_y p(x, y) in nats (B,)."""
        return self.log_joint(batch["pixels"]).logsumexp(1)

    @torch.no_grad()
    def log_joint(self, pixels: Tensor) -> Tensor:
        """Return log p(x, y) in nats, (B, Y)."""
        x_BD, kind = self._observed(pixels), self.config.likelihood
        if kind == "bernoulli":
            on_YD, off_YD = self.mean_YD.log(), (-self.mean_YD).log1p()
            return self.log_prior_Y + x_BD @ (on_YD - off_YD).T + off_YD.sum(1)
        if kind == "multinomial":
            return (
                self.log_prior_Y + x_BD @ self.mean_YD.log().T + self._arrangements(x_BD)[:, None]
            )
        constant_Y = (2 * math.pi * self.variance_YD).log().sum(1)
        distance = [
            ((x_BD - mean_D).square() / variance_D).sum(1)
            for mean_D, variance_D in zip(self.mean_YD, self.variance_YD, strict=True)
        ]
        return self.log_prior_Y - (torch.stack(distance, 1) + constant_Y) / 2

    def _arrangements(self, x_BD: Tensor) -> Tensor:
        """Return log p(total) and the log of the multinomial coefficient, (B,): what no class has a part in."""
        total_B = x_BD.sum(1)
        mean, variance = self.size_2
        possible = torch.arange(x_BD.shape[1] * self.config.levels + 1, device=x_BD.device)
        all_log = -(possible - mean).square() / (2 * variance)
        log_total_B = -(total_B - mean).square() / (2 * variance) - all_log.logsumexp(0)
        ways_B: Tensor = (total_B + 1).lgamma() - (x_BD + 1).lgamma().sum(1)
        log_B: Tensor = ways_B + log_total_B
        return log_B

    def _bits(self, class_B: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return pictures (B, D) of Bernoulli pixels."""
        mean_BD = self.mean_YD[class_B]
        return (uniforms(seeds, mean_BD.shape[1:], mean_BD.device, draws=1) < mean_BD).double()

    def _normal(self, class_B: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return pictures (B, D) of Gaussian pixels, not yet cut off."""
        mean_BD = self.mean_YD[class_B]
        noise_BD = normals(seeds, mean_BD.shape[1:], mean_BD.device, draws=1)
        return mean_BD + self.variance_YD[class_B].sqrt() * noise_BD

    def _counts(self, class_B: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return pictures (B, D) of counts over `levels`: a total, then a pixel for each that it counts."""
        (mean, variance), device = self.size_2, self.size_2.device
        most = self.mean_YD.shape[1] * self.config.levels
        normal_B = normals(seeds, (1,), device, draws=1)[:, 0]
        total_B = (mean + variance.sqrt() * normal_B).round().clamp(1, most)
        u_BN = uniforms(seeds, (int(total_B.max()),), device, draws=2)
        pixel_BN = places(u_BN.T, self.mean_YD[class_B]).T
        counted_BN = torch.arange(u_BN.shape[1], device=device) < total_B[:, None]
        count_BD = torch.zeros(len(u_BN), self.mean_YD.shape[1], dtype=torch.float64, device=device)
        return count_BD.scatter_add_(1, pixel_BN, counted_BN.double()) / self.config.levels

    def _observed(self, pixels: Tensor) -> Tensor:
        """Return what the likelihood is of, (B, D) float64: levels, bits or counts."""
        x_BD = pixels.flatten(1).double()
        if self.config.likelihood == "bernoulli":
            return (x_BD > 0.5).double()
        if self.config.likelihood == "multinomial":
            return (x_BD * self.config.levels).round()
        return x_BD
