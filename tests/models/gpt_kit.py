"""Small GPTs, records to learn from, and a bare training loop."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from models.language.gpt import GPT
from models.parts.tokens import of_signs
from models.request import Record

SIGNS = "abcdefgh <>user?"


def gpt(seed: int = 0, scale: float = 6, **change: Any) -> GPT:
    """A GPT whose weights are large enough that every token matters to those after it."""
    torch.manual_seed(seed)
    model = GPT(dataclasses.replace(GPT.presets["tiny"], tokenizer=of_signs(SIGNS), **change))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1 if "norm" in name else scale)
    return model.eval()


def document(text: str) -> Record:
    return (("text", text),)


def dialogue(*texts: str, system: str | None = None) -> Record:
    """User and assistant in turn."""
    turns = [(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)]
    return (*((("system", system),) if system is not None else ()), *turns)


def fitted(model: GPT, records: Sequence[Record], steps: int, rate: float = 3e-3) -> float:
    """Train on all examples at once; returns the last loss."""
    model.train()
    batch = model.examples(records)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0, fused=True)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(batch).total
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    return loss.item()
