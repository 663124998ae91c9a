"""Shortening of lists in messages."""

from collections.abc import Sequence
from typing import Any


def shorten(items: Sequence[Any], limit: int = 5) -> list[str]:
    """Return the first ``limit`` items and, if there are more, one that counts them."""
    rest = len(items) - limit
    return [*map(str, items[:limit]), *([f"... and {rest} more"] if rest > 0 else [])]
