"""A GPT with random weights, what it is asked and what is read of a stream."""

import json
from dataclasses import replace
from typing import Any

import httpx
import torch

from models.language.gpt import GPT
from models.parts.tokens import of_signs

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SIGNS = "abcdefgh .é😀"


def gpt(learns: Any = "documents", seed: int = 0, document: str = of_signs(SIGNS)) -> GPT:
    torch.manual_seed(seed)
    config = replace(GPT.presets["tiny"], tokenizer=document, learns=learns)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def wrote(**changes: Any) -> dict[str, Any]:
    return {"model": "writer", "prompt": "abc", "seed": 3, "max_tokens": 12, **changes}


def said(**changes: Any) -> dict[str, Any]:
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "bad cafe"}]
    return {"model": "talker", "messages": turns, "seed": 3, "max_tokens": 10, **changes}


def events(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
