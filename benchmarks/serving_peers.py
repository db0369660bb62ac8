"""What `benchmarks.serving` compares with: a bare FastAPI app with a batcher of its own.

`python -m benchmarks.serving_peers DIRECTORY PORT` serves the model version in DIRECTORY. It batches whole
requests, up to 16 at a time: each has one picture and the same number of steps, which is its best case.
"""

import asyncio
import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel

from models import build
from models.family import Family
from models.request import Request

CAP = 16


class Order(BaseModel):
    """The fields of the request that matter here."""

    model: str
    prompt: str
    seed: int


def load(directory: Path) -> Family:
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    model = build(json.loads((directory / "config.json").read_text()))
    model.load_state_dict(load_file(directory / "model.safetensors"))
    assert isinstance(model, Family)
    return model.eval()


def draw(model: Family, orders: list[Order]) -> list[Any]:
    request = Request(tuple(o.seed for o in orders), prompts=tuple(o.prompt for o in orders))
    pictures = (model.sample(request) * 255).round().to(torch.uint8)
    return list(pictures.permute(0, 2, 3, 1).contiguous().numpy())


def document(pixels: Any) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(file, "PNG", compress_level=6)
    return {"created": 0, "data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}


def bare(directory: Path, port: int) -> None:
    """FastAPI, and a task that takes what has come whenever the model is free."""
    import uvicorn
    from fastapi import FastAPI

    model = load(directory)
    app = FastAPI()
    queue: asyncio.Queue[tuple[Order, asyncio.Future[Any]]] = asyncio.Queue(512)

    async def work() -> None:
        while True:
            batch = [await queue.get()]
            while len(batch) < CAP and not queue.empty():
                batch.append(queue.get_nowait())
            pictures = await asyncio.to_thread(draw, model, [order for order, _ in batch])
            for (_, future), picture in zip(batch, pictures, strict=True):
                future.set_result(picture)

    @app.on_event("startup")
    async def start() -> None:
        app.state.worker = asyncio.create_task(work())

    @app.post("/v1/images/generations")
    async def generate(order: Order) -> dict[str, Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        await queue.put((order, future))
        return document(await future)

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    folder, number = sys.argv[1:]
    bare(Path(folder), int(number))
