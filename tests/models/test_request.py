"""What a request refuses before any model sees it."""

import itertools

import pytest
import torch

from models.request import Request


def test_a_row_is_asked_for_once_and_every_input_has_a_row_a_seed() -> None:
    """Of two texts one would not be read, and an input without rows would fail in the midst of a step."""
    texts = {"prompts": ("a",), "prompt_tokens": ((11,),), "dialogues": ((("user", "a"),),)}
    for one, other in itertools.combinations(texts, 2):
        with pytest.raises(ValueError, match=f"^a row is asked for once, got {one} and {other}"):
            Request(seeds=(1,), **{one: texts[one], other: texts[other]})
    with pytest.raises(ValueError, match=r"^1 seeds but 0 low: give one a seed"):
        Request(seeds=(1,), given={"low": torch.zeros(0, 3, 4, 4)})
