"""A model of each modality, each small, published into a workshop; and a gateway that listens."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn

import models
from models.autoregressive.nade import NADE
from models.language.bert import BERT
from models.text_to_image.clip import CLIP
from tests.services.text_kit import gpt
from tests.services.toys import TOYS, Reader, Voice


class Started(uvicorn.Server):
    """A server that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.listens.set()


@contextmanager
def listening(app: Any, port: int = 0) -> Iterator[str]:
    """The address at which an application answers meanwhile; port 0 is any."""
    server = Started(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.listens.wait(30)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


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
    """Put writer, talker, filler, voice, reader, bits and pairs in production."""
    torch.manual_seed(0)
    workshop.publish_alone("writer", gpt(), max_tokens=12, temperature=0.9)
    workshop.publish_alone("talker", gpt("dialogues"))
    workshop.publish_alone("filler", BERT(BERT.presets["tiny"]).eval())
    workshop.publish_alone("voice", Voice(Voice.presets["tiny"]), seconds=0.25)
    workshop.publish_alone("reader", Reader(Reader.presets["tiny"]))
    workshop.publish_alone("bits", NADE(NADE.presets["tiny"]).eval())
    workshop.publish_wired("pairs", {"clip": CLIP(CLIP.presets["tiny"]).eval()})
