"""What rows of a decoder keep while they write: keys and values, and which tokens, how many and by what rules.

A step reads each row's newest token, adds its keys and values to the cache, and takes the next token from the logits.
Everything but keys and values stays on the CPU, so that nothing in a step waits for the device but its tokens.

Shape letters: B rows, T tokens, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from models.family import Rows
from models.parts.draws import drawn, logprobs, no_logprobs, sampling_rules
from models.parts.noise import uniforms
from models.parts.tokens import CONTROL, EOS
from models.request import Request

SLOTS: Final = 64  # a cache has a multiple of them: a CPU then rounds alike whatever its length


def begun(
    prompts: Sequence[Sequence[int]], request: Request, context: int, vocabulary: int
) -> Rows:
    """Return rows that wait to read their prompt's last token, without their keys and values.

    Raises:
        ValueError: temperature, top_k, top_p or max_tokens is out of its range.
    """
    count, most = len(prompts), request.options.get("max_tokens", context)
    temperature_B, top_k_B, top_p_B = sampling_rules(request, 1.0, torch.device("cpu"))
    limit_B = torch.tensor([min(most, context + 1 - len(prompt)) for prompt in prompts])
    return {
        "position": torch.tensor([len(prompt) - 1 for prompt in prompts]),  # tokens read so far
        "token": torch.tensor([prompt[-1] for prompt in prompts]),  # the next one to be read
        "written": torch.zeros(count, int(limit_B.max()), dtype=torch.long),
        "count": torch.zeros_like(limit_B),
        "limit": limit_B,
        "ended": torch.zeros(count, dtype=torch.bool),
        "u": uniforms(request.seeds, (context,), torch.device("cpu")),
        "temperature": temperature_B,
        "top_k": top_k_B,
        "top_p": top_p_B,
        "logprobs": torch.full((count,), "logprobs" in request.options),
        **no_logprobs(count, vocabulary),
    }


def slots(rows: Rows) -> int:
    """Return how many slots the rows' caches need, a multiple of SLOTS."""
    return -(-int((rows["position"] + rows["limit"]).max()) // SLOTS) * SLOTS


def done(rows: Rows) -> Tensor:
    """Return (B,) bool: the rows that ended by themselves or may write no more."""
    return rows["ended"] | (rows["count"] >= rows["limit"])


def appended(rows: Rows, logits_BV: Tensor) -> Rows:
    """Return the rows with a token drawn from its logits; of the control tokens only `<eos>` can come."""
    allowed_V = torch.arange(logits_BV.shape[1], device=logits_BV.device) >= len(CONTROL)
    allowed_V[EOS] = True
    place_B1 = rows["position"].clamp(max=rows["u"].shape[1] - 1)[:, None]
    rules = torch.stack(
        [
            rows["u"].gather(1, place_B1)[:, 0].double(),
            *(rows[name].double() for name in ("temperature", "top_k", "top_p")),
        ]
    ).to(logits_BV.device)
    token_B = drawn(logits_BV.masked_fill(~allowed_V, -torch.inf), *rules).cpu()
    live_B = ~done(rows)
    writes_B = live_B & (token_B != EOS)
    place_BT = torch.arange(rows["written"].shape[1]) == rows["count"][:, None]
    return {
        **rows,
        "written": torch.where(place_BT & writes_B[:, None], token_B[:, None], rows["written"]),
        "token": torch.where(live_B, token_B, rows["token"]),
        "position": rows["position"] + live_B,
        "count": rows["count"] + writes_B,
        "ended": rows["ended"] | (live_B & (token_B == EOS)),
        **logprobs(rows, logits_BV, token_B),
    }


def written(rows: Rows) -> Tensor:
    """Return what is written so far (B, T) int64, -1 after it."""
    written_BT = rows["written"][:, : int(rows["limit"].max())]
    after_BT = torch.arange(written_BT.shape[1]) >= rows["count"][:, None]
    return written_BT.masked_fill(after_BT, -1)
