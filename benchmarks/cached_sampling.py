"""Cached against naive sampling of the autoregressive families: CPU seconds, their factor, and whether they agree.

`python -m benchmarks.cached_sampling` prints a row a family and batch size; 28 x 28 bits, preset "base", one thread.
"""

import time

import torch
from torch import Tensor

from models.autoregressive.nade import NADE
from models.autoregressive.pixelcnn import PixelCNN
from models.family import Request


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
    for model in (NADE(NADE.presets["base"]), PixelCNN(PixelCNN.presets["base"])):
        model.sample(Request(seeds=(0,)))  # warm
        for count in (1, 16):
            request = Request(seeds=tuple(range(count)))
            ours, cached = timed(model.sample, request)
            theirs, naive = timed(model.sample_naively, request)
            row = (f"{ours:.3f}", f"{theirs:.2f}", f"{theirs / ours:.0f}")
            differ = int((cached != naive).sum())
            print(f"| {type(model).__name__} | {count} | {' | '.join(row)} | {differ} |")


if __name__ == "__main__":
    main()
