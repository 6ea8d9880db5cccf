"""Sizes, ages and counts as a person would write them."""

from __future__ import annotations


def human_bytes(size_bytes: int) -> str:
    """A size for a person: 1.2 GB, in powers of 1000 as disks are sold and df -H prints."""
    size, unit = float(size_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if size < 999.5 or unit == "PB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"


def human_age(seconds: float) -> str:
    """How long ago, in the one unit that fits."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{max(0, int(seconds // size))} {unit}"
    return f"{int(seconds // 86400)} d"


def plural(count: int, what: str) -> str:
    """So many of them."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
