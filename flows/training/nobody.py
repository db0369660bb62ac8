"""An actor that nobody calls; alone in its module, because importing it must import nothing."""

from typing import Any


class Nobody:
    """Takes any arguments, and waits to be killed."""

    def __init__(self, **_: Any) -> None:
        """Keep nothing."""
