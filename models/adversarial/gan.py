"""Generative adversarial networks: non-saturating with R1, or Wasserstein with a gradient penalty.

Goodfellow et al. 2014 (arXiv:1406.2661), the generator's loss of section 3; R1: Mescheder et al. 2018
(arXiv:1801.04406, eq. 9), taken at every 16th step as in StyleGAN2 (Karras et al. 2020, arXiv:1912.04958, appendix B).
WGAN-GP: Gulrajani et al. 2017 (arXiv:1704.00028, algorithm 1). Convolutions: DCGAN (Radford et al. 2016,
arXiv:1511.06434). Captions: the projection critic of Miyato & Koyama 2018 (arXiv:1802.05637, eq. 4).

`norm: batch` is DCGAN to the letter: BatchNorm in all layers but the generator's output and the critic's input. By
default it is left out. In the critic it would tie one picture's gradient to the others', and both penalties are of one
picture's gradient, so they refuse it. In the generator its running statistics would belong to the last weights and to
one worker's rows, while the averaged weights are those that are drawn from; group norm needs none.

Shape letters: B pictures, C channels, H and W pixels, T words, Z noise, F features. Pixels are in [0, 1] outside and in
[-1, 1] inside; penalties are of gradients by the latter.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Batch, Capabilities, Family, Losses
from models.parts import bounds
from models.parts.autoencoder import check_halving
from models.parts.noise import normals
from models.parts.words import Captioned
from models.request import Request

LAZY: Final = 16  # steps from one R1 to the next; each then weighs as much as 16
GROUPS: Final = 8  # of the generator's group norms
SLOPE: Final = 0.2  # of LeakyReLU below 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GANConfig(Captioned):
    """What the two players play for, and their sizes."""

    image_size: int = 8  # pixels a side
    channels: int = 1
    vocabulary: tuple[str, ...] = ()  # lower-case words
    max_words: int = 1
    text: Literal["none", "caption"] = "none"  # caption: both players read it
    loss: Literal["non-saturating", "wasserstein"] = "non-saturating"
    r1: float = 1.0  # gamma, of the non-saturating loss; 0: none, a broken control
    gradient_penalty: float = 10.0  # lambda, of the Wasserstein loss; 0: none, a broken control
    critic_steps: int = 1  # optimiser steps of the critic for one of the generator
    network: Literal["mlp", "dcgan"] = "mlp"
    norm: Literal["group", "batch"] = "group"  # of dcgan; batch: in the critic too, without penalty
    hidden: tuple[int, ...] = (256, 256)  # mlp: widths; dcgan: channels, each halving the side
    latent: int = 32  # numbers of noise
    text_width: int = 32  # of a caption, beside the noise

    def __post_init__(self) -> None:
        """Refuse what would fail late."""
        sizes = (
            "image_size",
            "channels",
            "max_words",
            "latent",
            "text_width",
            "critic_steps",
            "hidden",
        )
        bounds.check(self, dict.fromkeys(sizes, bounds.SIZE))
        bounds.check(self, dict.fromkeys(("r1", "gradient_penalty"), bounds.WEIGHT))
        penalty = self.r1 if self.loss == "non-saturating" else self.gradient_penalty
        if self.norm == "batch" and (self.network != "dcgan" or penalty):
            raise ValueError(
                "norm 'batch' needs network 'dcgan' and no penalty, which is of one picture's gradient;"
                f" got network {self.network!r} and a penalty of {penalty}"
            )
        if self.network == "dcgan":
            check_halving(self.image_size, self.hidden)
            if odd := [width for width in self.hidden if width % GROUPS]:
                raise ValueError(f"dcgan's hidden must be multiples of {GROUPS}, got {odd[0]}")
            if self.norm == "group":
                side = self.image_size >> len(self.hidden)
                bounds.check_norm("the last of hidden", self.hidden[-1], side, GROUPS)


def mlp(config: GANConfig, inputs: int) -> tuple[nn.Module, nn.Module, int]:
    """Return painter (B, inputs) -> (B, C, H, W), viewer (B, C, H, W) -> (B, F), and F, of dense layers."""
    shape = (config.channels, config.image_size, config.image_size)
    painter: list[nn.Module] = []
    for wide_in, wide_out in itertools.pairwise((inputs, *config.hidden)):
        painter += [nn.Linear(wide_in, wide_out), nn.LeakyReLU(SLOPE)]
    painter += [nn.Linear(config.hidden[-1], math.prod(shape)), nn.Unflatten(1, shape)]
    viewer: list[nn.Module] = [nn.Flatten()]
    inwards = (math.prod(shape), *reversed(config.hidden))
    for wide_in, wide_out in itertools.pairwise(inwards):
        viewer += [nn.Linear(wide_in, wide_out), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*painter), nn.Sequential(*viewer), inwards[-1]


def dcgan(config: GANConfig, inputs: int) -> tuple[nn.Module, nn.Module, int]:
    """Return the same three of strided convolutions, drawn from N(0, 0.02) at first."""
    side = config.image_size // 2 ** len(config.hidden)
    inwards = (config.channels, *config.hidden)
    viewer: list[nn.Module] = []
    for place, (wide_in, wide_out) in enumerate(itertools.pairwise(inwards)):
        viewer += [nn.Conv2d(wide_in, wide_out, 4, stride=2, padding=1)]
        viewer += [nn.BatchNorm2d(wide_out)] if place and config.norm == "batch" else []
        viewer += [nn.LeakyReLU(SLOPE)]
    deepest = (inwards[-1], side, side)
    painter: list[nn.Module] = [nn.Linear(inputs, math.prod(deepest)), nn.Unflatten(1, deepest)]
    for wide_in, wide_out in itertools.pairwise(reversed(inwards)):
        group = config.norm == "group"
        painter += [nn.GroupNorm(GROUPS, wide_in) if group else nn.BatchNorm2d(wide_in), nn.ReLU()]
        painter += [nn.ConvTranspose2d(wide_in, wide_out, 4, stride=2, padding=1)]
    for layer in (*viewer, *painter):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, mean=1.0, std=0.02)
    return nn.Sequential(*painter), nn.Sequential(*viewer, nn.Flatten()), math.prod(deepest)


class Generator(nn.Module):
    """Noise and, where captions are read, the mean of their words' embeddings, to pictures."""

    def __init__(self, config: GANConfig, painter: nn.Module) -> None:
        super().__init__()
        self.painter = painter
        self.words: nn.EmbeddingBag | None = None
        if config.reads_text:  # 0 is no word
            entries = len(config.vocabulary) + 1
            self.words = nn.EmbeddingBag(entries, config.text_width, padding_idx=0)

    def forward(self, noise_BZ: Tensor, tokens_BT: Tensor | None) -> Tensor:
        """Return pictures (B, C, H, W) in [-1, 1]."""
        if self.words is not None:
            noise_BZ = torch.cat([noise_BZ, self.words(tokens_BT)], 1)
        x_BCHW: Tensor = self.painter(noise_BZ).float().tanh()
        return x_BCHW


class Critic(nn.Module):
    """Pictures to scores: larger is more real, or likelier the caption's."""

    def __init__(self, config: GANConfig, viewer: nn.Module, features: int) -> None:
        super().__init__()
        self.viewer, self.head = viewer, nn.Linear(features, 1)
        if config.network == "dcgan":
            nn.init.normal_(self.head.weight, std=0.02)
        self.words: nn.EmbeddingBag | None = None
        if config.reads_text:
            entries = len(config.vocabulary) + 1
            self.words = nn.EmbeddingBag(entries, features, padding_idx=0)
            nn.init.normal_(self.words.weight, std=features**-0.5)

    def forward(self, x_BCHW: Tensor, tokens_BT: Tensor | None) -> Tensor:
        """Return scores (B,) of pictures in [-1, 1]."""
        features_BF: Tensor = self.viewer(x_BCHW)
        score_B: Tensor = self.head(features_BF)[:, 0].float()
        if self.words is not None:
            score_B = score_B + (self.words(tokens_BT) * features_BF).sum(1).float()
        return score_B


def _without_passes(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
    """Leave out what older versions counted and kept: the critic's passes."""
    state.pop(f"{prefix}passes", None)


class GAN(Family):
    """A generator that learns to raise the score that a critic learns to give to real pictures alone."""

    Config = GANConfig
    presets: ClassVar[Mapping[str, GANConfig]] = {
        "tiny": GANConfig(hidden=(32,), latent=4),
        "base": GANConfig(),
        "wgan": GANConfig(loss="wasserstein", critic_steps=5),
        "dcgan": GANConfig(image_size=28, network="dcgan", hidden=(32, 64), latent=64),
        "large": GANConfig(
            image_size=64, channels=3, network="dcgan", hidden=(128, 256, 512, 512), latent=128
        ),
    }
    players = ("critic", "generator")
    config: GANConfig

    def __init__(self, config: GANConfig) -> None:
        super().__init__()
        self.config = config
        inputs = config.latent + (config.text_width if config.reads_text else 0)
        networks = mlp if config.network == "mlp" else dcgan
        painter, viewer, features = networks(config, inputs)
        self.generator = Generator(config, painter)
        self.critic = Critic(config, viewer, features)
        self.register_load_state_dict_pre_hook(_without_passes)  # type: ignore[no-untyped-call]

    @property
    def capabilities(self) -> Capabilities:
        """Return what this config can do."""
        return Capabilities(condition="text" if self.config.reads_text else "none")

    def player_parameters(self, player: str) -> list[nn.Parameter]:
        """Return the parameters of "critic" or "generator"."""
        return list((self.critic if player == "critic" else self.generator).parameters())

    def turns(self, player: str) -> int:
        """Return the optimiser steps of a player at each step, each on its part of the batch."""
        return self.config.critic_steps if player == "critic" else 1

    def forward(self, batch: Batch, player: str = "critic") -> Losses:
        """Return a player's loss, with the mean scores and the weighted penalty that it adds up to.

        The generator's part of a batch is as large as one of the critic's.
        """
        tokens_BT = self.tokens_of(batch)
        x_BCHW = 2 * batch["pixels"] - 1
        if player == "critic":
            return self._critic_losses(x_BCHW, tokens_BT)
        turns = self.config.critic_steps
        tokens_BT = tokens_BT[::turns] if tokens_BT is not None else None
        score_B = self.critic(self._fakes(x_BCHW[::turns], tokens_BT), tokens_BT)
        if self.config.loss == "wasserstein":
            return Losses(-score_B.mean(), len(score_B))
        # not -softplus(score): it would not saturate
        return Losses(F.softplus(-score_B).mean(), len(score_B))

    @torch.no_grad()
    def sample(self, request: Request) -> Tensor:
        """Return pictures (B, C, H, W) in [0, 1].

        Raises:
            ValueError: no prompts for a model that reads them, or one it cannot read.
        """
        self.check(request)
        device, tokens_BT = next(self.parameters()).device, self.encode(request.prompts)
        if tokens_BT is not None:
            tokens_BT = tokens_BT.to(device)
        noise_BZ = normals(request.seeds, (self.config.latent,), device)
        x_BCHW: Tensor = (self.generator(noise_BZ, tokens_BT) + 1) / 2
        return x_BCHW

    def _fakes(self, like_BCHW: Tensor, tokens_BT: Tensor | None) -> Tensor:
        noise_BZ = torch.randn(len(like_BCHW), self.config.latent, device=like_BCHW.device)
        fake_BCHW: Tensor = self.generator(noise_BZ, tokens_BT)
        return fake_BCHW

    def _critic_losses(self, x_BCHW: Tensor, tokens_BT: Tensor | None) -> Losses:
        with torch.no_grad():  # the generator does not learn to please here
            fake_BCHW = self._fakes(x_BCHW, tokens_BT)
        real_B, fake_B = self.critic(x_BCHW, tokens_BT), self.critic(fake_BCHW, tokens_BT)
        if self.config.loss == "wasserstein":
            loss = fake_B.mean() - real_B.mean()
        else:
            loss = F.softplus(-real_B).mean() + F.softplus(fake_B).mean()
        penalty = self._penalty(x_BCHW, fake_BCHW, tokens_BT) if self.training else None
        if penalty is None:
            penalty = torch.zeros_like(loss)
        scores = {"real": real_B.mean().detach(), "fake": fake_B.mean().detach()}
        return Losses(loss + penalty, len(real_B), {**scores, "penalty": penalty.detach()})

    def _penalty(
        self, x_BCHW: Tensor, fake_BCHW: Tensor, tokens_BT: Tensor | None
    ) -> Tensor | None:
        """Return the weighted penalty of this step, or None where it has none."""
        with torch.autocast(x_BCHW.device.type, enabled=False):  # half precision loses a gradient's
            if self.config.loss == "wasserstein":
                if not self.config.gradient_penalty:
                    return None
                share = torch.rand(len(x_BCHW), 1, 1, 1, device=x_BCHW.device)
                between_BCHW = share * x_BCHW + (1 - share) * fake_BCHW
                slopes_BD = self._slopes(between_BCHW, tokens_BT).flatten(1)
                norm_B: Tensor = torch.linalg.vector_norm(slopes_BD, dim=1)
                return self.config.gradient_penalty * (norm_B - 1).square().mean()
            if not self.config.r1 or self.steps_taken % LAZY:
                return None
            slopes = self._slopes(x_BCHW, tokens_BT)
            return LAZY * self.config.r1 / 2 * slopes.square().flatten(1).sum(1).mean()

    def _slopes(self, x_BCHW: Tensor, tokens_BT: Tensor | None) -> Tensor:
        """Return the score's gradient by each picture (B, C, H, W), itself differentiable by the weights."""
        x_BCHW = x_BCHW.detach().requires_grad_()
        score_B = self.critic(x_BCHW, tokens_BT)
        (slopes_BCHW,) = torch.autograd.grad(score_B.sum(), x_BCHW, create_graph=True)
        return slopes_BCHW
