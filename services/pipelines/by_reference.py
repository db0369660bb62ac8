"""Large arrays on their way from one pool to the next: in Ray's object store, past the gateway's memory.

The replica that made an array owns it; one that is lost takes it along, and the work is done again from the start.
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

if TYPE_CHECKING:
    from ray import ObjectRef

INLINE: Final = 2**20  # bytes that travel inside a message


@dataclass(frozen=True, slots=True)
class Reference:
    """An array that lies in the object store."""

    ref: "ObjectRef[NDArray[Any]]"


class LostError(Exception):
    """The replica that owned an array is gone, and the array with it."""


async def stored(array: "NDArray[Any] | Reference") -> "NDArray[Any] | Reference":
    """Return an array as it is, or where it lies if it is large."""
    if isinstance(array, Reference) or array.nbytes <= INLINE:
        return array
    import ray

    return Reference(await asyncio.to_thread(ray.put, array))


async def fetched(array: "NDArray[Any] | Reference") -> NDArray[Any]:
    """Return an array, from the object store where it lies there.

    Raises:
        LostError: it was lost.
    """
    if not isinstance(array, Reference):
        return array
    from ray.exceptions import ObjectLostError

    try:
        found: NDArray[Any] = await array.ref
    except ObjectLostError as error:
        raise LostError(" ".join(str(error).split())[:200]) from error
    return found
