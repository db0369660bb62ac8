"""Sample grids: a fixed set of prompts and seeds, drawn now and then to see how far training is."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models import Family, Trainable
from models.family import Request

COUNT: Final = 16
COLUMNS: Final = 4


def png_of_samples(model: Trainable, prepared: Path, batch: Mapping[str, Tensor]) -> bytes | None:
    """Return a grid of samples as PNG, or None for a network that draws nothing.

    Args:
        model: the network, with the weights to show.
        prepared: the dataset's folder; evenly chosen captions of it are the prompts.
        batch: real samples, whose low-resolution copies an upscaling model starts from.
    """
    if not isinstance(model, Family) or model.capabilities.modality != "image":
        return None
    kind = model.capabilities
    prompts, low = (), None
    count = COUNT
    if kind.upscales:
        real = batch["pixels"][:COUNT]
        count, side = len(real), model.config.low_size
        low = F.interpolate(real, size=(side, side), mode="area")
    if kind.condition == "text":
        captions = json.loads((prepared / "dataset.json").read_bytes())["captions"]
        prompts = tuple(captions[index * len(captions) // count] for index in range(count))
    request = Request(seeds=tuple(range(count)), prompts=prompts, low_BCHW=low)
    training = model.training
    model.eval()
    device = batch["pixels"].device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        pixels = model.sample(request)
    model.train(training)
    return png(grid(pixels.float().cpu()))


def grid(pixels_BCHW: Tensor, columns: int = COLUMNS, scale: int = 2) -> Tensor:
    """Return the pictures side by side, (C, H, W), two dark pixels between them, every pixel `scale` wide."""
    padded = F.pad(
        pixels_BCHW.repeat_interleave(scale, 2).repeat_interleave(scale, 3), (2, 2, 2, 2)
    )
    rows = -(-len(padded) // columns)
    blank = padded.new_zeros(rows * columns - len(padded), *padded.shape[1:])
    tiles = torch.cat([padded, blank]).view(rows, columns, *padded.shape[1:])
    return tiles.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)


def png(pixels_CHW: Tensor) -> bytes:
    """Return pixels in [0, 1], of one or three channels, as a PNG file."""
    values = (pixels_CHW.clamp(0, 1) * 255).round().to(torch.uint8)
    array = values.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()
