"""How likely a token was, and what could have stood in its place: what `logprobs` asks for.

Shape letters: T tokens of a row's text, or of a prompt.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.family import Family, Rows
from models.parts.tokens import CONTROL, EOS, tokenizer
from models.request import Prompt
from services.pipelines.payload import Piece, Told
from services.stages.scheduler import Row
from services.stages.text_stream import SEEN


def told(model: Family, rows: Rows, place: int, tokens_T: Tensor, row: Row) -> Told:
    """Return the newest token of row `place` with as many likeliest ones as asked for; its text is known later."""
    before_T = tokens_T[tokens_T >= 0][:-1]
    return Told("", float(rows["nats"][place]), _likeliest(model, rows, place, before_T, row))


def told_end(model: Family, rows: Rows, place: int, tokens_T: Tensor, row: Row) -> Told:
    """Return the <eos> with which row `place` ended its text by itself, as `told` returns a token."""
    likeliest = _likeliest(model, rows, place, tokens_T[tokens_T >= 0], row)
    return Told("", float(rows["nats"][place]), likeliest, CONTROL[EOS])


def _likeliest(
    model: Family, rows: Rows, place: int, before_T: Tensor, row: Row
) -> tuple[tuple[str, float], ...]:
    most = row.request.options.get("logprobs", 0)
    nats = rows["likeliest_nats"][place, :most].tolist()
    likeliest = rows["likeliest"][place, :most].tolist()
    return tuple(zip(_spelled(model, likeliest, before_T, row.prompt), nats, strict=True))


def _spelled(
    model: Family, tokens: Sequence[int], before_T: Tensor, prompt: Prompt = ""
) -> list[str]:
    """Return what each of some tokens would look like after others, and a control token's name."""
    before_T = before_T[-SEEN:]
    start = model.text_of(before_T, prompt) if tokens else ""

    def text(token: int) -> str:
        if token < len(CONTROL):
            return tokenizer(model.config.tokenizer).spelled(token)
        both_T = torch.cat([before_T, torch.tensor([token])])
        return model.text_of(both_T, prompt).removeprefix(start)

    return [text(token) for token in tokens]


def echoes(
    model: Family,
    prompts: Sequence[Prompt],
    recalled: Mapping[Prompt, Rows],
    most: int,
) -> tuple[Piece, ...]:
    """Return the prompts of rows as text and, of those recalled, how likely their tokens are."""
    known = dict.fromkeys(prompts, ("", tuple[Told, ...]()))
    for prompt in known:
        text = prompt if isinstance(prompt, str) else model.text_of(torch.tensor(prompt))
        told = _echoed(model, prompt, recalled[prompt], most) if prompt in recalled else ()
        known[prompt] = text, told
    return tuple(Piece(row, *known[prompt]) for row, prompt in enumerate(prompts))


def _echoed(model: Family, prompt: Prompt, recalled: Rows, most: int) -> tuple[Told, ...]:
    """Return how likely a prompt's tokens are, with so many likeliest ones; of the first nothing, as OpenAI has it.

    The family begins a document itself, unless the tokens of a prompt do.
    """
    words = tokenizer(model.config.tokenizer)
    parts, tokens_T = words.pieces(prompt), recalled["tokens"]
    found: list[Told] = []
    if len(parts) > len(tokens_T):
        found.append(Told(parts.pop(0), None, (), CONTROL[EOS]))
    columns = zip(
        parts,
        recalled["nats"].tolist(),
        recalled["likeliest"][:, :most].tolist(),
        recalled["likeliest_nats"][:, :most].tolist(),
        strict=True,
    )
    for place, (part, nats, likeliest, theirs) in enumerate(columns):
        if not found:
            found.append(Told(part, None))
            continue
        spelled = _spelled(model, likeliest, tokens_T[:place])
        found.append(Told(part, nats, tuple(zip(spelled, theirs, strict=True))))
    return tuple(found)
