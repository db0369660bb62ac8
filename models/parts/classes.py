"""Classes of a generative classifier: a class is a word of the vocabulary, and a caption is one word.

Shape letters: B rows, Y classes. Without a vocabulary there is one class, and captions are not read.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.family import Batch
from models.parts import words
from models.parts.noise import places, uniforms
from models.request import Request


class Classed:
    """A Config whose vocabulary has a word a class."""

    __slots__ = ()
    vocabulary: tuple[str, ...]

    def encode(self, captions: Sequence[str]) -> Tensor | None:
        """Return tokens (B, 1) int64, 1 + the class; None where there are no classes.

        Raises:
            ValueError: a caption is not one word of the vocabulary.
        """
        return encode(captions, self.vocabulary)


def encode(captions: Sequence[str], vocabulary: Sequence[str]) -> Tensor | None:
    """Return tokens (B, 1) int64, 1 + the class; None for a model without classes.

    Raises:
        ValueError: a caption is not one word of the vocabulary.
    """
    if not vocabulary:
        return None
    if several := [caption for caption in captions if len(words.split(caption)) > 1]:
        raise ValueError(
            f"a class is a caption of one word, got {several[0]!r};"
            " set config.vocabulary [] to learn without classes"
        )
    return words.encode(captions, vocabulary, 1)


def of_batch(batch: Batch, count: int) -> Tensor:
    """Return each row's class (B,) int64, 0..count-1.

    Raises:
        ValueError: there are classes, but the batch has no tokens.
    """
    if count == 1:
        return torch.zeros(len(batch["pixels"]), dtype=torch.long, device=batch["pixels"].device)
    if "tokens" not in batch:
        raise ValueError(f"{count} classes are learned from captions, so the batch needs tokens")
    return batch["tokens"][:, 0] - 1


def of_request(request: Request, vocabulary: Sequence[str], log_prior_Y: Tensor) -> Tensor:
    """Return each row's class (B,) int64: the prompt's word, or a draw from the prior, the first of its seed.

    Raises:
        ValueError: a prompt that is not one known word.
    """
    tokens_B1 = encode(request.prompts, vocabulary) if request.prompts else None
    if tokens_B1 is not None:
        return tokens_B1[:, 0].to(log_prior_Y.device) - 1
    u_B1 = uniforms(request.seeds, (1,), log_prior_Y.device)
    return places(u_B1, log_prior_Y.exp()[None])[:, 0]


def log_prior(count_Y: Tensor, vocabulary: Sequence[str]) -> Tensor:
    """Return the log frequencies (Y,) of the classes.

    Raises:
        ValueError: a class without a row; it could be neither drawn nor recognised.
    """
    if bool((count_Y == 0).any()):
        empty = int((count_Y == 0).nonzero()[0])
        name = f"class {vocabulary[empty]!r}" if vocabulary else "the training split"
        raise ValueError(f"{name} has no rows to learn from: prepare more, or shorten vocabulary")
    return (count_Y / count_Y.sum()).log()
