"""Names of rows: a kind and a ULID, so that they sort by the millisecond in which they were made."""

import re
import secrets
from typing import Final

ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
ID: Final = re.compile(rf"[a-z]+_([{ALPHABET}]{{10}})[{ALPHABET}]{{16}}")


def new_id(kind: str, now: float) -> str:
    """Return an id nobody else has: "video_01JE...", from 48 bits of time (Unix s) and 80 of chance."""
    number = int(now * 1000) << 80 | secrets.randbits(80)
    return f"{kind}_" + "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def made_at(id: str) -> float | None:
    """Return when an id was made, in Unix seconds; None: it is none."""
    found = ID.fullmatch(id)
    if found is None:
        return None
    number = 0
    for digit in found[1]:
        number = number << 5 | ALPHABET.index(digit)
    return number / 1000
