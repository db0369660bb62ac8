"""Cached against naive sampling of the autoregressive families: CPU seconds, their factor, and whether they agree.

`python -m benchmarks.cached_sampling` prints a row a family and batch size; one thread. Pictures are 28 x 28 bits of
preset "base". WaveNet has preset "small"; drawn naively, a sample costs as much as there are samples before it.
"""

import time
from functools import partial

import torch
from torch import Tensor

from models.autoregressive.nade import NADE
from models.autoregressive.pixelcnn import PixelCNN
from models.autoregressive.pixelrnn import PixelRNN
from models.autoregressive.wavenet import WaveNet
from models.request import Request
from tests.models.naive_kit import sample_naively

SAMPLES = (800, 1600, 8000)  # of sound


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
            theirs, naive = timed(partial(sample_naively, model), request)
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
    for samples in SAMPLES:
        request = Request(seeds=(0,), seconds=samples / model.config.sample_rate)
        ours, cached = timed(model.sample, request)
        theirs, naive = timed(partial(sample_naively, model), request)
        row = (f"{ours:.2f}", f"{theirs:.1f}", f"{theirs / ours:.0f}")
        print(f"| {samples} | {' | '.join(row)} | {int((cached != naive).sum())} |", flush=True)


if __name__ == "__main__":
    main()
