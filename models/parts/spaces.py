"""Whose numbers a port's are: codes and latents mean nothing without the weights that gave them."""

import hashlib

from torch import Tensor

UNTRAINED = "untrained"
"""The space of a network without weights, whose sizes alone are looked at."""


def fingerprint(*tensors: Tensor) -> str:
    """Return 12 hex digits of what these weights are: the BLAKE2b hash of their float32 bytes and shapes.

    Example:
        >>> import torch
        >>> one = torch.zeros(2, 3)
        >>> fingerprint(one) == fingerprint(one.clone()), fingerprint(one) == fingerprint(one.T)
        (True, False)
    """
    if any(one.is_meta for one in tensors):
        return UNTRAINED
    digest = hashlib.blake2b(digest_size=6)
    for one in tensors:
        digest.update(f"{tuple(one.shape)}".encode())
        digest.update(one.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
