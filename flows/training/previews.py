"""Previews: a fixed set of prompts and seeds, sampled now and then to see how far training is, always as a PNG file."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from data.loaders import rows_in
from flows.evaluating.sheets import of_sounds, of_texts, png
from infra.documents import MOST_OF_OURS, read_json
from models.family import Family, Modality, Trainable
from models.request import Request
from models.text_to_3d import volumes

SHOWN: Final = {"pixels", "sound", "text", "clip", "volume"}
COUNT: Final = 16  # pictures
COLUMNS: Final = 4
TILE_PX: Final = 96  # a small picture is enlarged by a whole factor to about this, to be seen
CLIPS: Final = 4
VOLUMES: Final = 2  # of hundreds of steps each
SIDES: Final = 6  # from which a volume is shown
SOUNDS: Final = 4
TEXTS: Final = 6
TOKENS: Final = 96  # of a text, at most


def png_of_samples(model: Trainable, prepared: Path, batch: Mapping[str, Tensor]) -> bytes | None:
    """Return samples as PNG, or None for a network that makes none of what it is asked for.

    Args:
        model: the network, with the weights to show.
        prepared: the dataset's folder; evenly chosen captions or openings of it are the prompts.
        batch: real samples, whose low-resolution copies an upscaling model starts from.
    """
    if not isinstance(model, Family) or not SHOWN & {port.kind for port in model.outputs.values()}:
        return None
    training = model.training
    model.eval()
    device = next(iter(batch.values())).device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        found = _KINDS[model.capabilities.modality](model, prepared, batch)
    model.train(training)
    return found


def _pictures(model: Family, prepared: Path, batch: Mapping[str, Tensor]) -> bytes:
    pixels = model.sample(_asked(model, prepared, batch, COUNT))
    return png(grid(pixels.float().cpu(), scale=max(1, round(TILE_PX / pixels.shape[-1]))))


def _clips(model: Family, prepared: Path, batch: Mapping[str, Tensor]) -> bytes:
    """Return clips as film strips, one below the other."""
    frames = model.sample(_asked(model, prepared, batch, CLIPS)).float().cpu()
    scale = max(1, round(TILE_PX / 2 / frames.shape[-1]))
    return png(grid(frames.flatten(0, 1), columns=frames.shape[1], scale=scale))


def _volumes(model: Family, prepared: Path, batch: Mapping[str, Tensor]) -> bytes:
    """Return views all about what is solid of volumes, a volume a line; from where it is seen no prompt says."""
    from flows.evaluating.meshes import thing

    asked = _asked(model, prepared, batch, VOLUMES)
    asked = replace(asked, prompts=tuple(map(thing, asked.prompts)))
    made = model.sample(asked).float().cpu()
    shown = volumes.seen(volumes.solid(made), volumes.around(SIDES), 2 * made.shape[-1])
    return png(grid(shown.flatten(0, 1), SIDES, max(1, round(TILE_PX / shown.shape[-1]))))


def _asked(model: Family, prepared: Path, batch: Mapping[str, Tensor], count: int) -> Request:
    """Return a request for at most so many samples: of captions, or of what it takes of real samples."""
    given, able = (
        model.given_of({name: rows[:count] for name, rows in batch.items()}),
        model.capabilities,
    )
    count = min(count, rows_in(batch)) if given else count
    # the captions of real samples are not at hand
    asks = able.condition == "text" and not (given and able.unprompted)
    prompts = _captions(prepared, count) if asks else ()
    return Request(seeds=tuple(range(count)), prompts=prompts, given=given)


def _sounds(model: Family, prepared: Path, batch: Mapping[str, Tensor]) -> bytes:
    asked = _asked(model, prepared, batch, SOUNDS)
    return of_sounds(model.sample(asked), model.config.sample_rate, asked.prompts)


def _texts(model: Family, prepared: Path, batch: Mapping[str, Tensor]) -> bytes | None:  # noqa: ARG001
    from data import loaders
    from flows.evaluating.texts import openings

    seeds, able = tuple(range(TEXTS)), model.capabilities
    asked: list[str] = []
    try:
        if able.condition == "text":
            asked = openings(loaders.records(prepared, "validation"), TEXTS)
            asked = [asked[seed % len(asked)] for seed in seeds]
        request = Request(
            seeds=seeds,
            prompts=() if able.chats else tuple(asked),
            dialogues=tuple((("user", one),) for one in asked) if able.chats else (),
            max_tokens=TOKENS,
        )
        tokens = model.sample(request).cpu()
    except (
        ValueError
    ):  # no validation split, an opening longer than the context, or without a blank
        return None
    asked = asked or [""] * TEXTS
    written = [
        model.text_of(row[row >= 0], prompt) for row, prompt in zip(tokens, asked, strict=True)
    ]
    return of_texts(list(zip(asked, written, strict=True)))


_KINDS: Final[Mapping[Modality, Callable[[Family, Path, Mapping[str, Tensor]], bytes | None]]] = {
    "image": _pictures,
    "clip": _clips,
    "mesh": _volumes,
    "audio": _sounds,
    "text": _texts,
}


def _captions(prepared: Path, count: int) -> tuple[str, ...]:
    captions = read_json(prepared / "dataset.json", most=MOST_OF_OURS)["captions"]
    return tuple(captions[index * len(captions) // count] for index in range(count))


def grid(pixels_BCHW: Tensor, columns: int = COLUMNS, scale: int = 1) -> Tensor:
    """Return the pictures side by side, (C, H, W), two dark pixels between them, every pixel `scale` wide."""
    padded = F.pad(
        pixels_BCHW.repeat_interleave(scale, 2).repeat_interleave(scale, 3), (2, 2, 2, 2)
    )
    rows = -(-len(padded) // columns)
    blank = padded.new_zeros(rows * columns - len(padded), *padded.shape[1:])
    tiles = torch.cat([padded, blank]).view(rows, columns, *padded.shape[1:])
    return tiles.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)
