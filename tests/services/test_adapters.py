"""Adapters behind the gateway: asked for by name, loaded beside their base, and drawn in one batch with it."""

import base64
import dataclasses
import io
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from infra.pipelines import Pin, Pinned, PinnedStage
from infra.receipts.receipts import read
from models import build, describe
from models.family import Family
from models.parts import lora
from models.parts.adapter_rows import host_of
from models.parts.lora import LoRA
from models.request import Request
from services.stages.engine import Engine
from services.stages.loader import Unloadable, Versions
from services.stages.scheduler import Finished
from tests.services.conftest import network

Ask = Callable[..., httpx.Response]
WORD = {"teal": 1, "mint": 2}
"""The word that each adapter brings, with its seed."""


def adapter_of(base: Family, stage: PinnedStage, word: str) -> Family:
    """An adapter of a published stage, with a word of its own and numbers in its B."""
    document = describe(base)
    document["config"]["vocabulary"] = (*base.config.vocabulary, word)
    known = {"text.words": len(base.config.vocabulary) + 1}
    asked = LoRA(2, 4.0, ("qkv", "context", "caption"), stage.pin.ref, stage.sha256, known)
    torch.manual_seed(WORD[word])
    model = build({**document, "lora": dataclasses.asdict(asked)})
    assert isinstance(model, Family)
    lora.fill(model, base.state_dict(), lora.own(model))
    for name, tensor in lora.own(model).items():
        if name.endswith("up"):
            tensor.normal_(std=0.3)
    return model.eval()


class Adapters:
    """A base with two adapters in production, as a recipe publishes them."""

    def __init__(self, workshop: Any) -> None:
        self.workshop = workshop
        self.base = network("base")
        self.pipeline = workshop.publish_wired(
            "shapes", {"base": self.base, "up": network("upscaler")}
        )
        head = workshop.ledger.head("shapes", "production")
        self.adapted: dict[str, Family] = {}
        self.pins: dict[str, Pin] = {"shapes": self.pipeline.stages[0].pin}
        for word in WORD:
            stage = self.pipeline.stages[0]
            model = self.adapted[word] = adapter_of(self.base, stage, word)
            version = workshop.publish(f"shapes-{word}.base", {}, model)
            place = {
                "name": version["name"],
                "version": version["number"],
                "sha256": version["digest"],
            }
            adapts = Pinned(name=stage.name, version=stage.version, sha256=stage.sha256)
            mine = stage.model_copy(update={**place, "adapts": adapts})
            self.pins[word] = mine.pin
            changed = {
                "endpoint": f"shapes-{word}",
                "base": Pinned(name="shapes", version=head.to_version, sha256=head.to_digest),
                "stages": (mine, *self.pipeline.stages[1:]),
            }
            document = self.pipeline.model_copy(update=changed).model_dump(mode="json")
            workshop.promote(workshop.publish(f"shapes-{word}", {"pipeline.json": document}))


@pytest.fixture(scope="module")
def adapters(own_workshop: Any) -> Adapters:
    return Adapters(own_workshop)


@pytest.fixture(scope="module")
def app(adapters: Adapters) -> Iterator[Any]:
    stage = adapters.workshop.stage()
    yield adapters.workshop.gateway(stage)
    stage.close()


def drawn(ask: Ask, app: Any, **body: Any) -> bytes:
    asked = {"prompt": "a red circle", "seed": 7, "response_format": "b64_json", **body}
    answer = ask(app, "POST", "/v1/images/generations", json=asked)
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def pixels(file: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).tolist()


def test_an_adapter_is_asked_for_in_each_way_that_peers_have(
    adapters: Adapters, app: Any, ask: Ask
) -> None:
    """As a model of its own, behind a plus, or as `lora`; the base's other stages come with it."""
    files = [
        drawn(ask, app, **named)
        for named in (
            {"model": "shapes-teal"},
            {"model": "shapes+teal"},
            {"model": "shapes", "lora": "teal"},
            {"model": "shapes", "lora": {"name": "teal"}},
            {"model": "shapes@production", "lora": "teal"},
        )
    ]
    first, *others = map(pixels, files)
    assert all(one == first for one in others)
    assert pixels(drawn(ask, app, model="shapes")) != first
    assert pixels(drawn(ask, app, model="shapes+mint")) != first
    receipt = read(files[1])
    assert receipt.endpoint == "shapes-teal"
    assert receipt.stages[0].sha256 == adapters.pins["teal"].digest
    assert receipt.stages[1].sha256 == adapters.pipeline.stages[1].sha256
    card = ask(app, "GET", "/v1/models/shapes-teal").json()
    assert card["adapts"] == "shapes:1"
    assert ask(app, "GET", "/v1/models/shapes").json()["adapts"] is None


def test_a_word_is_known_to_the_adapter_that_brings_it_and_to_no_other(app: Any, ask: Ask) -> None:
    assert drawn(ask, app, model="shapes+teal", prompt="a teal circle")
    for model in ("shapes", "shapes+mint"):
        body = {"model": model, "prompt": "a teal circle"}
        answer = ask(app, "POST", "/v1/images/generations", json=body)
        assert answer.status_code == 400
        assert "unknown word 'teal'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"model": "shapes+nope"}, 404, "the model 'shapes+nope' does not exist"),
        ({"model": "shapes", "lora": "nope"}, 404, "the model 'shapes+nope' does not exist"),
        ({"model": "shapes+up"}, 404, "the model 'shapes+up' does not exist"),
        ({"lora": "teal"}, 400, "lora: say in `model` which one it adapts"),
        ({"model": "shapes+mint", "lora": "teal"}, 400, "lora: say in `model` which one it adapts"),
        ({"model": "shapes", "lora": {"name": "teal", "path": "/etc"}}, 400, "lora"),
        ({"model": "shapes", "lora": "../teal"}, 400, "lora"),
    ],
)
def test_an_adapter_that_is_not_there_is_refused_by_name(
    app: Any, ask: Ask, body: dict[str, Any], status: int, says: str
) -> None:
    answer = ask(app, "POST", "/v1/images/generations", json={"prompt": "a red circle", **body})
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]


def test_what_adapts_another_model_is_not_that_ones_adapter(adapters: Adapters, ask: Ask) -> None:
    """`shapes-teal-dark` may be the adapter dark of shapes-teal, or teal-dark of shapes: the pipeline says of whom."""
    alone = adapters.pipeline.model_copy(update={"endpoint": "shapes-solo"})
    workshop = adapters.workshop
    document = alone.model_dump(mode="json")
    workshop.promote(workshop.publish("shapes-solo", {"pipeline.json": document}))
    stage = workshop.stage()
    body = {"model": "shapes+solo", "prompt": "a red circle"}
    answer = ask(workshop.gateway(stage), "POST", "/v1/images/generations", json=body)
    stage.close()
    assert answer.status_code == 404
    assert "shapes-solo adapts nothing" in answer.json()["error"]["message"]


def test_rows_of_the_base_and_two_adapters_share_a_batch_and_each_has_the_bits_it_has_alone(
    adapters: Adapters,
) -> None:
    versions = Versions(adapters.workshop.registry)
    held = [versions.load(adapters.pins[name]) for name in ("teal", "shapes", "mint")]
    host = host_of(held[0].model)
    assert {id(host_of(one.model)) for one in held} == {id(held[1].model)}
    assert held[0].bytes < held[1].bytes / 5, "the base's weights are held once"
    sizes: list[int] = []
    host.get_submodule("network").register_forward_hook(
        lambda *given: sizes.append(len(given[1][0]))
    )
    engine = Engine()
    asked = [Request(seeds=(seed,), prompts=("a red circle",)) for seed in (3, 4, 5)]
    try:
        alone = [
            _pictures(engine, [one], [request]) for one, request in zip(held, asked, strict=True)
        ]
        sizes.clear()
        together = _pictures(engine, held, asked)
    finally:
        engine.close()
    for one, other in zip(alone, together, strict=True):
        assert one[0].tobytes() == other.tobytes()
    assert sizes == [6] * host.config.steps, "three rows, guided, in one call"
    for model, request, picture in zip(
        (adapters.adapted["teal"], adapters.base, adapters.adapted["mint"]),
        asked,
        together,
        strict=True,
    ):
        own = model.sample(request)[0]
        torch.testing.assert_close(torch.from_numpy(picture), own, rtol=0, atol=1e-5)


def _pictures(engine: Engine, held: Any, asked: list[Request]) -> list[Any]:
    """Submit requests while the engine is kept from its first step; return what is drawn."""
    go, made = threading.Event(), queue.Queue[Any]()
    engine.ask(lambda: go.wait(60), lambda _: None)
    for number, (one, request) in enumerate(zip(held, asked, strict=True)):
        engine.submit(one.model, request, partial(_deliver, made, number), buckets=one.buckets)
    go.set()
    found = dict(made.get(timeout=60) for _ in asked)
    return [found[number] for number in range(len(asked))]


def _deliver(made: "queue.Queue[Any]", number: int, result: Any) -> None:
    assert isinstance(result, Finished), result
    made.put((number, result.made))


def test_a_base_stays_as_long_as_one_of_its_adapters_and_is_loaded_once(adapters: Adapters) -> None:
    """Where there is room for one alone: the memory of a base that they hold is not free, whoever lets it go."""
    room = sum(one.numel() * one.element_size() for one in adapters.base.parameters()) // 2
    versions = Versions(adapters.workshop.registry, max_bytes=room)
    teal, mint = (versions.load(adapters.pins[word]) for word in WORD)
    base = versions.held(adapters.pins["shapes"].digest)
    assert base is not None
    assert host_of(teal.model) is host_of(mint.model) is base.model
    versions.load(adapters.pins["shapes"])
    upscaler = adapters.pipeline.stages[1]
    versions.load(upscaler.pin)
    assert versions.digests == [upscaler.sha256]


def test_an_adapter_of_other_weights_than_it_names_is_not_loaded(adapters: Adapters) -> None:
    stage = adapters.pipeline.stages[0]
    wrong = dataclasses.replace(adapters.adapted["teal"].lora, digest=adapters.pins["mint"].digest)
    model = adapter_of(adapters.base, stage, "teal")
    model.lora = wrong
    version = adapters.workshop.publish("shapes-wrong.base", {}, model)
    pin = Pin(name=version["name"], number=version["number"], digest=version["digest"])
    says = (
        r"shapes-wrong\.base:1 cannot be loaded: .* is a tensor of the base, shapes\.base:1, and of"
    )
    with pytest.raises(Unloadable, match=says):
        Versions(adapters.workshop.registry).load(pin)
