"""Dates in names, as times: which of two was earlier.

Pure: no clock, no time zone of this machine, no locale. Where a date names no offset it counts as UTC: of the names of
one run only the order matters.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# As `str` and `isoformat` write it, as `%Y%m%d-%H%M%S` and the like do, and SpeechBrain's, which counts those of one
# second behind it: `2024-05-01+12-30-45+00`.
_DATE = re.compile(
    r"([0-9]{4})([-_.]?)([0-9]{2})\2([0-9]{2})"
    r"(?:[-_T +@]?([0-9]{2})([-_.:]?)([0-9]{2})(?:\6([0-9]{2})(?:\.[0-9]{1,9})?"
    r"(?:Z|([-+])([0-9]{2}):?([0-9]{2})|\+[0-9]{2})?)?)?"
)
_SINCE_1970 = re.compile(r"([0-9]{10})(?:[0-9]{3}|[0-9]{6}|[0-9]{9})?(?:\.[0-9]+)?")  # in s, ms, us or ns
PATTERN = r"[0-9](?:[-0-9_T:.+@ ]{0,38}[0-9Z])?"  # all that can be one, and more; read_time tells
BETWEEN = "-_T +@.:"  # what stands between the parts of one

_DIRECTIVES = {"Y": 4, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2, "y": 2, "f": 6}
_SAMPLE = {"Y": "2024", "m": "05", "d": "01", "H": "12", "M": "30", "S": "45", "y": "24", "f": "000000"}
_DAYS_BEFORE = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)  # the months of a year


def read_time(text: str) -> int | None:
    """The time that `text` says, in seconds since 1970, or None if it says none."""
    since = _SINCE_1970.fullmatch(text)
    if since:
        return int(since[1])
    date = _DATE.fullmatch(text)
    if date is None:
        return None
    year, month, day, hour, minute, second = (int(date[i] or 0) for i in (1, 3, 4, 5, 7, 8))
    offset_s = (int(date[10]) * 60 + int(date[11])) * 60 * (-1 if date[9] == "-" else 1) if date[9] else 0
    seconds = _seconds(year, month, day, hour, minute, second)
    return seconds - offset_s if seconds is not None and seconds >= offset_s else None


def form_of(spec: str) -> tuple[str, Callable[[str], int | None], str]:
    """What a format such as `%Y-%m-%d` writes: its pattern, how it is read, and a sample.

    Raises ValueError, with the reason, for one of which no order can be read.
    """
    groups, plain, sample = "", "", ""
    for percent, letter, literal in re.findall(r"(%)(.)|([^%]+|%)", spec, re.DOTALL):
        if percent and letter != "%":
            if letter not in _DIRECTIVES or f"<{letter}>" in groups:
                raise ValueError(f"its date has %{letter}, of which no order can be read: write it in numbers, as in "
                                 "%Y-%m-%d_%H-%M-%S")  # fmt: skip
            digits = f"[0-9]{{{_DIRECTIVES[letter]}}}"
            groups, plain, sample = f"{groups}(?P<{letter}>{digits})", plain + digits, sample + _SAMPLE[letter]
        else:
            text = letter or literal
            groups, plain, sample = groups + re.escape(text), plain + re.escape(text), sample + text
    if "<Y>" not in groups and "<y>" not in groups:
        raise ValueError("its date has no year, so it cannot be compared: write it as in %Y-%m-%d_%H-%M-%S")
    form = re.compile(groups)

    def read(text: str) -> int | None:
        match = form.fullmatch(text)
        if match is None:
            return None
        found = match.groupdict()
        year = int(found["Y"]) if "Y" in found else 2000 + int(found["y"])
        return _seconds(year, *(int(found.get(each, least)) for each, least in zip("mdHMS", "11000")))

    return plain, read, sample


def _seconds(year: int, month: int, day: int, hour: int, minute: int, second: int) -> int | None:
    """Seconds since 1970; None for what is on no calendar, or before that."""
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not (year >= 1970 and 1 <= month <= 12 and hour < 24 and minute < 60 and second <= 60):
        return None
    days_before = (*_DAYS_BEFORE, 365)
    length = days_before[month] - days_before[month - 1] + (month == 2 and is_leap)
    if not 1 <= day <= length:
        return None
    before = year - 1
    days = before * 365 + before // 4 - before // 100 + before // 400 - 719162
    days += days_before[month - 1] + (is_leap and month > 2) + day - 1
    return ((days * 24 + hour) * 60 + minute) * 60 + second
