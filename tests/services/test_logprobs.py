"""How likely what was written is: the model's own distribution, whole and streamed, in chats and completions."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.language.bert import BERT
from models.parts.tokens import ASSISTANT, BOS, EOS, SYSTEM, USER, tokenizer
from services.pipelines.payload import Told
from services.stages.text_stream import Writing
from tests.services.text_kit import CHAT, COMPLETIONS, SIGNS, events, gpt, said, wrote

Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def served(workshop: Any) -> Iterator[Any]:
    workshop.publish_alone("writer", gpt(), max_tokens=12, temperature=0.9)
    workshop.publish_alone("talker", gpt("dialogues"))
    torch.manual_seed(0)
    workshop.publish_alone("filler", BERT(BERT.presets["tiny"]).eval())
    stage = workshop.stage()
    yield workshop.gateway(stage)
    stage.close()


def nats_of(model: Any, before: list[int], text: str) -> tuple[list[int], torch.Tensor]:
    """The tokens of a written text and log p of every token in each one's place, (T, V)."""
    written = tokenizer(model.config.tokenizer).encode(text)
    with torch.no_grad():
        nats_TV = model.logits(torch.tensor([[*before, *written]]))[0].log_softmax(1)
    return written, nats_TV[len(before) - 1 : -1]


def test_a_completions_logprobs_are_those_of_the_network(served: Any, ask: Ask) -> None:
    answer = ask(served, "POST", COMPLETIONS, json=wrote(logprobs=3, temperature=0.3)).json()
    [choice] = answer["choices"]
    model = gpt()
    read = [EOS, *tokenizer(model.config.tokenizer).encode("abc")]
    written, nats_TV = nats_of(model, read, choice["text"])
    found = choice["logprobs"]
    assert choice["finish_reason"] == "length"
    assert found["tokens"] == list(choice["text"])
    assert found["text_offset"] == list(range(len(choice["text"])))
    expected = nats_TV.gather(1, torch.tensor(written)[:, None])[:, 0].tolist()
    assert found["token_logprobs"] == pytest.approx(expected, abs=1e-4)
    for place, tops in enumerate(found["top_logprobs"]):
        best = nats_TV[place].topk(3)
        spelled = {_spelled(model, token) for token in best.indices.tolist()}
        assert tops.keys() == spelled | {found["tokens"][place]}
        assert max(tops.values()) == pytest.approx(float(best.values[0]), abs=1e-4)


def _spelled(model: Any, token: int) -> str:
    words = tokenizer(model.config.tokenizer)
    return words.decode([token]) or words.spelled(token)


def test_logprobs_of_0_are_of_the_text_alone(served: Any, ask: Ask) -> None:
    [choice] = ask(served, "POST", COMPLETIONS, json=wrote(logprobs=0)).json()["choices"]
    found = choice["logprobs"]
    written = [one for one in found["tokens"] if one != "<eos>"]  # how it ended
    assert "".join(written) == choice["text"]
    pairs = zip(found["tokens"], found["token_logprobs"], strict=True)
    assert found["top_logprobs"] == [{token: nats} for token, nats in pairs]


WHOLE = {"echo": True, "max_tokens": 0, "logprobs": 2}


def test_an_echoed_prompt_is_as_likely_as_the_model_has_it(served: Any, ask: Ask) -> None:
    model, text = gpt(), "abc. bad 😀"
    tokens = tokenizer(model.config.tokenizer).encode(text)
    told = []
    for prompt in (text, tokens, [EOS, *tokens]):
        answer = ask(served, "POST", COMPLETIONS, json=wrote(prompt=prompt, **WHOLE)).json()
        [choice] = answer["choices"]
        assert (choice["text"], choice["finish_reason"]) == (text, "length")
        assert [*answer["usage"].values()] == [len(tokens), 0, len(tokens)]
        told.append(choice["logprobs"])
    by_text, by_tokens, begun = told
    assert by_text == by_tokens
    assert (by_text["token_logprobs"][0], by_text["top_logprobs"][0]) == (None, None)
    assert begun["tokens"] == ["<eos>", *by_text["tokens"]] == ["<eos>", *text]
    assert begun["text_offset"] == [0, *by_text["text_offset"]] == [0, *range(len(tokens))]
    assert begun["token_logprobs"][2:] == by_text["token_logprobs"][1:]
    whole = model.log_prob({"tokens": torch.tensor([[EOS, *tokens]])})
    assert sum(begun["token_logprobs"][1:]) == pytest.approx(float(whole), abs=1e-3)
    _, nats_TV = nats_of(model, [EOS], text)
    for place, tops in enumerate(begun["top_logprobs"][1:]):
        best = nats_TV[place].topk(2)
        spelled = {_spelled(model, token) for token in best.indices.tolist()}
        assert tops.keys() == spelled | {text[place]}
        assert max(tops.values()) == pytest.approx(float(best.values[0]), abs=1e-4)


def test_an_evaluation_harness_finds_one_entry_a_token_and_one_for_what_comes_after(
    served: Any, ask: Ask
) -> None:
    """It asks for one token after the prompt and leaves the last entry out, so an end must be one, too."""
    asked = {"echo": True, "max_tokens": 1, "logprobs": 1, "temperature": 1}
    prompts = [[a, b] for a in range(10, 20) for b in range(10, 20)]
    answer = ask(served, "POST", COMPLETIONS, json=wrote(prompt=prompts, **asked)).json()
    reasons = {choice["finish_reason"] for choice in answer["choices"]}
    assert reasons == {"stop", "length"}, "some documents end here and others go on"
    model = gpt()
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        found = choice["logprobs"]
        assert [len(column) for column in found.values()] == [3] * 4
        assert (found["tokens"][2] == "<eos>") == (choice["finish_reason"] == "stop")
        with torch.no_grad():
            nats_TV = model.logits(torch.tensor([[EOS, *prompt]]))[0].log_softmax(1)
        assert found["token_logprobs"][1] == pytest.approx(float(nats_TV[1, prompt[1]]), abs=1e-4)
        greedy = found["token_logprobs"][1] == max(found["top_logprobs"][1].values())
        assert greedy == (int(nats_TV[1].argmax()) == prompt[1])


def test_a_text_that_ended_by_itself_is_as_likely_as_its_score(served: Any, ask: Ask) -> None:
    body = wrote(prompt=[EOS], n=16, echo=True, logprobs=0, max_tokens=24)
    choices = ask(served, "POST", COMPLETIONS, json=body).json()["choices"]
    ended = [one for one in choices if one["finish_reason"] == "stop" and one["text"]]
    assert ended
    for choice in ended:
        found = choice["logprobs"]
        assert (found["tokens"][0], found["tokens"][-1]) == ("<eos>", "<eos>")
        score = {"model": "writer", "input": choice["text"]}
        [told] = ask(served, "POST", "/v1/scores", json=score).json()["data"]
        assert sum(found["token_logprobs"][1:]) == pytest.approx(told["nats"], abs=1e-3)


def test_a_score_says_what_of_a_dialogue_it_is_not_of(served: Any, ask: Ask) -> None:
    turns = [{"role": role, "content": "abc"} for role in ("user", "assistant") * 6]
    for count, warned in ((2, None), (12, True)):
        score = {"model": "talker", "input": {"messages": turns[:count]}}
        [told] = ask(served, "POST", "/v1/scores", json=score).json()["data"]
        assert ("warnings" in told) == bool(warned)
    assert told["warnings"] == [
        "1 of 1 dialogues lose their oldest exchanges: they have more than 33 tokens (context + 1)"
    ]


@pytest.mark.parametrize("changes", [{"echo": True, "logprobs": 0}, {"max_tokens": 0}])
def test_a_prompt_that_is_no_beginning_has_no_likelihood(
    served: Any, ask: Ask, changes: Any
) -> None:
    body = {"model": "talker", "prompt": "abc", **changes}
    answer = ask(served, "POST", COMPLETIONS, json=body)
    told = answer.json()["error"]
    assert (answer.status_code, told["param"]) == (400, [*changes][-1])
    assert "does not go on from its prompt" in told["message"]


def test_a_chat_turns_logprobs_are_those_of_the_network(served: Any, ask: Ask) -> None:
    asked = said(logprobs=True, top_logprobs=2)
    [choice] = ask(served, "POST", CHAT, json=asked).json()["choices"]
    model = gpt("dialogues")
    words = tokenizer(model.config.tokenizer)
    turns = [SYSTEM, *words.encode("a"), USER, *words.encode("bad cafe")]
    written, nats_TV = nats_of(model, [BOS, *turns, ASSISTANT], choice["message"]["content"])
    content = choice["logprobs"]["content"]
    expected = nats_TV.gather(1, torch.tensor(written)[:, None])[:, 0].tolist()
    assert [one["logprob"] for one in content] == pytest.approx(expected, abs=1e-4)
    text = b"".join(bytes(one["bytes"]) for one in content).decode()
    assert text == choice["message"]["content"] == "".join(one["token"] for one in content)
    assert [len(one["top_logprobs"]) for one in content] == [2] * len(content)
    plain = ask(served, "POST", CHAT, json=said(logprobs=True)).json()["choices"][0]
    assert plain["logprobs"]["content"][0]["top_logprobs"] == []
    assert ask(served, "POST", CHAT, json=said()).json()["choices"][0]["logprobs"] is None


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    stop=st.lists(st.text(alphabet=SIGNS, min_size=1, max_size=2), max_size=3),
    chats=st.booleans(),
    echo=st.booleans(),
    prompt=st.sampled_from(["abc", "", [10, 18, 11], [EOS], [EOS, 12]]),
)
def test_streamed_logprobs_put_together_are_the_whole_ones(
    served: Any, ask: Ask, seed: int, stop: list[str], chats: bool, echo: bool, prompt: Any
) -> None:
    path, kind = (CHAT, said) if chats else (COMPLETIONS, wrote)
    likely = {"logprobs": True, "top_logprobs": 2} if chats else {"logprobs": 2}
    body = kind(seed=seed, stop=stop, n=2, **likely)
    body |= {} if chats else {"echo": echo, "prompt": prompt}
    whole = ask(served, "POST", path, json=body).json()["choices"]
    parts: list[list[Any]] = [[], []]
    for chunk in events(ask(served, "POST", path, json={**body, "stream": True})):
        [choice] = chunk["choices"]
        if choice["logprobs"] is not None:
            parts[choice["index"]].append(choice["logprobs"])
    for choice, found in zip(whole, parts, strict=True):
        for name, values in choice["logprobs"].items():
            if values is not None:
                assert [one for part in found for one in part[name]] == values
        tokens = choice["logprobs"]["content" if chats else "tokens"]
        texts = [one["token"] if chats else one for one in tokens]
        text = choice["message"]["content"] if chats else choice["text"]
        assert "".join(one for one in texts if one != "<eos>") == text


def test_a_model_that_fills_in_blanks_says_why_it_tells_none(served: Any, ask: Ask) -> None:
    body = {"model": "filler", "prompt": "a [MASK]", "logprobs": 1}
    told = ask(served, "POST", COMPLETIONS, json=body).json()["error"]
    assert told["param"] == "logprobs"
    assert "does not write token by token" in told["message"]


PIECES = st.lists(st.sampled_from(["a", "ab", "", "\ufffd", "é", "b c"]), min_size=1, max_size=8)


@given(pieces=PIECES, stops=st.lists(st.text("abc ", min_size=1, max_size=3), max_size=2))
def test_told_tokens_are_the_text_whatever_is_held_back_or_cut_off(
    pieces: list[str], stops: list[str]
) -> None:
    writing, text, shown, told = Writing(stops), "", "", []
    for place, piece in enumerate(pieces):
        text = text.rstrip("\ufffd") + piece
        last = place == len(pieces) - 1
        writing.tell(text, Told("", float(place)))
        shown += writing.grow(text, last=last)
        told += writing.told(last=last or writing.stopped)
        assert shown.startswith("".join(one.text for one in told))
        if writing.stopped:
            break
    assert "".join(one.text for one in told) == shown == writing.text
    assert [one.nats for one in told] == [float(place) for place in range(len(told))]
