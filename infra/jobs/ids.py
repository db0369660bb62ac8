"""Names of rows: a kind and a ULID, so that they sort by the millisecond in which they were made."""

import secrets
from typing import Final

ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32


def new_id(kind: str, now: float) -> str:
    """Return an id nobody else has: "video_01JE...", from 48 bits of time (Unix s) and 80 of chance."""
    number = int(now * 1000) << 80 | secrets.randbits(80)
    return f"{kind}_" + "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
