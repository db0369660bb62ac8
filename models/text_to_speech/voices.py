"""In whose voices a model speaks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


# without slots, as Spoken: a Config may have another base beside it
@dataclass(frozen=True, kw_only=True)
class Voiced:
    """A Config whose model speaks in the voices of speakers."""

    speakers: tuple[str, ...] = ()  # their names; empty: one voice without a name

    def check_voices(self) -> None:
        """Refuse a speaker that is there twice; for `__post_init__`."""
        if len(set(self.speakers)) < len(self.speakers):
            raise ValueError(f"speakers: one is there twice in {', '.join(self.speakers)}")

    def encode_voices(self, names: Sequence[str]) -> Tensor:
        """Return speakers by number, (B,) int64; "" is the first.

        Raises:
            ValueError: a speaker that it did not learn.
        """
        known = self.speakers or ("",)
        for name in names:
            if name and name not in known:
                which = (
                    f"choose one of {', '.join(self.speakers)}" if self.speakers else "it has one"
                )
                raise ValueError(f"voice: this model has no voice {name!r}; {which}")
        return torch.tensor([known.index(name) if name else 0 for name in names])
