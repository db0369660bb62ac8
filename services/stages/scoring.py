"""What is asked of a model beside samples: its entries, embeddings of texts, the likelihood of a prompt or an input.

All run in the engine's thread, between two steps, so that no two use a network at once; what is to be scored is
decoded and encoded before, in another thread.

Shape letters: N texts, E numbers of an embedding, B = 1 input, C channels, H and W pixels, T sound samples.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.family import Batch, Family, Rows, heard
from models.parts import words
from models.parts.rows import entered
from models.parts.tokens import CONTROL, tokenizer
from services.media.codecs import MediaError, learned_pixels, learned_sound
from services.pipelines.payload import Embedded, Prompt, ScoreWork
from services.stages.scheduler import NotFinite

TOGETHER: Final = 16  # texts a call, or rows of one

EXAMPLES: Final = threading.Lock()
"""Held from `examples` until its `left_out` is read: threads share a model."""


def embed(model: Family, texts: tuple[Prompt, ...]) -> Embedded:
    """Return an embedding a text.

    Raises:
        ValueError: a text is too long for the model.
        NotFinite: the model gave other than finite numbers.
    """
    found_NE = model.embed(texts).float().cpu().numpy()
    if not np.isfinite(found_NE).all():
        raise NotFinite("the embeddings are not finite")
    return Embedded(found_NE, tuple(count_tokens(model, text) for text in texts))


def see(model: Family, pixels_NCHW: NDArray[np.float32]) -> Embedded:
    """Return an embedding a picture.

    Raises:
        NotFinite: the model gave other than finite numbers.
    """
    found_NE = enter(model, "pixels", {"pixels": torch.from_numpy(pixels_NCHW)}, ())
    return Embedded(found_NE, (0,) * len(found_NE))


def enter(
    model: Family, entry: str, given: dict[str, Tensor], texts: Sequence[str]
) -> NDArray[np.float32]:
    """Return what an entry makes of its inputs, a row a row.

    Raises:
        ValueError: the model cannot read a text, or takes no such input.
        NotFinite: the model gave other than finite numbers.
    """
    found = entered(model, entry, given, texts).float().cpu().numpy()
    if not np.isfinite(found).all():
        raise NotFinite("what it made is not finite")
    return found


def count_tokens(model: Family, text: Prompt) -> int:
    """Return how many tokens a text has, control tokens apart; words for a model without a tokenizer."""
    if not isinstance(text, str):
        return sum(token >= len(CONTROL) for token in text)
    document = getattr(model.config, "tokenizer", "")
    return len(tokenizer(document).encode(text) if document else words.split(text))


def recall(model: Family, prompts: Sequence[Prompt]) -> Iterator[list[Rows] | None]:
    """Yield None after each prompt but the last, and then how likely the tokens of each are.

    Raises:
        ValueError: a prompt is too long, or has tokens that the model does not know.
        NotFinite: the model gave other than finite numbers.
    """
    found: list[Rows] = []
    for prompt in prompts:
        if found:
            yield None
        found.append(model.recalled(prompt))
        if not all(bool(found[-1][name].isfinite().all()) for name in ("nats", "likeliest_nats")):
            raise NotFinite("the likelihoods are not finite")
    yield found


def score(model: Family, batch: Batch, seed: int) -> Iterator[float | None]:
    """Yield None after each part of the work, and then log p of one input, or its lower bound, in nats.

    What the family draws for it (grey levels to bits, a latent code) comes from a generator that is seeded with `seed`
    before the input, as evaluations seed theirs with 0 before the test split: the same input and seed have the same
    number.

    Raises:
        ValueError: the model has learned no such thing.
        NotFinite: the model gave no number; minus infinity is one.
    """
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    nats, rows = 0.0, len(next(iter(batch.values())))
    for start in range(0, rows, TOGETHER):  # a long text is several rows
        part = {name: tensor[start : start + TOGETHER] for name, tensor in batch.items()}
        generator = torch.Generator(device).manual_seed(heard(seed))
        for nats_B in model.rating(part, generator):
            if nats_B is not None:
                nats += float(nats_B.double().sum())
            if nats_B is None or start + TOGETHER < rows:
                yield None
    if nats != nats or nats == float("inf"):
        raise NotFinite("the likelihood is not finite")
    yield nats


def decoded(model: Family, work: ScoreWork) -> tuple[Batch, int, str]:
    """Return the model's batch of one input, prepared as datasets are, and how many numbers its likelihood is of.

    And what of the input the model leaves out, in words; empty where it takes all of it.

    Raises:
        ValueError: the input cannot be read, or the model has learned no such thing.
    """
    able = model.capabilities
    if able.modality == "text":
        texts = [text for _, text in work.record]
        count = sum(count_tokens(model, text) for text in texts)
        with EXAMPLES:
            return model.examples([work.record]), count, model.left_out
    try:
        batch = _picture(model, work) if able.modality == "image" else _sound(model, work)
    except MediaError as error:
        raise ValueError(str(error)) from None
    numbers = next(iter(batch.values())).numel()
    if able.condition == "text":
        if work.caption is None:
            raise ValueError("this model learned p(x | caption): give a caption")
        tokens = model.encode([work.caption])
        if tokens is not None:
            batch["tokens"] = tokens
    return batch, numbers, ""


def _picture(model: Family, work: ScoreWork) -> dict[str, Tensor]:
    config = model.config
    pixels_HWC = learned_pixels(work.content, config.image_size, config.channels)
    pixels_BCHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None].float() / 255
    return {"pixels": pixels_BCHW}


def _sound(model: Family, work: ScoreWork) -> dict[str, Tensor]:
    sound_T = torch.from_numpy(learned_sound(work.content, model.config.sample_rate))
    return {"sound": sound_T[None], "length": torch.tensor([len(sound_T)])}
