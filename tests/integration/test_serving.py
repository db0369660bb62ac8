"""The served application: the real client, promotions and lost replicas under load."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
import soundfile

from infra import serving
from infra.jobs.jobs import Jobs
from infra.keys import Keys
from infra.ledger.ledger import Ledger
from infra.receipts import receipts
from infra.registry.registry import Registry
from infra.settings import Settings
from models.family import Family
from models.request import Request
from services.pipelines.by_reference import INLINE
from tests.integration import doors_kit as doors
from tests.integration.capabilities_kit import publish_all
from tests.integration.neighbour import Neighbour, move_in
from tests.integration.serving_kit import (
    NAME,
    PROMPT,
    House,
    check_wired,
    http,
    in_one_process,
    pixels,
    publish,
    receipt,
    slowest,
    steadily,
    wait_for,
)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]


STAGED = """
layout: staged
pools:
  - {name: upscalers, stages: ["*.upscaler"]}
  - {name: voices, families: [wavenet], replicas: {min: 0}}
  - {name: bases}
"""


@pytest.fixture(scope="module")
def house(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The run's Ray and MLflow with a ledger and keys of their own, three versions, the first in production.

    Its stages are apart from the gateway, in pools; tests of rollouts have them in the gateway's process.
    """
    folder = tmp_path_factory.mktemp("serving")
    (folder / "placement.yaml").write_text(STAGED)
    settings = Settings(
        database_url=f"sqlite:///{folder / 'atelier.db'}", placement=folder / "placement.yaml"
    )
    house = House(
        settings,
        Keys(settings.database).create("tests"),
        Ledger(settings.database),
        Registry(settings.mlflow_uri, settings.state / "versions"),
    )
    for seed in (1, 2, 3):
        publish(house, folder, seed)
    house.promote(1)
    with house.client:
        yield house
    serving.stop(settings)


@pytest.fixture(scope="module")
def neighbour(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbour]:
    """Another team's application on the same Serve, there to the end."""
    found = move_in(house.settings, tmp_path_factory.mktemp("neighbour"))
    yield found
    found.leave()


def test_the_client_draws_four_pictures_with_a_seed(house: House) -> None:
    answer = house.draw(n=4, extra_body={"seed": 40})
    assert [entry.seed for entry in answer.data] == [40, 41, 42, 43]
    assert pixels(answer.data[0]).shape == (16, 16, 3)
    assert receipt(answer.data[3]).version == f"{NAME}:1"
    assert receipt(answer.data[3]).request_id == answer._request_id


def test_the_gateway_of_a_cluster_works_on_jobs(house: House) -> None:
    with Jobs(house.settings.database) as jobs:
        given: dict[str, Any] = {"pipeline": f"{NAME}:1", "digests": {}, "seed": 1}
        made = jobs.submit("nothing", {}, owner="tests", **given)
        wait_for("end", lambda: jobs.get(made.id).over)
        error = jobs.get(made.id).error
    assert error is not None
    assert error.code == "unknown_kind"


def test_the_gateway_of_a_cluster_answers_batches(house: House) -> None:
    url, body = "/v1/images/generations", {"model": NAME, "prompt": PROMPT, "seed": 40}
    line = {"custom_id": "one", "method": "POST", "url": url, "body": body}
    client = house.client
    file = client.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch")
    asked = {"endpoint": url, "completion_window": "24h"}
    batch = client.batches.create(input_file_id=file.id, **asked)  # type: ignore[arg-type]
    wait_for("end", lambda: client.batches.retrieve(batch.id).status == "completed")
    made = client.batches.retrieve(batch.id).output_file_id
    assert made is not None
    answer = json.loads(client.files.content(made).content)
    assert answer["custom_id"] == "one"
    assert answer["response"]["body"]["model"] == f"{NAME}:1"


def test_a_seed_gives_the_same_bytes_alone_and_in_a_crowd(house: House) -> None:
    alone = [pixels(house.draw(extra_body={"seed": seed}).data[0]) for seed in range(6)]

    async def crowd() -> list[httpx.Response]:
        async with http(house) as client:
            bodies = [
                {"model": NAME, "prompt": PROMPT, "seed": seed, "n": 1 + seed % 3}
                for seed in range(6)
            ]
            posts = (client.post("/images/generations", json=body) for body in bodies)
            return await asyncio.gather(*posts)

    for before, answer in zip(alone, asyncio.run(crowd()), strict=True):
        np.testing.assert_array_equal(pixels(answer.json()["data"][0]), before)


def test_pools_apart_draw_the_bytes_of_one_process(house: House) -> None:
    answer = house.draw(n=3, extra_body={"seed": 5})
    for entry, expected in zip(answer.data, in_one_process(house, 1, (5, 6, 7)), strict=True):
        np.testing.assert_array_equal(pixels(entry), expected)


def test_a_cascade_of_two_inputs_and_an_edit_are_the_same_in_pools_apart(
    house: House, tmp_path: Path
) -> None:
    check_wired(house, tmp_path, 21)


def test_large_pictures_go_from_pool_to_pool_by_reference_and_are_the_same(
    house: House, tmp_path: Path
) -> None:
    number, seeds = publish(house, tmp_path, 4, side=96).number, tuple(range(10))
    assert len(seeds) * 3 * 96 * 96 * 4 > INLINE  # between the two
    answer = house.draw(model=f"{NAME}:{number}", n=len(seeds), extra_body={"seed": 0})
    expected = in_one_process(house, number, seeds)
    for entry, picture in zip(answer.data, expected, strict=True):
        np.testing.assert_array_equal(pixels(entry), picture)


def test_the_client_streams_partial_images(house: House) -> None:
    stream = house.client.images.generate(
        model=NAME, prompt=PROMPT, stream=True, partial_images=2, extra_body={"seed": 1}
    )
    events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    whole = house.draw(extra_body={"seed": 1}).data[0]
    np.testing.assert_array_equal(pixels(events[-1]), pixels(whole))


def test_the_client_lists_models_and_fetches_a_url(house: House) -> None:
    client = house.client
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(f"{NAME}:1").id == f"{NAME}:1"
    [entry] = house.draw(response_format="url").data
    assert httpx.get(entry.url).content.startswith(b"\x89PNG")
    unsigned = httpx.get(entry.url.partition("?")[0])
    assert unsigned.status_code == 401
    assert unsigned.headers["www-authenticate"] == 'Bearer realm="atelier"'


@pytest.mark.parametrize(
    ("changes", "kind", "param", "code"),
    [
        ({"model": "nope"}, openai.NotFoundError, "model", "model_not_found"),
        ({"size": "7x7"}, openai.BadRequestError, "size", "invalid_value"),
        ({"n": 11}, openai.BadRequestError, "n", "integer_above_max_value"),
        ({"prompt": ""}, openai.BadRequestError, "prompt", "invalid_value"),
        ({"prompt": "a purple circle"}, openai.BadRequestError, "prompt", "invalid_value"),
    ],
)
def test_each_error_is_the_right_exception(
    house: House, changes: Any, kind: Any, param: str, code: str
) -> None:
    with pytest.raises(kind) as raised:
        house.draw(**changes)
    assert (raised.value.param, raised.value.code) == (param, code)
    assert raised.value.request_id
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["message"] in str(raised.value)


def test_a_wrong_key_is_an_authentication_error(house: House) -> None:
    with pytest.raises(openai.AuthenticationError) as raised:
        house.client.with_options(api_key="wrong").models.list()
    assert raised.value.code == "invalid_api_key"


@pytest.fixture(scope="module")
def able(house: House, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    """A model of each kind in production beside the shapes."""
    return publish_all(house, tmp_path_factory.mktemp("able"))


def test_a_pool_that_sleeps_holds_up_no_deploy_and_is_woken_by_a_request(
    house: House, able: Any
) -> None:
    def pids() -> list[int]:
        state = serving.status(house.settings)
        assert state is not None
        found: list[int] = state["deployments"]["voices"]["pids"]
        return found

    assert pids() == []
    voice = house.registry.get("able-voice.base:1")
    pin = {"name": voice.name, "number": 1, "digest": voice.digest, "family": "wavenet"}
    serving.deploy(house.settings, [*house.stages[1], pin])
    assert pids() == []
    asked: Any = {"model": "able-voice", "voice": "default", "input": "zero"}
    extra = {"seconds": 0.1}
    assert house.client.audio.speech.create(**asked, extra_body=extra).content
    assert len(pids()) == 1
    assert serving.loaded(house.settings, [voice.digest])


def test_the_client_streams_a_completion(house: House, able: Any) -> None:
    asked = {"model": "able-prose", "prompt": "once upon ", "max_tokens": 24, "seed": 5}
    completions = house.client.completions
    whole = completions.create(**asked)
    chunks = list(completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(one.text for chunk in chunks for one in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    model = able["able-prose"]
    request = Request(seeds=(5,), prompts=("once upon ",), max_tokens=24)
    assert whole.choices[0].text == model.text_of(model.sample(request)[0])
    assert whole.choices[0].finish_reason in {"stop", "length"}


def test_the_client_chats(house: House, able: Any) -> None:
    turn: Any = {"role": "user", "content": "what time is it?"}
    asked: Any = {"model": "able-chat", "messages": [turn], "max_tokens": 20, "seed": 1}
    answer = house.client.chat.completions.create(**asked)
    chunks = list(house.client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(one.delta.content or "" for chunk in chunks for one in chunk.choices)
    assert said == answer.choices[0].message.content
    stop = said[len(said) // 2 :][:2]
    cut = house.client.chat.completions.create(**asked, stop=[stop])
    assert cut.choices[0].message.content == said[: said.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_the_client_embeds(house: House, able: Any) -> None:
    texts = ["the clocks were striking", "a small dog"]
    answer = house.client.embeddings.create(model="able-words", input=texts)  # as base64
    plain = house.client.embeddings.create(model="able-words", input=texts, encoding_format="float")
    expected = able["able-words"].embed(texts).numpy()
    for way in (answer, plain):
        found = np.array([entry.embedding for entry in way.data])
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_client_draws_a_digit_by_its_class(house: House, able: Any) -> None:
    entry = house.draw(model="able-digits", prompt="two", extra_body={"seed": 3}).data[0]
    drawn = able["able-digits"].sample(Request(seeds=(3,), prompts=("two",)))
    np.testing.assert_array_equal(pixels(entry), (drawn[0, 0] * 255).byte().numpy())
    assert receipt(entry).prompt == "two"


def test_the_score_of_an_uploaded_digit_is_the_models_own(house: House, able: Any) -> None:
    digit = house.client.post("/samples", cast_to=object, body={"model": "able-bits", "seed": 9})
    upload: Any = {"model": "able-bits", "input": {"image_b64": digit["data"][0]["b64"]}}
    answer: Any = house.client.post("/scores", cast_to=object, body=upload)
    model = able["able-bits"]
    expected = float(model.log_prob({"pixels": model.sample(Request(seeds=(9,)))}))
    assert answer["data"][0]["nats"] == pytest.approx(expected, rel=1e-5)


def test_the_client_hears_a_label_as_a_wav(house: House, able: Any, tmp_path: Path) -> None:
    asked: Any = {"model": "able-voice", "input": "one", "voice": "default"}
    extra = {"seed": 4, "seconds": 0.1}
    with house.client.audio.speech.with_streaming_response.create(
        **asked, response_format="wav", extra_body=extra
    ) as answer:
        assert answer.headers["content-type"] == "audio/wav"
        answer.stream_to_file(tmp_path / "one.wav")
    levels, rate = soundfile.read(tmp_path / "one.wav", dtype="int16")
    assert (len(levels), rate) == (800, 8000)
    sample = able["able-voice"].sample(Request(seeds=(4,), prompts=("one",), seconds=0.1))
    np.testing.assert_allclose(levels / 32768, sample[0].numpy(), atol=1 / 32768)
    made = receipts.read(tmp_path / "one.wav")
    assert (made.version, made.prompt, made.seed) == ("able-voice:1", "one", 4)
    house.client.audio.speech.create(**asked, extra_body=extra).write_to_file(tmp_path / "one.mp3")
    packed, rate = soundfile.read(tmp_path / "one.mp3", dtype="int16")
    assert (len(packed), rate) == (800, 8000)
    assert receipts.read(tmp_path / "one.mp3").prompt == "one"


@pytest.mark.parametrize(
    ("call", "kind", "param", "code", "words"),
    [
        (
            lambda c: c.completions.create(model="able-prose", prompt="a", extra_body={"foo": 1}),
            openai.BadRequestError,
            "foo",
            "unknown_parameter",
            "unknown parameter 'foo'",
        ),
        (
            lambda c: c.completions.create(model="nope", prompt="a"),
            openai.NotFoundError,
            "model",
            "model_not_found",
            "'nope' does not exist",
        ),
        (
            lambda c: c.chat.completions.create(
                model="able-bits", messages=[{"role": "user", "content": "a"}]
            ),
            openai.BadRequestError,
            "model",
            "unsupported_capability",
            "able-bits gives no chat at /v1/chat/completions; it gives pictures",
        ),
        (
            lambda c: c.embeddings.create(model="able-words", input="a dog", dimensions=3),
            openai.BadRequestError,
            "dimensions",
            "invalid_value",
            "16 numbers an input",
        ),
        (
            lambda c: c.audio.speech.create(model="able-prose", input="a", voice="alloy"),
            openai.BadRequestError,
            "model",
            "unsupported_capability",
            "it gives text at /v1/completions",
        ),
        (
            lambda c: c.completions.create(model="able-prose", prompt="a" * 100),
            openai.BadRequestError,
            "prompt",
            "invalid_value",
            "shorten it",
        ),
    ],
)
def test_each_error_of_text_and_sound_is_the_right_exception(
    house: House, able: Any, call: Any, kind: Any, param: str, code: str, words: str
) -> None:
    with pytest.raises(kind) as raised:
        call(house.client)
    assert (raised.value.param, raised.value.code) == (param, code)
    assert words in str(raised.value)
    assert raised.value.request_id


def test_a_text_is_the_same_alone_and_in_a_crowd(house: House, able: Any) -> None:
    bodies = [
        {"model": "able-prose", "prompt": "a" * (1 + seed % 9), "seed": seed, "max_tokens": 20}
        for seed in range(12)
    ]

    async def crowd() -> list[str]:
        async with http(house) as client:
            answers = await asyncio.gather(
                *(client.post("/completions", json=body) for body in bodies)
            )
            return [answer.json()["choices"][0]["text"] for answer in answers]

    alone = [house.client.completions.create(**body).choices[0].text for body in bodies]  # type: ignore[call-overload]
    assert asyncio.run(crowd()) == alone


def test_a_full_queue_is_a_rate_limit_error_and_clients_that_leave_empty_it(house: House) -> None:
    statuses: set[int] = set()

    def refused() -> openai.RateLimitError | None:
        try:
            house.draw(n=10, extra_body={"steps": 200})
        except openai.RateLimitError as error:
            return error
        return None

    async def flood() -> None:
        async with http(house) as client:

            async def insist() -> None:
                body = {"model": NAME, "prompt": PROMPT, "n": 10, "steps": 200}
                while True:  # there is no room for long: who was refused takes it
                    answer = await client.post("/images/generations", json=body)
                    statuses.add(answer.status_code)

            tasks = [asyncio.create_task(insist()) for _ in range(40)]
            raised = await asyncio.to_thread(wait_for, "a refusal", refused)
            assert raised.code == "queue_full"
            assert 1 <= int(raised.response.headers["retry-after"]) <= 120
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(flood())
    assert 429 in statuses <= {200, 429}

    def drawn() -> Any:  # the queue empties when Serve has seen the clients go
        with suppress(openai.RateLimitError):
            return house.draw()

    wait_for("room in the queue", drawn)


def test_promotions_under_load_fail_no_request_and_receipts_agree_with_the_ledger(
    house: House,
) -> None:
    events = {
        50: lambda: house.promote_and_see(2),
        125: lambda: house.promote_and_see(3),
    }
    outcomes = asyncio.run(steadily(house, 200, 0.5, events))
    failed = [outcome for outcome in outcomes if outcome.status != 200]
    assert not failed, f"{len(failed)} failed: {failed[0].data}"
    served = {1: 0, 2: 0, 3: 0}
    for outcome in outcomes:
        found = receipt(outcome.data[0])
        assert found.place == "production"
        assert house.stood(found, outcome.sent, outcome.answered)
        served[int(found.version.partition(":")[2])] += 1
    assert min(served.values()) > 0, served
    print(f"\npromotions: 0 of {len(outcomes)} failed, {served}, slowest {slowest(outcomes):.2f} s")  # noqa: T201


def test_a_killed_replica_fails_no_request(house: House) -> None:
    def kill(stage: str) -> None:
        os.kill(house.replica(stage), signal.SIGKILL)

    events = {
        20: lambda: kill("bases"),
        22: lambda: kill("upscalers"),
        70: lambda: kill("Gateway"),
    }
    outcomes = asyncio.run(steadily(house, 120, 0.2, events))
    failed = [outcome for outcome in outcomes if outcome.status != 200]
    assert not failed, f"{len(failed)} failed: {failed[0].data}"
    print(f"\nkilled replicas: 0 of {len(outcomes)} failed, slowest {slowest(outcomes):.2f} s")  # noqa: T201


def test_a_killed_proxy_comes_back_and_answers_nothing_in_between(house: House) -> None:
    listeners = psutil.net_connections("tcp")
    port = house.settings.gateway_port
    [pid] = {
        one.pid
        for one in listeners
        if one.status == psutil.CONN_LISTEN and one.laddr[1] == port and one.pid
    }
    proxy = psutil.Process(pid)
    proxy.kill()
    with suppress(psutil.NoSuchProcess):
        proxy.wait(10)

    def drawn() -> Any:
        with suppress(openai.APIConnectionError):
            return house.draw()

    wait_for("proxy", drawn)


def test_a_stream_that_is_cut_ends_with_an_error(house: House) -> None:
    pid = house.replica(
        "bases"
    )  # before the stream: it is asked of Ray's dashboard, and rows go on
    stream = house.client.images.generate(
        model=NAME,
        prompt=PROMPT,
        n=10,
        stream=True,
        partial_images=3,
        extra_body={"steps": 200},
    )

    def watch_and_kill() -> None:
        for event in stream:
            if event.type.endswith("partial_image"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(openai.APIError, match="lost while drawing"):
        watch_and_kill()
    assert house.draw().data


def test_a_stranger_finds_no_open_door_of_the_running_stack(house: House) -> None:
    assert house.replica("bases")
    gateway = house.url.removesuffix("/v1")
    with httpx.Client(trust_env=False, timeout=30) as client:
        addresses = doors.listeners()
        assert len(addresses) > 15
        assert set(addresses.values()) <= doors.LOOPBACK
        answering = {
            port
            for port in addresses
            for path in ("/", "/metrics")
            if doors.knock(client, "GET", f"http://127.0.0.1:{port}{path}") not in doors.CLOSED
        }
        assert answering == {house.settings.dashboard_port}  # the page that asks for the token
        said = [doors.called(port) for port in addresses]
        assert {code for one in said for code in one.values()} <= doors.NOT_CALLED
        assert all(any(one[call] == "UNAUTHENTICATED" for one in said) for call in doors.CALLS)
        assert doors.open_doors(client, {gateway: doors.gateway_routes(client, house.key)}) == []
        for path in ("/healthz", "/readyz"):
            assert doors.knock(client, "GET", gateway + path, {"Host": "evil.com"}) == 200


def test_a_promotion_leaves_another_team_s_application_as_it_was(
    house: House, neighbour: Neighbour
) -> None:
    pids = neighbour.pids()
    house.promote(2)
    assert (
        neighbour.applications()[neighbour.config["name"]]["deployed_app_config"]
        == neighbour.config
    )
    assert neighbour.pids() == pids
    url = f"{serving.address(house.settings)}/neighbour"
    assert httpx.get(url, trust_env=False).text == "good morning"
    assert house.draw().data


def test_a_version_that_cannot_be_loaded_fails_the_deploy_and_not_the_service(
    house: House,
) -> None:
    lost = {"name": f"{NAME}.base", "number": 99, "digest": "f" * 64, "family": "ddpm"}
    with pytest.raises(serving.ServingError, match=f"{NAME}.base:99 cannot be loaded"):
        serving.deploy(house.settings, [*house.stages[3], lost])
    assert house.draw().data
    state = serving.status(house.settings)
    assert state is not None
    assert state["status"] == "RUNNING"


def test_taking_our_application_down_leaves_another_team_s_running(
    house: House, neighbour: Neighbour
) -> None:
    pids = neighbour.pids()
    assert serving.stop(house.settings)
    assert list(neighbour.applications()) == [neighbour.config["name"]]
    assert neighbour.pids() == pids
    assert not serving.stop(house.settings)
