"""Cached against naive sampling of the autoregressive families: CPU seconds, their factor, and whether they agree.

`python -m benchmarks.cached_sampling` prints a row a family and batch size; one thread. Pictures are 28 x 28 bits of
preset "base". WaveNet has preset "small" and draws 8,000 samples; drawn naively, a sample costs as much as there are
samples before it, so the naive sampler is timed on 800 and 1,600 of them, and 8,000 are the parabola through both.
"""

import time

import torch
from torch import Tensor

from models.autoregressive.nade import NADE
from models.autoregressive.pixelcnn import PixelCNN
from models.autoregressive.pixelrnn import PixelRNN
from models.autoregressive.wavenet import WaveNet
from models.family import Request

SAMPLES, TIMED = 8000, (800, 1600)  # of sound


def timed(sampler: object, request: Request) -> tuple[float, Tensor]:
    """Return CPU seconds and the pictures."""
    assert callable(sampler)
    began = time.process_time()
    pictures: Tensor = sampler(request)
    return time.process_time() - began, pictures


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| family | pictures | cached, s | naive, s | factor | pixels that differ |")
    print("|---|---|---|---|---|---|")
    torch.manual_seed(0)
    for model in (
        NADE(NADE.presets["base"]),
        PixelCNN(PixelCNN.presets["base"]),
        PixelRNN(PixelRNN.presets["base"]),
    ):
        model.sample(Request(seeds=(0,)))  # warm
        for count in (1,) if isinstance(model, PixelRNN) else (1, 16):  # naively, 16 take minutes
            request = Request(seeds=tuple(range(count)))
            ours, cached = timed(model.sample, request)
            theirs, naive = timed(model.sample_naively, request)
            row = (f"{ours:.3f}", f"{theirs:.2f}", f"{theirs / ours:.0f}")
            differ = int((cached != naive).sum())
            print(
                f"| {type(model).__name__} | {count} | {' | '.join(row)} | {differ} |", flush=True
            )
    sound(WaveNet(WaveNet.presets["small"]))


def sound(model: WaveNet) -> None:
    """Print WaveNet's table."""
    print("\n| WaveNet, samples | cached, s | naive, s | factor | samples that differ |")
    print("|---|---|---|---|---|")
    model.sample(Request(seeds=(0,), seconds=0.05))  # warm
    naively = []
    for samples in TIMED:
        request = Request(seeds=(0,), seconds=samples / model.config.sample_rate)
        ours, cached = timed(model.sample, request)
        theirs, naive = timed(model.sample_naively, request)
        naively.append(theirs / samples)
        row = (f"{ours:.2f}", f"{theirs:.1f}", f"{theirs / ours:.0f}")
        print(f"| {samples} | {' | '.join(row)} | {int((cached != naive).sum())} |", flush=True)
    slope = (naively[1] - naively[0]) / (TIMED[1] - TIMED[0])  # seconds a sample, a sample before
    theirs = SAMPLES * (naively[0] + slope * (SAMPLES - TIMED[0]))
    ours, _ = timed(model.sample, Request(seeds=(0,), seconds=SAMPLES / model.config.sample_rate))
    print(f"| {SAMPLES} | {ours:.2f} | {theirs:.0f} (extrapolated) | {theirs / ours:.0f} | - |")


if __name__ == "__main__":
    main()
