"""VAE, WAE-MMD and AAE beside pythae's: losses at equal steps, and steps a second; same weights and batches.

`python -m benchmarks.autoencoders` prints a row a model and step. Digits, dense 64-200-16, batches of 128, one thread.
Adam, 1e-3: pythae's by torch's class, as its trainers make it, and ours by the one of our training loop, without decay.
pythae's models are given copies of our networks; every step starts both from the same seed, so that VAE and WAE see the
same noise too. Both go first in turn; ratios are of the median step, by CPU seconds and by the clock. What they define
otherwise:

- VAE: the same (sums over pixels, mean over pictures), on bits.
- WAE: the same kernel, scales and U-statistic; its weight is `reg_weight`, .03 where ours is 20, and is set to ours.
- AAE: its cost is half the squared error and its adversary's weight at most 1, so its cost is counted twice and both
  adversaries weigh 1. It takes both players' gradients at the same weights, while ours take turns. The row "AAE at
  once" drives ours as pythae does, and has its losses; the row "AAE" is ours in turn.
"""

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from flows.recipe import Optimizer
from flows.training.optimizers import AdamW
from models.family import Trainable
from models.variational.aae import AAE, AAEConfig
from models.variational.vae import VAE, VAEConfig
from models.variational.wae import WAE, WAEConfig

SHAPE, HIDDEN, LATENT = (1, 8, 8), (200,), 16
STEPS, SHOWN, OVER = 1000, (1, 100, 300, 1000), 20  # a loss is the mean of the last 20 steps
Step = Callable[[Tensor], float]


def pythae_twin(ours: Any) -> nn.Module:
    """Return pythae's model of the same kind, of copies of our networks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pythae import models as theirs
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseDiscriminator, BaseEncoder

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self, network: nn.Module, gaussian: bool) -> None:
            super().__init__()
            self.network, self.gaussian = network, gaussian

        def forward(self, x: Tensor) -> Any:
            out = self.network(x * 2 - 1)
            if not self.gaussian:  # its AAE asks for a covariance also where it does not use it
                return ModelOutput(embedding=out, log_covariance=torch.zeros_like(out))
            mean, log_var = out.chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z).sigmoid())

    class Discriminator(BaseDiscriminator):  # type: ignore[misc]
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(embedding=self.network(z).sigmoid())

    sizes = {"input_dim": SHAPE, "latent_dim": LATENT}
    encoder = Encoder(copy.deepcopy(ours.encoder), isinstance(ours, VAE))
    decoder = Decoder(copy.deepcopy(ours.decoder))
    if isinstance(ours, VAE):
        config = theirs.VAEConfig(**sizes, reconstruction_loss="bce")
        return theirs.VAE(config, encoder=encoder, decoder=decoder)  # type: ignore[no-any-return]
    if isinstance(ours, WAE):
        config = theirs.WAE_MMD_Config(**sizes, reg_weight=ours.config.penalty)
        return theirs.WAE_MMD(config, encoder=encoder, decoder=decoder)  # type: ignore[no-any-return]
    config = theirs.Adversarial_AE_Config(
        **sizes,
        reconstruction_loss="mse",
        adversarial_loss_scale=1.0,
        reconstruction_loss_scale=2.0,
        deterministic_posterior=True,
    )
    judge = Discriminator(copy.deepcopy(ours.discriminator))
    return theirs.Adversarial_AE(  # type: ignore[no-any-return]
        config, encoder=encoder, decoder=decoder, discriminator=judge
    )


def our_step(model: Trainable, *, in_turn: bool) -> Step:
    """Return what takes one step of every player and gives the first player's loss."""
    rule = Optimizer(learning_rate=1e-3, betas=(0.9, 0.999), weight_decay=0)
    optimizers = {
        player: AdamW(model, model.player_parameters(player), rule) for player in model.players
    }
    moves = [partial(one.step, rule.learning_rate, torch.ones(())) for one in optimizers.values()]

    def turns(pixels: Tensor) -> float:
        losses = []
        for (player, optimizer), move in zip(optimizers.items(), moves, strict=True):
            for one in optimizers.values():  # as the loop does
                for parameter in one.parameters:
                    parameter.requires_grad_(one is optimizer).grad = None
            total = model({"pixels": pixels}, player).total
            total.backward()
            move()
            losses.append(float(total.detach()))
        return losses[0]

    def at_once(pixels: Tensor) -> float:
        first = model({"pixels": pixels}, "autoencoder").total
        torch.randn(len(pixels), LATENT)  # pythae draws noise for the codes here, and adds none
        losses = (first, model({"pixels": pixels}, "discriminator").total)
        descend_at_once(losses, [model.player_parameters(p) for p in optimizers], moves)
        return float(first.detach())

    return turns if in_turn else at_once


def descend_at_once(
    losses: Sequence[Tensor],
    parameters: Sequence[list[nn.Parameter]],
    moves: Sequence[Callable[[], object]],
) -> None:
    """Step every player by its loss's gradient at the weights that all had before."""
    found = [
        torch.autograd.grad(loss, own, retain_graph=True)
        for loss, own in zip(losses, parameters, strict=True)
    ]
    for own, slopes, move in zip(parameters, found, moves, strict=True):
        for parameter, slope in zip(own, slopes, strict=True):
            parameter.grad = slope
        move()


def their_step(model: Any) -> Step:
    """Return pythae's step, as its trainers take it, and the same loss."""
    if not hasattr(model, "discriminator"):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

        def step(pixels: Tensor) -> float:
            optimizer.zero_grad()
            loss: Tensor = model({"data": pixels}).loss
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step
    makers = [*model.encoder.parameters(), *model.decoder.parameters()]
    judges = list(model.discriminator.parameters())
    both = (torch.optim.Adam(makers, lr=1e-3), torch.optim.Adam(judges, lr=1e-3))

    def adversarial(pixels: Tensor) -> float:
        out = model({"data": pixels})
        losses = (out.autoencoder_loss, out.discriminator_loss)
        descend_at_once(losses, (makers, judges), [one.step for one in both])
        return float(losses[0].detach())

    return adversarial


def ours() -> dict[str, Trainable]:
    """Return our models by the name of their row, of equal sizes; one that stands twice is trained in two ways."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 8, "hidden": HIDDEN, "latent": LATENT}
    found: dict[str, Trainable] = {
        "VAE": VAE(VAEConfig(**sizes, binarize="none")),
        "WAE": WAE(WAEConfig(**sizes, penalty=20.0)),
        "AAE": AAE(AAEConfig(**sizes, discriminator=(200, 200))),
    }
    return found | {"AAE at once": copy.deepcopy(found["AAE"])}


def batches(model: Trainable) -> Callable[[int], Tensor]:
    """Return batch number 0, 1, ... of the digits: bits for the VAE, grey levels for the others."""
    pixels = torch.from_numpy(load_digits().images).float()[:, None] / 16
    pixels = pixels.round() if isinstance(model, VAE) else pixels

    def batch(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        return pixels[torch.randint(len(pixels), (128,), generator=generator)]

    return batch


def raced(name: str, model: Trainable) -> tuple[list[list[float]], list[float], list[float]]:
    """Return the losses of both, step by step, and the seconds of both's median step: of the CPU, and by the clock."""
    mine = our_step(model, in_turn="at once" not in name)
    steps, batch = (mine, their_step(pythae_twin(model))), batches(model)
    losses: list[list[float]] = [[], []]
    spent: list[list[tuple[float, float]]] = [[], []]
    for number in range(STEPS):
        pixels = batch(number)
        for side in (0, 1) if number % 2 else (1, 0):
            torch.manual_seed(number)
            began = time.process_time(), time.perf_counter()
            losses[side].append(steps[side](pixels))
            ended = time.process_time(), time.perf_counter()
            spent[side].append((ended[0] - began[0], ended[1] - began[1]))
    cpu, clock = ([statistics.median(one[k] for one in side) for side in spent] for k in (0, 1))
    return losses, cpu, clock


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(
        "| model | step | loss | pythae's | steps a CPU second | pythae's | ratio | by the clock |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, model in ours().items():
        losses, cpu, clock = raced(name, model)
        for step in SHOWN:
            means = [sum(side[max(0, step - OVER) : step]) for side in losses]
            cells = [f"{total / min(step, OVER):.4f}" for total in means]
            if step == SHOWN[-1]:
                cells += [f"{1 / spent:.0f}" for spent in cpu]
                cells += [f"{theirs / mine:.2f}" for mine, theirs in (cpu, clock)]
            else:
                cells += [""] * 4
            print(f"| {name} | {step} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
