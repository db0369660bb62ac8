"""Sampled pictures a second: our sampler against a diffusers pipeline around the same network, steps and guidance.

`python -m benchmarks.sampling` prints a table row a batch size. One thread; seconds are CPU seconds, so that
neighbours on the machine do not count. Both take turns at going first, and medians are shown, of the rounds' ratios
too: those are of one moment of the machine.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.diffusion.ddpm import DDPM
from models.request import Request

WORDS = ("a", "small", "large", "red", "green", "circle", "square", "on", "the", "left", "right")
PROMPT = "a small red circle on the left"


def network(preset: str) -> DDPM:
    """Return the family with random weights, small enough that no estimate leaves [-1, 1]."""
    torch.manual_seed(0)
    model = DDPM(dataclasses.replace(DDPM.presets[preset], vocabulary=WORDS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.ready()


def diffusers_pipeline(model: DDPM) -> Callable[[Sequence[int], int, float], Tensor]:
    """Return a sampler written as diffusers' own pipelines are, around the same network."""
    from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
    from diffusers.utils.torch_utils import randn_tensor

    class Pipeline(DiffusionPipeline):  # type: ignore[misc] # diffusers is untyped
        def __init__(self, unet: Any, text: Any, scheduler: Any) -> None:
            super().__init__()
            self.register_modules(unet=unet, text=text, scheduler=scheduler)

        @torch.no_grad()
        def __call__(self, seeds: Sequence[int], steps: int, guidance: float) -> Tensor:
            tokens = model.encode([PROMPT] * len(seeds))
            context = torch.cat([self.text.null_1TD.expand(len(seeds), -1, -1), self.text(tokens)])
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            side = model.config.image_size
            x = randn_tensor((len(seeds), model.config.channels, side, side), generator=generators)
            self.scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
            for time_1 in self.scheduler.timesteps:
                doubled = torch.cat([x] * 2)
                sigma = float(time_1) / 1000
                times = torch.tensor([[float(time_1), 1 - sigma, sigma]]).expand(len(doubled), 3)
                flow = self.unet(doubled, times, context, None)
                without, guided = flow.chunk(2)
                flow = without + guidance * (guided - without)
                x = self.scheduler.step(flow, time_1, x).prev_sample
            return ((x + 1) / 2).clamp(0, 1)

    pipeline = Pipeline(model.network, model.text, FlowMatchEulerDiscreteScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, guidance = network(given.preset), 3.0
    theirs = diffusers_pipeline(model)
    print("| batch | ours, pictures/CPU-s | diffusers, pictures/CPU-s | ours / diffusers |")
    print("|---|---|---|---|")
    for size in given.batches:
        seeds = tuple(range(size))
        request = Request(
            seeds=seeds, prompts=(PROMPT,) * size, steps=given.steps, guidance=guidance
        )
        sides = partial(model.sample, request), partial(theirs, seeds, given.steps, guidance)
        spent: tuple[list[float], list[float]] = ([], [])
        for number in range(given.rounds + 1):
            for side in (0, 1) if number % 2 else (1, 0):
                spent[side].append(seconds(sides[side]))
        ours_s, theirs_s = spent[0][1:], spent[1][1:]
        mine, peer = (size / statistics.median(one) for one in (ours_s, theirs_s))
        ratio = statistics.median(b / a for a, b in zip(ours_s, theirs_s, strict=True))
        print(f"| {size} | {mine:.1f} | {peer:.1f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
