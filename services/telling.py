"""How likely a written token was, and what could have stood in its place: what `logprobs` asks for.

Shape letters: T tokens of a row's text.
"""

from typing import Final

import torch
from torch import Tensor

from models.family import Family, Rows
from models.parts.tokens import CONTROL, tokenizer
from services.tickets import Row
from services.work import Told

SEEN: Final = (
    4  # tokens before it that a token's text may depend on: a space, the bytes of a character
)


def told(model: Family, rows: Rows, place: int, tokens_T: Tensor, row: Row) -> Told:
    """Return the newest token of row `place` with as many likeliest ones as asked for; its text is known later."""
    most = row.request.logprobs or 0
    before_T = tokens_T[tokens_T >= 0][:-1][-SEEN:]
    start = model.text_of(before_T, row.prompt)

    def text(token: int) -> str:
        if token < len(CONTROL):
            return tokenizer(model.config.tokenizer).spelled(token)
        both_T = torch.cat([before_T, torch.tensor([token])])
        return model.text_of(both_T, row.prompt).removeprefix(start)

    nats = rows["likeliest_nats"][place, :most].tolist()
    likeliest = [text(token) for token in rows["likeliest"][place, :most].tolist()]
    return Told("", float(rows["nats"][place]), tuple(zip(likeliest, nats, strict=True)))
