"""A GAN's penalties, which are gradients of gradients, under gradients averaged over ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.loaders import Loader
from flows.recipe import Optimizer
from flows.training.checkpoints import generators, seed_generators, set_generators
from flows.training.optimizers import AdamW, Average, rate_at
from models import configure
from models.adversarial.gan import GAN
from tests.flows.training_kit import prepare, spec_of, train_without_ray

STEPS, ROWS = 3, 4  # rows of each rank
RULE = Optimizer(learning_rate=0.01, betas=(0.0, 0.9), weight_decay=0, warmup_steps=0)


def by_hand(prepared: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the averaged weights of two ranks' training, done one rank after the other."""
    loaders = [
        Loader(prepared, "train", batch_size=ROWS, rank=rank, world=2, seed=0, image_size=8)
        for rank in range(2)
    ]
    torch.manual_seed(0)
    model = GAN(configure("gan", "tiny", config, loaders[0].facts))
    average = Average(model, 0.999)
    optimizers = {
        player: AdamW(model, model.player_parameters(player), RULE) for player in model.players
    }
    noise, device = [], torch.device("cpu")
    for rank in range(2):
        seed_generators(0, rank)
        noise.append(generators(device))
    for step in range(STEPS):
        model.steps_taken = step
        for player, optimizer in optimizers.items():
            for turn in range(model.turns(player)):
                model.zero_grad()
                for rank, loader in enumerate(loaders):
                    set_generators(noise[rank], device)
                    part = {
                        k: v[turn :: model.turns(player)] for k, v in loader.batch(step).items()
                    }
                    (model(part, player).total / 2).backward()
                    noise[rank] = generators(device)
                optimizer.step(rate_at(step, STEPS, RULE), torch.ones(()))
        average.update(step, torch.ones(()))
    return dict(average.tensors())


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["non-saturating", "wasserstein"])
def test_two_ranks_take_the_penaltys_gradient_together(loss: str, tmp_path: Path) -> None:
    """Only the order of additions differs: 1e-5 of weights around 0.1."""
    prepared = prepare(tmp_path / "prepared")
    config = {"loss": loss, "critic_steps": 2}
    spec = spec_of(
        prepared,
        family="gan",
        config=config,
        workers=2,
        steps=STEPS,
        batch_size=2 * ROWS,
        clip_norm=1e9,
        optimizers={"critic": RULE, "generator": RULE},
    )
    together = load_file(train_without_ray(spec, tmp_path / "runs") / "model.safetensors")
    torch.testing.assert_close(together, by_hand(prepared, config), rtol=1e-4, atol=1e-5)
