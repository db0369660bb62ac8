"""Short trainings of autoencoders on scikit-learn's digits, shared by their tests."""

import math

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from models.family import Family
from models.request import Request


def digits() -> tuple[Tensor, Tensor]:
    """Return 1437 pictures (N, 1, 8, 8) in [0, 1] to learn and 360 to hold out."""
    pixels = torch.from_numpy(load_digits().images).float()[:, None] / 16
    pixels = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))]
    return pixels[360:], pixels[:360]


def fitted(model: Family, steps: int, rate: float = 2e-3) -> Family:
    """Train every player in turn, 128 digits a step at a falling rate, and return the model for evaluation."""
    train, _ = digits()
    torch.manual_seed(0)
    optimizers = {
        player: torch.optim.AdamW(
            model.player_parameters(player), lr=rate, betas=(0.5, 0.99), fused=True
        )
        for player in model.players
        if model.turns(player)
    }
    for step in range(steps):
        slowed = rate * (1 + math.cos(math.pi * step / steps)) / 2
        batch = {"pixels": train[torch.randint(len(train), (128,))]}
        for player, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = slowed
            optimizer.zero_grad()
            losses = model(batch, player)
            losses.total.backward()
            optimizer.step()
            if losses.seen:
                model.follow(losses.seen, torch.ones(()))
    return model.eval()


def found(model: Family) -> dict[str, float]:
    """Return the mean of everything that the model measures on held-out digits."""
    values = model.measure({"pixels": digits()[1]})
    return {name: float(value.mean()) for name, value in values.items()}


def sampled(model: Family, count: int = 256) -> Tensor:
    """Return `count` pictures drawn from the prior."""
    return model.sample(Request(seeds=tuple(range(count))))
