"""How the pipelines of diffusers read a prompt: its tokens, and what the text encoders make of them.

Shape letters: B prompts, T tokens, D embedding width, E width of the embedding of a whole text.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from models.text_to_image.checkpoint_parts import LONGEST


class Reader:
    """Prompts as one text encoder's tokens, all of one length."""

    def __init__(self, document: str, length: int, pad: int) -> None:
        self.length, self._pad = length, pad
        self._tokenizer = Tokenizer.from_str(document)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return (B, T) int64, with what begins and ends a prompt.

        Raises:
            ValueError: a prompt has more tokens than the encoder reads.
        """
        found = [one.ids for one in self._tokenizer.encode_batch(list(prompts))]
        if longest := max((len(ids) for ids in found if len(ids) > self.length), default=0):
            raise ValueError(
                f"a prompt of {longest} tokens, and this model reads {self.length} at most, with its"
                " beginning and end: shorten it"
            )
        return torch.tensor([ids + [self._pad] * (self.length - len(ids)) for ids in found])


def embedded(
    pipeline: str, encoders: Sequence[Any], tokens: Sequence[Tensor], width: int
) -> Tensor:
    """Return what is known of prompts (B, T, D): a row a token and, but for SD 1 and 2, that of the whole behind them.

    Args:
        pipeline: A key of `PICTURES`.
        encoders: Of a Stable Diffusion 3 perhaps without T5, in whose place zeros are read.
        tokens: For each of them, (B, T).
        width: That of a row which the network reads.
    """
    if pipeline == "StableDiffusionPipeline":
        found: Tensor = encoders[0](tokens[0]).last_hidden_state
        return found
    if pipeline == "FluxPipeline":
        whole_BE = encoders[0](tokens[0]).pooler_output
        return packed([encoders[1](tokens[1]).last_hidden_state], whole_BE)
    made = [
        one(ids, output_hidden_states=True)
        for one, ids in zip(encoders[:2], tokens[:2], strict=True)
    ]
    context_BTD = torch.cat([one.hidden_states[-2] for one in made], -1)
    if pipeline == "StableDiffusionXLPipeline":
        return packed([context_BTD], made[-1].text_embeds)
    if len(encoders) > 2:
        long_BTD = encoders[2](tokens[2]).last_hidden_state
    else:
        long_BTD = context_BTD.new_zeros(len(context_BTD), LONGEST, width)
    return packed([context_BTD, long_BTD], torch.cat([one.text_embeds for one in made], -1))


def packed(rows: Sequence[Tensor], whole_BE: Tensor) -> Tensor:
    """Return rows (B, T, D) of all of `rows`, and behind them that of a whole text, each filled up with zeros."""
    parts = [*rows, whole_BE[:, None]]
    width = max(one.shape[-1] for one in parts)
    return torch.cat([F.pad(one, (0, width - one.shape[-1])) for one in parts], 1)
