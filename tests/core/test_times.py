"""Dates in names are times: which of two was earlier."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.core.keyed import given as named
from ckptd.core.naming import TIME, Family, Names
from ckptd.core.times import read_time
from ckptd.errors import UsageError

WHEN = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1))  # a name has no time zone
AT = 1714566645  # 2024-05-01 12:30:45 UTC


def series(template: str) -> Names:
    names = named(template)
    assert not isinstance(names, Family)
    return names


@pytest.mark.parametrize(("text", "expected"), [
    ("2024-05-01+12-30-45+00", AT), ("2024-05-01+12-30-45+07", AT), ("2024-05-01_12-30-45", AT),
    ("2024-05-01 12:30:45.123456", AT), ("2024-05-01T12:30:45", AT), ("2024-05-01T12:30:45Z", AT),
    ("2024-05-01T14:30:45+02:00", AT), ("2024-05-01T07:30:45-0500", AT), ("20240501-123045", AT),
    ("20240501_123045", AT), ("20240501123045", AT), ("2024.05.01-12.30.45", AT), ("2024_05_01_12_30_45", AT),
    ("1714566645", AT), ("1714566645.25", AT), ("1714566645123", AT), ("1714566645123456789", AT),
    ("2024-05-01", AT - 45045), ("20240501", AT - 45045), ("2024-05-01_12-30", AT - 45), ("2024-02-29", 1709164800),
    ("2023-02-29", None), ("2024-13-01", None), ("2024-05-32", None), ("2024-05-01_24-00-00", None),
    ("1969-05-01", None), ("05-01-2024", None), ("2024-05", None),
    ("2024-5-1", None), ("2024-05_01", None), ("171456664", None), ("", None),
    ("٢٠٢٤-٠٥-٠١", None), ("2024-05-01\n", None), ("2024-05-01T1", None),
])  # fmt: skip
def test_a_date_is_read_as_people_write_it(text: str, expected: int | None) -> None:
    assert expected == read_time(text)


@given(WHEN, st.integers(-14, 14))
def test_a_date_is_the_time_that_it_says(when: datetime, hours: int) -> None:
    seconds = int((when.replace(tzinfo=UTC, microsecond=0) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    assert read_time(str(when)) == read_time(when.isoformat()) == read_time(f"{when:%Y%m%d-%H%M%S}") == seconds
    there = when.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=hours)))
    assert read_time(there.isoformat()) == seconds


FORMS = ["%Y-%m-%d_%H-%M-%S", "%d.%m.%Y %H:%M:%S", "%S%M%H%d%m%Y", "%y%m%d-%H%M", "%Y%m%d", "%%%Y"]


@given(WHEN, WHEN, st.sampled_from(FORMS))
def test_what_a_format_has_written_keeps_its_order(one: datetime, two: datetime, form: str) -> None:
    names = series(f"run {{start:{form}}}.pt")
    first, second = (f"run {each:{form}}.pt" for each in (one, two))
    steps = names.step_of(first), names.step_of(second)
    assert None not in steps
    year, written = form.replace("%y", "%Y").replace("%%", ""), datetime.strptime
    if "%y" not in form:
        assert (steps[0] < steps[1]) == (written(f"{one:{year}}", year) < written(f"{two:{year}}", year))  # type: ignore[operator]
    assert names.step_of(first + "x") is None


def test_a_date_is_the_step_of_speechbrains_names() -> None:
    names = series("CKPT+{time}")
    assert (names.unit, names.has_grid, names.fixed_head) == (TIME, False, "CKPT+")
    assert names.step_of("CKPT+2024-05-01+12-30-45+00") == AT
    assert [names.step_of(name) for name in ("CKPT+latest", "CKPT+2024-05-01+12-30-45+00.tmp", "CKPT+7")] == [None] * 3


def test_beside_a_counter_a_date_tells_nothing() -> None:
    names = series("{time:%Y%m%d}_e{epoch}.pt")
    assert (names.unit, names.step_of("20240501_e7.pt"), names.step_of("20240532_e7.pt")) == ("epoch", 7, None)


@pytest.mark.parametrize("form", ["%b %d %Y", "%Y-%m-%d %I %p", "%c", "%d-%m", "%Y-%Y", "%H:%M"])
def test_a_date_without_an_order_is_refused(form: str) -> None:
    with pytest.raises(UsageError, match="its date has"):
        named(f"{{time:{form}}}.pt")


def test_no_date_takes_long_to_read() -> None:
    names = series("{time}x{loss:.2f}")
    began = time.process_time()
    for text in ("2024-" * 50, "1" * 250, "2024-05-01_" * 22, "20" + ":" * 250, "2024-05-01T12:30:45+" * 12):
        for _ in range(100):
            names.step_of(text)
            read_time(text)
    assert time.process_time() - began < 0.5
