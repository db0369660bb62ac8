"""How long pictures and chat take alone, and beside one sound of half a minute, in one step engine.

`python -m benchmarks.sharing` draws with random networks of the shapes that the recipes have (DDPM `base` in 12 steps,
GPT `chat` writing 24 tokens, WaveNet `small`), one user of each without a pause, in turns alone and beside a sound
that does not end before them. It prints a row a kind: p50 and p99, and their ratios beside and alone of one run.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence
from queue import Queue
from typing import Any

import torch

from models.autoregressive.wavenet import WaveNet
from models.diffusion.ddpm import DDPM
from models.family import Family
from models.language.gpt import GPT
from models.parts.tokens import of_signs
from models.request import Request
from services.stages.batch_invariance import agreeing
from services.stages.engine import Engine
from services.stages.scheduler import Finished, Wrote

BUCKETS = (1, 2, 4, 8, 16)
SIGNS = "abcdefghijklmnopqrstuvwxyz ?"


class User:
    """Asks one model for one thing after another."""

    def __init__(self, engine: Engine, model: Family, request: Request) -> None:
        self._engine, self._model, self._request = engine, model.eval(), request
        self._buckets = agreeing(self._model, BUCKETS)

    def begin(self) -> tuple[Any, Queue[Any]]:
        """Send the request."""
        inbox: Queue[Any] = Queue()
        sent = self._engine.submit(self._model, self._request, inbox.put, buckets=self._buckets)
        return sent, inbox

    def seconds(self) -> float:
        """Return how long one request takes."""
        began = time.perf_counter()
        _, inbox = self.begin()
        while isinstance(found := inbox.get(), Wrote):
            pass
        assert isinstance(found, Finished), found
        return time.perf_counter() - began


def users(engine: Engine) -> dict[str, User]:
    """Return one of each kind."""
    torch.manual_seed(0)
    words = ("a", "red", "circle")
    painter = DDPM(dataclasses.replace(DDPM.presets["base"], vocabulary=words, steps=12))
    chat = GPT(dataclasses.replace(GPT.presets["chat"], tokenizer=of_signs(SIGNS)))
    question = ((("user", "what is two plus three ?"),),)
    return {
        "picture": User(engine, painter, Request(seeds=(1,), prompts=("a red circle",))),
        "chat": User(engine, chat, Request(seeds=(1,), dialogues=question, max_tokens=24)),
        "sound": User(engine, WaveNet(WaveNet.presets["small"]), Request(seeds=(1,), seconds=30.0)),
    }


def p99(seconds: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=25, help="a round")
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    engine = Engine()
    everybody = users(engine)
    print("| what | alone p50 / p99 ms | beside a sound p50 / p99 ms | ratios |")
    print("|---|---|---|---|")
    for kind in ("picture", "chat"):
        user, alone, beside = everybody[kind], [], []
        user.seconds()
        for _ in range(given.rounds):
            alone += [user.seconds() for _ in range(given.requests)]
            sound, _ = everybody["sound"].begin()
            beside += [user.seconds() for _ in range(given.requests)]
            engine.cancel(sound)
        middle = statistics.median
        print(
            f"| {kind} | {1e3 * middle(alone):.0f} / {1e3 * p99(alone):.0f} |"
            f" {1e3 * middle(beside):.0f} / {1e3 * p99(beside):.0f} |"
            f" {middle(beside) / middle(alone):.2f} / {p99(beside) / p99(alone):.2f} |"
        )
    engine.close()


if __name__ == "__main__":
    main()
