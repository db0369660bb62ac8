"""Completions, chat turns and their streams from a GPT with random weights."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import tokenizing
from infra.pipelines import Pin
from infra.receipts import provenance, receipts
from infra.receipts.signing import Signing
from models.language.gpt import GPT
from models.parts.tokens import CONTROL, tokenizer
from models.request import Request
from services.api.text_requests import ChatOrder, CompletionOrder
from services.pipelines.payload import GenerationSpec, Piece, StageTask, Text
from services.stages.batch_invariance import agreeing
from services.stages.deployment import BATCHES
from services.stages.engine import Engine
from services.stages.scheduler import Failed, Finished, Wrote
from tests.services.text_kit import CHAT, COMPLETIONS, SIGNS, events, gpt, said, wrote

Ask = Callable[..., httpx.Response]
WORDS = tokenizing.train(["a red square is on the left ."], "words", 40)


@pytest.fixture(scope="module")
def served(workshop: Any) -> Iterator[Any]:
    workshop.publish_alone("writer", gpt(), max_tokens=12, temperature=0.9)
    workshop.publish_alone("talker", gpt("dialogues"))
    workshop.publish_alone("wordsmith", gpt(document=WORDS))
    broken = gpt()
    with torch.no_grad():
        broken.norm.weight[0] = torch.nan
    workshop.publish_alone("broken-writer", broken)
    stage = workshop.stage()
    yield workshop.gateway(stage)
    stage.close()


def error(answer: httpx.Response) -> tuple[int, Any, Any]:
    body = answer.json()["error"]
    return answer.status_code, body["code"], body["param"]


def test_a_completion_is_what_the_family_writes(served: Any, ask: Ask) -> None:
    answer = ask(served, "POST", COMPLETIONS, json=wrote(n=2)).json()
    assert answer["object"] == "text_completion"
    request = Request(seeds=(3, 4), prompts=("abc",) * 2, max_tokens=12, temperature=0.9)
    model = gpt()
    expected = [model.text_of(row) for row in model.sample(request)]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert answer["usage"]["prompt_tokens"] == 3
    tokens = answer["usage"]["completion_tokens"]
    assert answer["usage"]["total_tokens"] == 3 + tokens
    for choice, words in zip(answer["choices"], expected, strict=True):
        assert choice["finish_reason"] == ("length" if len(words) == 12 else "stop")
        receipt = receipts.Receipt.model_validate_json(json.dumps(choice["receipt"]))
        assert (receipt.version, receipt.seed) == ("writer:1", 3 + choice["index"])
        assert receipt.text_sha256 == hashlib.sha256(words.encode()).hexdigest()


def test_prompt_and_completion_of_a_model_of_words_are_the_text(served: Any, ask: Ask) -> None:
    body = wrote(model="wordsmith", prompt="a red", n=4)
    texts = [one["text"] for one in ask(served, "POST", COMPLETIONS, json=body).json()["choices"]]
    request = Request(seeds=(3, 4, 5, 6), prompts=("a red",) * 4, max_tokens=12)
    words = tokenizer(WORDS)
    for text, row in zip(texts, gpt(document=WORDS).sample(request).tolist(), strict=True):
        assert "a red" + text == words.decode([*words.encode("a red"), *row])
    assert any(text.startswith(" square") or text.startswith(" the") for text in texts), texts
    streamed = [""] * 4
    for chunk in events(ask(served, "POST", COMPLETIONS, json={**body, "stream": True})):
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == texts


def test_an_answer_kept_as_a_file_has_a_signed_receipt_and_an_altered_one_none(
    workshop: Any, served: Any, ask: Ask, tmp_path: Any
) -> None:
    signing = Signing(workshop.folder / "exchange")
    for path, asked in ((CHAT, said(stop=["z"])), (COMPLETIONS, wrote())):
        document = ask(served, "POST", path, json=asked).json()
        kept = json.dumps(document, indent=1, sort_keys=True).encode()
        assert all(one.passed for one in provenance.check(kept, signing)[1]), path
    answer = ask(served, "POST", COMPLETIONS, json=wrote())
    (tmp_path / "answer.json").write_bytes(answer.content)
    assert receipts.read(tmp_path / "answer.json").prompt == "abc"
    altered = answer.json()
    altered["choices"][0]["text"] += "!"
    with pytest.raises(receipts.ReceiptError, match="not the one that its receipt names"):
        receipts.read(json.dumps(altered).encode())


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**53 - 9),
    prompt=st.text(alphabet=SIGNS, max_size=12),
    n=st.integers(1, 3),
    stop=st.lists(st.text(alphabet=SIGNS, min_size=1, max_size=2), max_size=4),
    echo=st.booleans(),
)
def test_a_stream_put_together_is_the_whole_text(
    served: Any, ask: Ask, seed: int, prompt: str, n: int, stop: list[str], echo: bool
) -> None:
    body = wrote(seed=seed, prompt=prompt, n=n, stop=stop, echo=echo)
    whole = ask(served, "POST", COMPLETIONS, json=body).json()["choices"]
    texts, ends = [""] * n, [None] * n
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage = events(ask(served, "POST", COMPLETIONS, json={**body, **options}))
    assert (usage["choices"], usage["usage"]["prompt_tokens"]) == ([], len(prompt))
    for chunk in chunks:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        ends[choice["index"]] = choice["finish_reason"]
    assert texts == [choice["text"] for choice in whole]
    assert ends == [choice["finish_reason"] for choice in whole]
    for text in texts:
        assert not any(sign in text.removeprefix(prompt if echo else "") for sign in stop)


def test_a_list_of_prompts_answers_each_as_if_alone(served: Any, ask: Ask) -> None:
    both = ask(served, "POST", COMPLETIONS, json=wrote(prompt=["abc", "d"], n=2)).json()
    alone = ask(served, "POST", COMPLETIONS, json=wrote(prompt="d", n=2)).json()
    texts = [choice["text"] for choice in both["choices"]]
    assert texts[2:] == [choice["text"] for choice in alone["choices"]]
    assert both["usage"]["prompt_tokens"] == 4


def test_a_chat_turn_begins_with_its_role_and_ends_with_its_reason(served: Any, ask: Ask) -> None:
    whole = ask(served, "POST", CHAT, json=said()).json()
    [choice] = whole["choices"]
    assert (whole["object"], choice["message"]["role"]) == ("chat.completion", "assistant")
    assert choice["receipt"]["messages"] == [["system", "a"], ["user", "bad cafe"]]
    chunks = events(ask(served, "POST", CHAT, json=said(stream=True)))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all("role" not in delta for delta in deltas[1:])
    assert "".join(delta.get("content", "") for delta in deltas) == choice["message"]["content"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [choice["finish_reason"]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_temperature_zero_makes_seeds_alike(served: Any, ask: Ask) -> None:
    answer = ask(served, "POST", COMPLETIONS, json=wrote(n=3, temperature=0)).json()
    assert len({choice["text"] for choice in answer["choices"]}) == 1


SHOWN = {"role": "user", "content": [{"type": "image_url"}]}
CALLED = {"role": "assistant", "tool_calls": [{"id": "a"}]}


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (COMPLETIONS, wrote(prompt=[1, 2]), (400, "invalid_value", "prompt")),
        (COMPLETIONS, wrote(prompt=[10, 100_257]), (400, "invalid_value", "prompt")),
        (COMPLETIONS, wrote(prompt=[True]), (400, "invalid_value", "prompt")),
        (COMPLETIONS, wrote(prompt=["a", [10]]), (400, "invalid_value", "prompt")),
        (COMPLETIONS, wrote(prompt=[[]]), (400, "invalid_value", "prompt")),
        (COMPLETIONS, wrote(prompt="a" * 40), (400, "invalid_value", "prompt")),
        (COMPLETIONS, wrote(n=129), (400, "integer_above_max_value", "n")),
        (COMPLETIONS, wrote(prompt=["a"] * 32, n=5), (400, "invalid_value", "n")),
        (COMPLETIONS, wrote(stop=["a"] * 5), (400, "invalid_value", "stop")),
        (COMPLETIONS, wrote(stop=""), (400, "invalid_value", "stop")),
        (COMPLETIONS, wrote(logprobs=21), (400, "integer_above_max_value", "logprobs")),
        (COMPLETIONS, wrote(prompt="a" * 32, max_tokens=0), (400, "invalid_value", "prompt")),
        (COMPLETIONS, wrote(suffix="a"), (400, "unsupported_value", "suffix")),
        (COMPLETIONS, wrote(best_of=3), (400, "invalid_value", "best_of")),
        (COMPLETIONS, wrote(frequency_penalty=0.5), (400, "unsupported_value", "frequency_penalty")),
        (COMPLETIONS, wrote(temperature=2.5), (400, "integer_above_max_value", "temperature")),
        (COMPLETIONS, wrote(max_tokens=-1), (400, "integer_below_min_value", "max_tokens")),
        (COMPLETIONS, wrote(stream_options={}), (400, "invalid_value", "stream_options")),
        (COMPLETIONS, wrote(promt="a"), (400, "unknown_parameter", "promt")),
        (COMPLETIONS, {"model": "writer"}, (400, "missing_required_parameter", "prompt")),
        (COMPLETIONS, wrote(model="shapes"), (400, "unsupported_capability", "model")),
        (COMPLETIONS, wrote(model="broken-writer"), (500, "not_finite", None)),
        (CHAT, said(model="writer"), (400, "unsupported_capability", "model")),
        (CHAT, said(messages=[]), (400, "invalid_value", "messages")),
        (CHAT, said(messages=[{"content": "a"}]), (400, "missing_required_parameter", "messages.0.role")),
        (CHAT, said(messages=[SHOWN]), (400, "invalid_value", "messages.0.content")),
        (CHAT, said(messages=[CALLED]), (400, "unsupported_value", "messages.0.tool_calls")),
        (CHAT, said(messages=[{"role": "tool", "content": ""}]), (400, "invalid_value", "messages.0.role")),
        (CHAT, said(tools=[{"type": "function"}]), (400, "unsupported_value", "tools")),
        (CHAT, said(tool_choice="required"), (400, "unsupported_value", "tool_choice")),
        (CHAT, said(tool_choice=False), (400, "unsupported_value", "tool_choice")),
        (CHAT, said(response_format={"type": "json_object"}), (400, "unsupported_value", "response_format")),
        (CHAT, said(top_logprobs=2), (400, "invalid_value", "top_logprobs")),
        (CHAT, said(max_completion_tokens=4), (400, "invalid_value", "max_tokens")),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(served: Any, ask: Ask, path: str, body: Any, expected: Any) -> None:
    assert error(ask(served, "POST", path, json=body)) == expected


def test_harmless_fields_of_openais_are_taken(served: Any, ask: Ask) -> None:
    body = wrote(
        user="me", presence_penalty=0, logit_bias={}, best_of=1, logprobs=None, suffix=None
    )
    assert ask(served, "POST", COMPLETIONS, json=body).status_code == 200
    body = said(response_format={"type": "text"}, tools=[], store=False, metadata={"a": "b"})
    body.update(tool_choice="auto", reasoning_effort="low", verbosity="low", seed=-5, user="me")
    assert ask(served, "POST", CHAT, json=body).status_code == 200
    optional = ChatOrder.model_fields.keys() - {"model", "messages"}
    nulls = said(**dict.fromkeys(optional))
    assert ask(served, "POST", CHAT, json=nulls).status_code == 200
    optional = CompletionOrder.model_fields.keys() - {"model", "prompt"}
    nulls = wrote(**dict.fromkeys(optional), prompt=None)
    assert ask(served, "POST", COMPLETIONS, json=nulls).status_code == 200


def test_a_dialogue_may_have_any_turns_and_its_last_is_gone_on_with(served: Any, ask: Ask) -> None:
    user, developer = {"role": "user", "content": "bad"}, {"role": "developer", "content": "a"}
    system = {"role": "system", "content": "a"}
    answers = [
        ask(served, "POST", CHAT, json=said(messages=messages)).json()["choices"][0]["message"]
        for messages in ([developer, user], [system, user], [system, {**user, "name": "me"}])
    ]
    assert answers[0] == answers[1] == answers[2]
    asked = [system, user, {"role": "assistant", "content": answers[0]["content"][:4]}]
    more = ask(served, "POST", CHAT, json=said(messages=asked, max_tokens=6)).json()["choices"][0]
    assert asked[2]["content"] + more["message"]["content"] == answers[0]["content"]
    called = {"role": "assistant", "content": None, "tool_calls": [], "refusal": None}
    for odd in ([system], [user, user], [called, user], [user, called]):
        assert ask(served, "POST", CHAT, json=said(messages=odd)).status_code == 200


def test_what_is_not_there_is_named_in_a_sentence(served: Any, ask: Ask) -> None:
    asked = said(tools=[{"type": "function", "function": {"name": "f"}}])
    told = ask(served, "POST", CHAT, json=asked).json()["error"]
    assert told["message"] == "tools: there are no tools here; leave it out"
    asked = said(response_format={"type": "json_schema", "json_schema": {"name": "a"}})
    told = ask(served, "POST", CHAT, json=asked).json()["error"]["message"]
    assert told.startswith("response_format: there are no formats but text (no json_schema,")


def test_tokens_are_a_prompt_as_their_text_is(served: Any, ask: Ask) -> None:
    ids = tokenizer(gpt().config.tokenizer).encode("abc")
    by_text = ask(served, "POST", COMPLETIONS, json=wrote(echo=True)).json()
    for prompt in (ids, [ids]):
        answer = ask(served, "POST", COMPLETIONS, json=wrote(prompt=prompt, echo=True)).json()
        assert answer["choices"][0]["text"] == by_text["choices"][0]["text"]
        assert answer["usage"] == by_text["usage"]
        assert answer["choices"][0]["receipt"]["prompt_tokens"] == ids
        assert answer["choices"][0]["receipt"]["echo"] is True, "a replay asks for it, too"
    both = ask(served, "POST", COMPLETIONS, json=wrote(prompt=[ids, ids[:2]], n=2)).json()
    assert [choice["seed"] for choice in both["choices"]] == [3, 4, 3, 4]
    told = ask(served, "POST", COMPLETIONS, json=wrote(prompt=[ids[0], 100_257])).json()["error"]
    assert "token 100257 is none of this model's" in told["message"]
    assert tokenizer(gpt().config.tokenizer).sha256[:16] in told["message"]


def test_n_goes_to_the_specs_bound(served: Any, ask: Ask) -> None:
    answer = ask(served, "POST", COMPLETIONS, json=wrote(n=128, max_tokens=1)).json()
    assert len(answer["choices"]) == 128


def test_a_refusal_says_what_the_model_can_do(served: Any, ask: Ask) -> None:
    told = ask(served, "POST", CHAT, json=said(model="shapes")).json()["error"]["message"]
    assert told.startswith("shapes gives no chat at /v1/chat/completions; it gives pictures at")
    card = ask(served, "GET", "/v1/models/writer").json()
    assert card["capabilities"] == ["completions", "samples", "scores"]
    assert (card["modality"], card["max_tokens"], card["temperature"]) == ("text", 12, 0.9)
    words = tokenizer(gpt().config.tokenizer)
    assert card["tokenizer"] == {"kind": "WordLevel", "tokens": words.size, "sha256": words.sha256}


class Inbox:
    """What an engine delivered, and when it was all there."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.found = loop, asyncio.Queue[Any]()

    def put(self, result: Any) -> None:
        self.loop.call_soon_threadsafe(self.found.put_nowait, result)

    async def texts(self, count: int) -> list[Text]:
        made: dict[int, Text] = {}
        while len(made) < count:
            result = await self.found.get()
            assert not isinstance(result, Failed), result
            if isinstance(result, Finished):
                assert isinstance(result.made, Text)
                made[result.row] = result.made
        return [made[row] for row in range(count)]


REQUESTS = st.lists(
    st.tuples(st.integers(0, 2**53), st.text(alphabet=SIGNS, max_size=20), st.integers(1, 12)),
    min_size=2,
    max_size=12,
)


@settings(max_examples=8, deadline=None)
@given(asked=REQUESTS)
def test_a_row_of_text_is_the_same_alone_and_in_a_crowd(asked: list[tuple[int, str, int]]) -> None:
    model = gpt()
    sizes = agreeing(model, BATCHES)
    requests = [Request(seeds=(s,), prompts=(p,), max_tokens=m) for s, p, m in asked]

    async def run(together: bool) -> list[Text]:
        engine, loop, found = Engine(), asyncio.get_running_loop(), []
        inboxes = [Inbox(loop) for _ in requests]
        for request, inbox in zip(requests, inboxes, strict=True):
            engine.submit(model, request, inbox.put, buckets=sizes)
            if not together:
                found += await inbox.texts(1)
        if together:
            found = [text for inbox in inboxes for text in await inbox.texts(1)]
        engine.close()
        return found

    assert asyncio.run(run(True)) == asyncio.run(run(False))


def test_a_row_that_hit_a_stop_string_leaves_the_batch_and_the_others_go_on() -> None:
    steps: list[int] = []

    class Counted(GPT):
        def step(self, rows: Any) -> Any:
            steps.append(len(rows["token"]))
            return super().step(rows)

    model = Counted(gpt().config)
    model.load_state_dict(gpt().state_dict())
    request = Request(seeds=tuple(range(8)), prompts=("a",) * 8, max_tokens=30)

    async def run(stops: tuple[str, ...]) -> list[Text]:
        engine, inbox = Engine(), Inbox(asyncio.get_running_loop())
        engine.submit(model.eval(), request, inbox.put, stops=stops, buckets=(1, 2, 4, 8))
        found = await inbox.texts(8)
        engine.close()
        return found

    free = asyncio.run(run(()))
    without = sum(steps)
    steps.clear()
    stopped = asyncio.run(run((free[0].text[3], free[1].text[2])))
    assert stopped[0].reason == "stop"
    assert free[0].text.startswith(stopped[0].text)
    assert sum(steps) < without


def test_pieces_come_as_the_text_is_written() -> None:
    model = gpt()

    async def run() -> list[Any]:
        engine, inbox = Engine(), Inbox(asyncio.get_running_loop())
        request = Request(seeds=(1,), prompts=("a",), max_tokens=6, temperature=1.0)
        engine.submit(model, request, inbox.put, pieces=True, buckets=(1,))
        found = []
        while not found or not isinstance(found[-1], Finished):
            found.append(await inbox.found.get())
        engine.close()
        return found

    *pieces, end = asyncio.run(run())
    assert all(isinstance(piece, Wrote) for piece in pieces)
    assert [len(piece.text) for piece in pieces] == [1] * end.made.tokens
    assert "".join(piece.text for piece in pieces) == end.made.text


def test_a_client_that_leaves_frees_its_rows(workshop: Any, served: Any) -> None:
    stage = workshop.stage()
    app = workshop.gateway(stage)

    async def leave() -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            body = wrote(n=16, max_tokens=29)
            tasks = [asyncio.create_task(client.post(COMPLETIONS, json=body)) for _ in range(4)]
            while (await stage.status())["waiting"] == 0:
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return int((await stage.status())["waiting"])

    assert asyncio.run(leave()) == 0
    stage.close()


def test_a_stream_that_nobody_reads_on_leaves_the_batch(workshop: Any, served: Any) -> None:
    stage = workshop.stage()
    pinned = workshop.publish_alone("left", gpt())["stages"][0]
    pin = Pin(name=pinned["name"], number=pinned["version"], digest=pinned["sha256"])
    work = StageTask(
        pin=pin,
        spec=GenerationSpec(
            seeds=tuple(range(16)), prompts=("a",) * 16, options={"max_tokens": 29}
        ),
        pieces=True,
    )

    async def read_one() -> None:
        events = stage.watch(work)
        assert isinstance(await anext(events), Piece)
        await events.aclose()
        assert (await stage.status())["drawing"] == 0

    asyncio.run(read_one())
    stage.close()


def test_control_tokens_are_never_text() -> None:
    model = gpt()
    assert model.text_of(torch.arange(len(CONTROL))) == ""
