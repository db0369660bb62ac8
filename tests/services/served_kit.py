"""A model of each modality, each small, published into a workshop."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import models
from models.autoregressive.nade import NADE
from models.language.bert import BERT
from tests.services.text_kit import gpt
from tests.services.toys import TOYS, Reader, Voice


@contextmanager
def with_toys() -> Iterator[None]:
    """The table of families with the toys in it."""
    table: Any = models.FAMILIES
    before = dict(table)
    table.update(TOYS)
    yield
    table.clear()
    table.update(before)


def publish_each_modality(workshop: Any) -> None:
    """Put writer, talker, filler, voice, reader and bits in production."""
    torch.manual_seed(0)
    workshop.publish_alone("writer", gpt(), max_tokens=12, temperature=0.9)
    workshop.publish_alone("talker", gpt("dialogues"))
    workshop.publish_alone("filler", BERT(BERT.presets["tiny"]).eval())
    workshop.publish_alone("voice", Voice(Voice.presets["tiny"]), seconds=0.25)
    workshop.publish_alone("reader", Reader(Reader.presets["tiny"]))
    workshop.publish_alone("bits", NADE(NADE.presets["tiny"]).eval())
