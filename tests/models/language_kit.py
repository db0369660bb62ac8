"""Small texts with something to learn, the tokenizer of their words, and a plain training loop."""

import itertools
import json
import random
from collections.abc import Mapping, Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from models.family import Record, Trainable
from models.parts.tokens import CONTROL


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SMALL = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
)
TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
NUMBER_WORDS = (*SMALL, *TENS, "hundred", "thousand", "and", *"0123456789")

NAMES = words("fay ann bob tim lea max ida joe kim sam")
VERBS = words("drew painted made saw")
SIZES = words("small large tiny huge")
COLOURS = words("red green blue yellow white black pink")
SHAPES = words("circle square triangle star cross ring heart")
PLACES = words("left right top bottom")
SCENE_WORDS = (
    *(*NAMES, *VERBS, *SIZES, *COLOURS, *SHAPES, *PLACES),
    *("a", "on", "the", ".", "is", "and", "says"),
)


def of_words(words: Sequence[str]) -> str:
    """Return the document of a tokenizer whose tokens are these words, and each digit alone."""
    vocabulary = {token: place for place, token in enumerate((*CONTROL, *dict.fromkeys(words)))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    made.add_special_tokens(list(CONTROL))
    return json.dumps(json.loads(made.to_str()))


def spelled(number: int) -> str:
    """Return an English number below a million in words: "three hundred and forty two"."""
    if number < 20:
        return SMALL[number]
    if number < 100:
        rest = f" {SMALL[number % 10]}" if number % 10 else ""
        return TENS[number // 10 - 2] + rest
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = number % unit
    joint = "" if not rest else " and " if rest < 100 else " "
    return f"{spelled(number // unit)} {name}" + (joint + spelled(rest) if rest else "")


def number_pairs(numbers: Sequence[int]) -> list[Record]:
    return [(("source", spelled(number)), ("target", str(number))) for number in numbers]


def scenes(seed: int, count: int) -> list[Record]:
    """Return documents of two lines about one scene each, all different."""
    every = list(itertools.product(NAMES, VERBS, SIZES, COLOURS, SHAPES, PLACES))
    return [
        (
            (
                "text",
                f"{name} {verb} a {size} {colour} {shape} on the {place} .\n"
                f"the {shape} is {colour} and {size} says {name} .",
            ),
        )
        for name, verb, size, colour, shape, place in random.Random(seed).sample(every, count)
    ]


def fit(
    model: Trainable, batch: Mapping[str, Tensor], *, steps: int, rows: int, rate: float, seed: int
) -> None:
    """Train with AdamW, warmed up over 50 steps and annealed by a cosine to 5 % as the recipes are; seeds torch."""
    torch.manual_seed(seed)
    count = len(next(iter(batch.values())))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99))
    for step in range(steps):
        now = 0.05 + 0.95 * (1 + torch.tensor(torch.pi * step / steps).cos().item()) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * now * min(1, (step + 1) / 50)
        index = torch.randint(count, (rows,))
        optimizer.zero_grad()
        model({name: value[index] for name, value in batch.items()}).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
