"""A challenger that writes badly costs nobody a text, in a stream neither."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import torch

from infra.ledger.rollout_rules import Terms
from models.language.gpt import GPT
from models.parts.tokens import EOS

Ask = Callable[..., httpx.Response]
PATH = "/v1/completions"


def gpt(seed: int) -> GPT:
    torch.manual_seed(seed)
    return GPT(GPT.presets["tiny"]).eval()


def silent(model: GPT) -> None:
    """Make it end every text at once."""
    pattern = torch.tensor([1.0, -1.0] * 16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name == "norm.weight" else 0.0)
        model.places.weight[:] = pattern
        model.tokens.weight[EOS] = 100 * pattern


def not_finite(model: GPT) -> None:
    with torch.no_grad():
        model.norm.weight[0] = torch.nan


@contextmanager
def rollout(workshop: Any, name: str, change: Any, place: str) -> Iterator[Any]:
    workshop.publish_alone(name, gpt(1))
    champion = workshop.ledger.head(name, "production")
    challenger = gpt(2)
    if change is not None:
        change(challenger)
    version = workshop.publish_alone(name, challenger)
    workshop.ledger.transition(
        name=name,
        stage="production",
        to_version=1,
        to_digest=champion.to_digest,
        expected_epoch=2,
        key=f"{name}/back",
        actor="test",
    )
    workshop.ledger.transition(
        name=name,
        stage=place,
        to_version=2,
        to_digest=version["digest"],
        expected_epoch=0,
        key=f"{name}/{place}",
        actor="test",
        report={
            "terms": Terms(percent=100, limits={"max_flat": 3, "max_slowdown": 1000}).model_dump()
        },
    )
    stage = workshop.stage()
    yield workshop.gateway(stage, timeout_s=20.0)
    workshop.observer.close()
    stage.close()


def body(name: str, **changes: Any) -> dict[str, Any]:
    return {"model": name, "prompt": "once", "seed": 1, "max_tokens": 8, **changes}


def ended(workshop: Any, name: str, place: str) -> str:
    deadline = time.monotonic() + 5
    while (row := workshop.ledger.head(name, place)).to_version is not None:
        assert time.monotonic() < deadline, "nobody stopped it"
        time.sleep(0.01)
    return str(row.reason)


@pytest.mark.parametrize(
    ("change", "why"), [(not_finite, "were not finite"), (silent, "were of one colour or empty")]
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_champion_writes_where_the_challenger_cannot(
    workshop: Any, ask: Ask, change: Any, why: str, stream: bool
) -> None:
    name = f"text-{change.__name__.replace('_', '-')}-{'stream' if stream else 'whole'}"
    with rollout(workshop, name, change, "canary") as app:
        for seed in range(6):
            answer = ask(app, "POST", PATH, json=body(name, seed=seed, stream=stream))
            lines = [line for line in answer.text.splitlines() if '"model"' in line]
            assert lines
            for line in lines:
                chunk = json.loads(line.removeprefix("data: "))
                assert chunk["model"] == f"{name}:1"
        assert why in ended(workshop, name, "canary")


def test_a_good_challenger_answers_in_a_stream_with_nothing_of_the_champions(
    workshop: Any, ask: Ask
) -> None:
    with rollout(workshop, "text-good", None, "canary") as app:
        answer = ask(app, "POST", PATH, json=body("text-good", stream=True))
        chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
        assert {chunk["model"] for chunk in chunks} == {"text-good:2"}
        assert chunks[-1]["choices"][0]["receipt"]["place"] == "canary"
        assert len("".join(chunk["choices"][0]["text"] for chunk in chunks)) > 0


def test_a_prompt_that_is_only_rated_is_no_empty_text(workshop: Any, ask: Ask) -> None:
    with rollout(workshop, "text-rated", None, "canary") as app:
        for seed in range(6):
            asked = body("text-rated", seed=seed, max_tokens=0, echo=seed % 2 == 0, logprobs=1)
            assert ask(app, "POST", PATH, json=asked).json()["model"] == "text-rated:2"


def test_a_shadow_is_told_by_how_many_texts_differ(workshop: Any) -> None:
    async def write(app: Any) -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for seed in range(4):
                answer = await client.post(PATH, json=body("text-shadow", seed=seed))
                assert answer.json()["model"] == "text-shadow:1"
                while workshop.arms._mirrored:
                    await asyncio.sleep(0.001)

    with rollout(workshop, "text-shadow", None, "shadow") as app:
        asyncio.run(write(app))
        workshop.observer.close()
        seen = workshop.observations.read("text-shadow", "shadow", 1)
        assert seen["challenger"].compared == seen["champion"].requests == 4
        assert 0 < seen["challenger"].difference <= 4
        assert seen["challenger"].flat == seen["challenger"].failures == 0
