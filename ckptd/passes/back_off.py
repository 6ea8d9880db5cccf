"""How long to wait before something that has failed is tried again."""

from __future__ import annotations

_LONGEST_S = 60.0


def back_off_s(failures: int, *, longest_s: float = _LONGEST_S) -> float:
    """A second after the first failure in a row, each time twice as long, at most `longest_s`."""
    return min(longest_s, 2.0 ** min(failures - 1, 32))
