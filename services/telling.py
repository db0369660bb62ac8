"""How likely a written token was, and what could have stood in its place: what `logprobs` asks for.

Shape letters: T tokens of a row's text.
"""

from typing import Final

import torch
from torch import Tensor

from models.family import Family, Rows
from models.parts.tokens import CONTROL, tokenizer
from services.work import Told

SEEN: Final = (
    4  # tokens before it that a token's text may depend on: a space, the bytes of a character
)


def told(model: Family, rows: Rows, place: int, tokens_T: Tensor, most: int) -> Told:
    """Return the newest token of row `place` with the `most` likeliest ones; its text is known later."""
    before_T = tokens_T[tokens_T >= 0][:-1][-SEEN:]
    start = model.text_of(before_T)

    def text(token: int) -> str:
        if token < len(CONTROL):
            return tokenizer(model.config.tokenizer).spelled(token)
        return model.text_of(torch.cat([before_T, torch.tensor([token])])).removeprefix(start)

    nats = rows["likeliest_nats"][place, :most].tolist()
    likeliest = [text(token) for token in rows["likeliest"][place, :most].tolist()]
    return Told("", float(rows["nats"][place]), tuple(zip(likeliest, nats, strict=True)))
