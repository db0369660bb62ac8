"""What every family is tried on, whatever it makes: structure to learn from, and requests that it can answer."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from models import trainable
from models.family import Family
from models.ports import Port
from models.request import Record, Request

SAID: Final = ("abc", "bca", "cab", "acb")
BLANKS: Final = tuple(f"{one} [MASK][MASK][MASK]" for one in SAID)
STORY: Final = ("the cat sat.", "a dog ran.", "the sun set.", "a bird sang.")
RECORDS: Final[tuple[Sequence[Record], ...]] = (
    [(("text", "\n".join((STORY[start:] + STORY[:start]) * 3)),) for start in range(4)] * 2,
    [(("source", one), ("target", one[::-1])) for one in SAID] * 4,
    [(("user", one), ("assistant", one[::-1])) for one in SAID] * 4,
)
"""Text records with a pattern, a kind each: documents, pairs, dialogues."""


def tiny(name: str, seed: int = 0, preset: str = "tiny", **changes: Any) -> Family:
    torch.manual_seed(seed)
    model = trainable(name)(dataclasses.replace(trainable(name).presets[preset], **changes))
    assert isinstance(model, Family)
    return model


def shaken(name: str, preset: str = "tiny", **changes: Any) -> Family:
    """A tiny model with no weight at zero, so that every part takes part in what it makes."""
    model = tiny(name, preset=preset, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return (counted(model, batch_of(model)) if model.counts else model).eval()


def counted(model: Family, batch: Mapping[str, Tensor], parts: int = 1) -> Family:
    """Return a counting model that has seen the batch, in `parts`."""
    for number in range(len(model.sums)):
        cut = {name: tensor.chunk(parts) for name, tensor in batch.items()}
        for part in range(len(next(iter(cut.values())))):
            model.absorb({name: tensors[part] for name, tensors in cut.items()}, number)
        model.settle(number)
    return model


def batch_of(model: Family, count: int = 16) -> dict[str, Tensor]:
    """Return `count` rows with structure, unlike noise: stripes, tones, or what the model makes of patterned text."""
    kind = made(model).kind
    if kind == "sound" and hasattr(model.config, "speakers"):
        kind = "mel"  # as long as texts take
    if kind == "embedding" and not model.needs and hasattr(model.config, "image_size"):
        kind = "pixels"  # whose embedding it is
    if kind == "volume":
        kind = "pixels"  # it is learned from pictures
    if kind == "text":
        rows = model.examples(records_for(model))
        index = torch.arange(count) % len(next(iter(rows.values())))
        return {name: tensor[index] for name, tensor in rows.items()}
    makers = {
        "pixels": stripes,
        "sound": tones,
        "mel": spoken,
        "codes": grids,
        "latent": ridges,
        "clip": rolling,
    }
    batch = makers[kind](model, count) if kind in makers else {}
    batch |= embeddings(model, {**model.inputs, **model.outputs}, count)
    if model.capabilities.condition == "text":
        tokens = model.encode(prompts(model, count))
        assert tokens is not None
        batch["tokens"] = tokens
        if hasattr(model.config, "speakers"):
            batch["token_length"] = (tokens > 0).sum(1)
            batch["speaker"] = torch.arange(count) % max(1, len(model.config.speakers))
    return batch


def made(model: Family) -> Port:
    """Return what the model makes."""
    (port,) = model.outputs.values()
    return port


def grids(model: Family, count: int) -> dict[str, Tensor]:
    """Codes that count up by one a place, from another one in each of four grids."""
    place_P = torch.arange(model.config.places)
    start_B1 = torch.arange(count)[:, None] % 4
    return {"codes": (place_P + start_B1) % model.config.codes}


def embeddings(model: Family, ports: Mapping[str, Port], count: int) -> dict[str, Tensor]:
    """Embeddings of length 1 that a model learns from or draws from: two of each, in turn."""
    found = {}
    for number, (name, port) in enumerate(ports.items()):
        if port.kind == "embedding":
            shape = tuple(size or 1 for size in port.shape)
            two = torch.randn(2, *shape, generator=torch.Generator().manual_seed(number))
            found[name] = F.normalize(two, dim=-1)[torch.arange(count) % 2]
    return found


def ridges(model: Family, count: int) -> dict[str, Tensor]:
    """Rows of 1 and -1 in every channel, shifted by one in every other grid of latents, and from frame to frame."""
    c = model.config
    places = torch.arange(c.latent_shape[1])
    rows = 1 - 2 * ((places + torch.arange(count)[:, None]) % 2).float()
    latent = rows[:, None, :, None].expand(count, *c.latent_shape).contiguous()
    if model.capabilities.modality != "clip":
        return {"latent": latent}
    moved = torch.stack([latent.roll(place, 2) for place in range(c.span)], 1)
    return {"latent": moved, **rolling(model, count)}


def stripes(model: Family, count: int) -> dict[str, Tensor]:
    """Black and white rows, shifted by one in every other picture."""
    size, channels = model.config.image_size, model.config.channels
    rows = ((torch.arange(size) + torch.arange(count)[:, None]) % 2).float()
    return {"pixels": rows[:, None, :, None].expand(count, channels, size, size).contiguous()}


def rolling(model: Family, count: int) -> dict[str, Tensor]:
    """Clips of black and white rows that move down by one a frame."""
    c = model.config
    pictures = stripes(model, count)["pixels"]
    return {
        "frames": torch.stack(
            [pictures.roll(place, 2) for place in range(getattr(c, "span", c.frames))], 1
        )
    }


def tones(model: Family, count: int) -> dict[str, Tensor]:
    """Two tones, one in every other sound, the last quarter of it silent."""
    length = getattr(model.config, "clip_samples", 128)
    period = torch.where(torch.arange(count) % 2 == 0, 8.0, 16.0)
    sound = 0.8 * (2 * torch.pi * torch.arange(length) / period[:, None]).sin()
    ends = length - length // 4
    sound[:, ends:] = 0
    return {"sound": sound, "length": torch.full((count,), ends)}


def spoken(model: Family, count: int) -> dict[str, Tensor]:
    """Tones as above, three times as long, each with whose it is."""
    found = tones(model, count)
    found = {"sound": found["sound"].repeat_interleave(3, 1), "length": 3 * found["length"]}
    return {**found, "speaker": torch.arange(count) % max(1, len(model.config.speakers))}


def records_for(model: Family) -> Sequence[Record]:
    """Return patterned records of the roles that the model learns from."""
    for records in RECORDS:
        try:
            model.examples(records)
        except ValueError:
            continue
        return records
    raise AssertionError(f"{type(model).__name__} learns from no kind of record")


def prompts(model: Family, count: int) -> tuple[str, ...]:
    """Return what a model that reads text can read: its words, some letters, or letters with blanks to fill in."""
    known: Sequence[str] = getattr(model.config, "vocabulary", ()) or _readable(type(model))
    return tuple(known[number % len(known)] for number in range(count))


@cache
def _readable(kind: type[Family]) -> Sequence[str]:
    if kind.counts:  # before it has seen any rows it draws nothing
        return SAID
    model = kind(kind.presets["tiny"]).eval()
    brief = {"max_tokens": 1} if model.capabilities.modality == "text" else {}
    try:
        model.sample(Request(seeds=(0,), prompts=SAID[:1], **brief))
    except ValueError:
        return BLANKS
    return SAID


def request(model: Family, seeds: tuple[int, ...]) -> Request:
    """Return a request that the model can answer: prompts or dialogues where it reads, tokens drawn and not chosen."""
    able = model.capabilities
    asked = prompts(model, len(seeds)) if able.condition == "text" else ()
    text = able.modality == "text"
    return Request(
        seeds=seeds,
        prompts=() if able.chats else asked,
        dialogues=tuple((("user", one),) for one in asked) if able.chats else (),
        given={
            **embeddings(model, model.inputs, len(seeds)),
            **clips(model, len(seeds)),
            **mels(model, len(seeds)),
        },
        seconds=0.02 if "seconds" in model.takes else None,
        temperature=1.0 if text else None,
        max_tokens=8 if text else None,
    )


def mels(model: Family, count: int) -> dict[str, Tensor]:
    """Return what a vocoder makes sound of: the mels of tones."""
    return model.given_of(tones(model, count)) if "mel" in model.inputs else {}


def clips(model: Family, count: int) -> dict[str, Tensor]:
    """Return the first of the clips that a model may draw from, if any, neither dark nor bright."""
    ports = [(name, port) for name, port in model.inputs.items() if port.kind == "clip"]
    generator = torch.Generator().manual_seed(0)
    shapes = {name: [count, *(size or 1 for size in port.shape)] for name, port in ports[:1]}
    return {n: 0.25 + torch.rand(*shape, generator=generator) / 2 for n, shape in shapes.items()}
