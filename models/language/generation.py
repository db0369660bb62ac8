"""What rows of a decoder keep while they write: keys and values, and which tokens, how many and by what rules.

A step reads each row's newest token, adds its keys and values to the cache, and takes the next token from the logits.
Everything but keys and values stays on the CPU, so that nothing in a step waits for the device but its tokens.

Shape letters: B rows, T tokens read at once, S slots of a cache, L layers, H heads, D features of a head, V tokens of
the vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

import torch
from torch import Tensor

from models.family import Request, Rows
from models.parts.draws import drawn, logprobs, no_logprobs, sampling_rules
from models.parts.noise import uniforms
from models.parts.tokens import CONTROL, EOS

SLOTS: Final = 64  # a cache has a multiple of them: a CPU then rounds alike whatever its length


@dataclass(frozen=True, slots=True)
class KVCache:
    """The keys and values of what rows have read, and where T more tokens of each belong."""

    keys_BSLHD: Tensor
    values_BSLHD: Tensor
    place_BT: Tensor
    mask_B1TS: Tensor  # bool: the slots that each of the T tokens sees

    @classmethod
    def at(
        cls,
        keys_BSLHD: Tensor,
        values_BSLHD: Tensor,
        place_BT: Tensor,
        last_B1: Tensor | None = None,
    ) -> Self:
        """Return the cache for tokens at these places, which see up to themselves, or all up to `last_B1`."""
        until_BT = place_BT if last_B1 is None else last_B1
        slot_S = torch.arange(keys_BSLHD.shape[1], device=keys_BSLHD.device)
        mask_B1TS = (slot_S <= until_BT[:, :, None])[:, None]
        return cls(keys_BSLHD, values_BSLHD, place_BT, mask_B1TS)

    def updated(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new keys and values into their slots; return a layer's keys and values (B, H, S, D).

        In place: a slot from a row's position on holds nothing, so rows that were kept aside mean what they meant.
        """
        row_B1 = torch.arange(len(self.place_BT), device=self.place_BT.device)[:, None]
        both = ((self.keys_BSLHD, k_BHTD), (self.values_BSLHD, v_BHTD))
        for cached, new in both:
            cached[row_B1, self.place_BT, layer] = new.transpose(1, 2).to(cached.dtype)
        keys, values = (cached[:, :, layer].transpose(1, 2) for cached, _ in both)
        return keys, values


Forward: TypeAlias = Callable[[Tensor, KVCache], Tensor]
"""The network on tokens (B, T): what it makes of them does not matter here, only what it leaves in the cache."""


def prefill(
    forward: Forward, empty_SLHD: Tensor, prompts: Sequence[Sequence[int]], *, causal: bool
) -> tuple[Tensor, Tensor]:
    """Return keys and values (B, S, L, H, D) of the prompts but their last tokens; equal ones are read once.

    All at once on a GPU: what fills a shorter one up lies where its next tokens will be written. On a CPU, which
    gains nothing by that, one by one: so a row's bits do not depend on how long others are.
    """
    device, rows = empty_SLHD.device, [tuple(prompt) for prompt in prompts]
    index = {prompt: number for number, prompt in enumerate(dict.fromkeys(rows))}
    keys, values = (empty_SLHD.new_zeros(len(index), *empty_SLHD.shape) for _ in range(2))
    size = 1 if device.type == "cpu" else len(index)
    for first in range(0, len(index), size):
        some, part = list(index)[first : first + size], slice(first, first + size)
        if longest := max(map(len, some)) - 1:
            tokens = [[*prompt[:-1], *[0] * longest][:longest] for prompt in some]
            place_BT = torch.arange(longest, device=device).expand(len(some), -1)
            last_B1 = torch.tensor([[max(0, len(one) - 2)] for one in some], device=device)
            cache = KVCache.at(keys[part], values[part], place_BT, None if causal else last_B1)
            forward(torch.tensor(tokens, device=device), cache)
    if len(index) == len(rows):
        return keys, values
    which_B = torch.tensor([index[prompt] for prompt in rows], device=device)
    return keys[which_B], values[which_B]


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
