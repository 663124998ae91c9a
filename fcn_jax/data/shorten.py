"""Shortening of lists in messages, and escaping of what they quote."""

from collections.abc import Sequence
from typing import Any


def shorten(items: Sequence[Any], limit: int = 5) -> list[str]:
    """Return the first ``limit`` items and, if there are more, one that counts them."""
    rest = len(items) - limit
    return [*map(str, items[:limit]), *([f"... and {rest} more"] if rest > 0 else [])]


def printable(text: object) -> str:
    """Return text on one line, with escapes for what could control a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
