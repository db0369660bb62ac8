"""One client's calls against a gateway: `python client_calls.py CLIENT URL`, in an environment of the client's own.

Prints a JSON line a call: it works, is refused with a sentence (400), or fails. Imports nothing of ours.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

KEY = os.environ["OPENAI_API_KEY"]
TALK = [{"role": "system", "content": "a"}, {"role": "user", "content": "bad cafe"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
Calls = dict[str, Callable[[], Any]]


def spoken(client: Any) -> bytes:
    """A sound, taken as it comes."""
    with client.audio.speech.with_streaming_response.create(
        model="voice", input="high", voice="alloy", response_format="wav"
    ) as answer:
        return b"".join(answer.iter_bytes())


def video_calls(client: Any) -> Calls:
    """A clip, from the request to its end, by the official client."""
    made: list[str] = []

    def awaited() -> str:
        video = client.videos.create_and_poll(model="moving", prompt="a red circle")
        made.append(video.id)
        assert video.status == "completed", video
        return video.status

    def deleted() -> str:
        client.videos.delete(made[-1])
        return made.pop()

    return {
        "videos.create_and_poll": awaited,
        "videos.retrieve": lambda: client.videos.retrieve(made[-1]).status,
        "videos.list": lambda: len(client.videos.list().data),
        "videos.download_content": lambda: len(client.videos.download_content(made[-1]).read()),
        "videos.remix": lambda: client.videos.remix(made[-1], prompt="a green circle").id,
        "videos.delete": deleted,
    }


def openai_calls(url: str) -> Calls:
    """The official client: sync, async, raw, streaming, and its helpers."""
    from openai import AsyncOpenAI, OpenAI
    from pydantic import BaseModel

    class Answer(BaseModel):
        text: str

    client = OpenAI(base_url=url, api_key=KEY, max_retries=0)
    chat, raw = client.chat.completions, client.with_raw_response
    turn: Any = {"model": "talker", "messages": TALK, "max_tokens": 8, "seed": 1}

    def pieces() -> str:
        chunks = list(chat.create(**turn, stream=True, stream_options={"include_usage": True}))
        assert chunks[-1].usage.total_tokens > 0
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)

    def events() -> str:
        with chat.stream(**turn) as stream:
            return [one.type for one in stream][-1]

    def pictures() -> list[str]:
        made = {"model": "shapes", "prompt": "a small red circle", "partial_images": 1}
        return [one.type for one in client.images.generate(**made, stream=True)]

    async def asked() -> str:
        async with AsyncOpenAI(base_url=url, api_key=KEY) as other:
            return (await other.chat.completions.create(**turn)).choices[0].message.content

    def file() -> str:
        entry = client.images.generate(model="digits", prompt="", response_format="b64_json")
        import base64

        upload = ("made.png", base64.b64decode(entry.data[0].b64_json))
        return client.content_provenance_checks.create(file=upload).results[0].outcome

    def rated() -> list[float]:
        asked: Any = {"model": "writer", "prompt": "abc", "max_tokens": 0}
        found = client.completions.create(**asked, echo=True, logprobs=1).choices[0]
        assert (found.text, found.logprobs.token_logprobs[0]) == ("abc", None)
        return found.logprobs.token_logprobs[1:]

    ids = {"model": "writer", "prompt": [10, 11, 12], "max_tokens": 4}
    return {
        "models.list": lambda: client.models.list().data[0].id,
        "models.retrieve": lambda: client.models.retrieve("talker").id,
        "chat.completions.create": lambda: chat.create(**turn).choices[0].finish_reason,
        "... async": lambda: asyncio.run(asked()),
        "... stream=True": pieces,
        "... with_raw_response": lambda: raw.chat.completions.create(**turn).request_id,
        "... logprobs": lambda: (
            chat.create(**turn, logprobs=True, top_logprobs=2)
            .choices[0]
            .logprobs.content[0]
            .logprob
        ),
        "... n=128": lambda: len(chat.create(**{**turn, "n": 128}).choices),
        "... tools=[], tool_choice=auto": lambda: (
            chat.create(**turn, tools=[], tool_choice="auto", reasoning_effort="low").id
        ),
        "... tools": lambda: chat.create(**turn, tools=[TOOL]),
        "chat.completions.stream": events,
        "chat.completions.parse": lambda: chat.parse(**turn, response_format=Answer),
        "completions.create": lambda: (
            client.completions.create(model="writer", prompt="abc", logprobs=0)
            .choices[0]
            .logprobs.tokens
        ),
        "... token ids": lambda: client.completions.create(**ids).usage.prompt_tokens,
        "... echo, logprobs, max_tokens=0": rated,
        "embeddings.create": lambda: len(
            client.embeddings.create(model="reader", input=["a", "b"]).data[0].embedding
        ),
        "... dimensions": lambda: client.embeddings.create(model="reader", input="a", dimensions=4),
        "images.generate": lambda: client.images.generate(model="digits", prompt="").data[0].seed,
        "images.generate(stream=True)": pictures,
        "audio.speech.create": lambda: len(
            client.audio.speech.create(model="voice", input="high", voice="alloy").content
        ),
        "... with_streaming_response": lambda: len(spoken(client)),
        "content_provenance_checks.create": file,
        **video_calls(client),
    }


def litellm_calls(url: str) -> Calls:
    """Litellm in this process."""
    import litellm

    at: Any = {"api_base": url, "api_key": KEY}
    turn: Any = {"model": "openai/talker", "messages": TALK, "max_tokens": 8, **at}

    def pieces() -> str:
        chunks = litellm.completion(**turn, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    return {
        "completion": lambda: litellm.completion(**turn).choices[0].message.content,
        "... stream=True": pieces,
        "... tools": lambda: litellm.completion(**turn, tools=[TOOL]),
        "acompletion": lambda: asyncio.run(litellm.acompletion(**turn)).id,
        "text_completion": lambda: (
            litellm.text_completion(
                model="text-completion-openai/writer", prompt="abc", max_tokens=4, **at
            )
            .choices[0]
            .text
        ),
        "embedding": lambda: len(litellm.embedding(model="openai/reader", input=["a"], **at).data),
        "image_generation": lambda: len(
            litellm.image_generation(model="openai/digits", prompt="", **at).data
        ),
        "speech": lambda: len(
            litellm.speech(model="openai/voice", input="high", voice="alloy", **at).content
        ),
    }


def proxy_calls(url: str) -> Calls:
    """An openai client of litellm's proxy, which asks the gateway."""
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key=KEY, max_retries=0)
    turn: Any = {"model": "talker", "messages": TALK, "max_tokens": 8}

    def pieces() -> str:
        chunks = client.chat.completions.create(**turn, stream=True)
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)

    return {
        "chat.completions.create": lambda: client.chat.completions.create(**turn).id,
        "... stream=True": pieces,
        "... tools": lambda: client.chat.completions.create(**turn, tools=[TOOL]),
        "embeddings.create": lambda: len(
            client.embeddings.create(model="reader", input=["a"]).data
        ),
        "images.generate": lambda: len(client.images.generate(model="digits", prompt="").data),
        "audio.speech.create": lambda: len(
            client.audio.speech.create(model="voice", input="high", voice="alloy").content
        ),
        "... with_streaming_response": lambda: len(spoken(client)),
        # of a clip that there is it asks api.openai.com, whatever the model's base
        "videos.create_and_poll": video_calls(client)["videos.create_and_poll"],
    }


def langchain_calls(url: str) -> Calls:
    """langchain-openai as it comes."""
    from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
    from pydantic import BaseModel

    class Answer(BaseModel):
        """What is said."""

        text: str

    at: Any = {"base_url": url, "api_key": KEY}
    chat = ChatOpenAI(model="talker", max_tokens=8, max_retries=0, **at)
    embeddings = OpenAIEmbeddings(model="reader", max_retries=0, **at)
    plain = OpenAIEmbeddings(model="reader", check_embedding_ctx_length=False, **at)
    return {
        "ChatOpenAI.invoke": lambda: chat.invoke("bad cafe").content,
        "ChatOpenAI.ainvoke": lambda: asyncio.run(chat.ainvoke("bad cafe")).content,
        "ChatOpenAI.stream": lambda: "".join(one.content for one in chat.stream("bad cafe")),
        "ChatOpenAI.bind(logprobs=True)": lambda: (
            chat.bind(logprobs=True)
            .invoke("bad")
            .response_metadata["logprobs"]["content"][0]["token"]
        ),
        "ChatOpenAI.bind_tools": lambda: chat.bind_tools([Answer]).invoke("bad"),
        "ChatOpenAI.with_structured_output": lambda: chat.with_structured_output(Answer).invoke(
            "bad"
        ),
        "OpenAI.invoke": lambda: OpenAI(model="writer", max_tokens=4, **at).invoke("abc"),
        "OpenAIEmbeddings.embed_documents": lambda: embeddings.embed_documents(["deadbeef"]),
        "... check_embedding_ctx_length=False": lambda: len(plain.embed_query("a")),
    }


def instructor_calls(url: str) -> Calls:
    """Instructor over the official client."""
    import instructor
    from openai import OpenAI
    from pydantic import BaseModel

    class Answer(BaseModel):
        text: str

    def create(mode: Any) -> Callable[[], Any]:
        client = instructor.from_openai(OpenAI(base_url=url, api_key=KEY, max_retries=0), mode=mode)
        return lambda: client.chat.completions.create(
            model="talker", messages=TALK, response_model=Answer, max_retries=0
        )

    return {
        "create, mode TOOLS": create(instructor.Mode.TOOLS),
        "create, mode JSON": create(instructor.Mode.JSON),
        "create, mode JSON_SCHEMA": create(instructor.Mode.JSON_SCHEMA),
    }


def lm_eval_calls(url: str) -> Calls:
    """lm-evaluation-harness, its model local-completions; the tokenizer is the model's own."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from openai import OpenAI

    at = {"base_url": f"{url}/completions", "tokenizer": os.environ["TOKENIZER"]}
    model = LocalCompletionsAPI(**at, model="writer", max_length=32, max_retries=1, batch_size=2)

    def asked(kind: Any, *arguments: Any) -> list[Any]:
        many = [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]
        return getattr(model, kind)(many, disable_tqdm=True)

    def rolling() -> float:
        text = "bad cafe."
        ids = [model.prefix_token_id, *model.tok_encode(text)]
        given: Any = {"model": "writer", "prompt": ids, "echo": True, "logprobs": 0}
        answer = OpenAI(base_url=url, api_key=KEY).completions.create(**given, max_tokens=0)
        [nats] = asked("loglikelihood_rolling", (text,))
        assert abs(nats - sum(answer.choices[0].logprobs.token_logprobs[1:])) < 1e-3
        return nats

    return {
        "loglikelihood": lambda: asked("loglikelihood", ("abc", " bad"), ("", "a"), ("b", "ed")),
        "loglikelihood_rolling": rolling,
        "generate_until": lambda: asked(
            "generate_until", ("abc", {"until": [" "], "max_gen_toks": 4})
        ),
    }


CLIENTS: dict[str, Callable[[str], Calls]] = {
    "openai": openai_calls,
    "litellm": litellm_calls,
    "litellm proxy": proxy_calls,
    "langchain-openai": langchain_calls,
    "instructor": instructor_calls,
    "lm-eval": lm_eval_calls,
}


def outcome(call: Callable[[], Any]) -> dict[str, str]:
    """Return what came of a call, and what was said."""
    with ThreadPoolExecutor(1) as pool:  # each client raises its own errors, and all count here
        done = pool.submit(call)
    error: Any = done.exception()
    if error is not None:
        says = f"{type(error).__name__}: {error}"
        refused = getattr(error, "status_code", None) == 400 or "Error code: 400" in says
        return {"outcome": "refused" if refused else "fails", "says": says}
    found = done.result()
    empty = found is None or (found == 0 and not isinstance(found, float))
    return {"outcome": "fails" if empty else "works", "says": repr(found)[:60]}


def main() -> None:
    client, url = sys.argv[1:]
    for name, call in CLIENTS[client](url).items():
        print(json.dumps({"client": client, "call": name, **outcome(call)}), flush=True)


if __name__ == "__main__":
    main()
