"""Text or JSON value -> exact integer, or ValueError saying what is allowed."""

from __future__ import annotations

import math
import re
from calendar import timegm

import numpy as np

from workloads.layout import fits_int64, seconds_to_ns

_DATE = re.compile(
    r"\s*(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?\s*(Z|[+-]\d\d:?\d\d)?\s*", re.ASCII
)
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def tokens(value: object) -> int:
    """A whole number: an int, a float without fraction, or the text of either."""
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return value
    real = _real(value, "a whole number")
    if not real.is_integer() or abs(real) >= 1e18:
        raise ValueError("a whole number")
    return int(real)


def number(value: object, ns_per: int) -> int:
    """A stamp in a unit of `ns_per` nanoseconds -> whole ns; whole numbers exactly, fractions as the nearest ns."""
    if ns_per == 1:
        return tokens(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) * ns_per < 2**63:
        return value * ns_per
    stamps = seconds_to_ns(np.array([_real(value, "a finite number")]), ns_per)
    if not fits_int64(stamps)[0]:
        raise ValueError("a stamp within 292 years; is the unit right?")
    return int(stamps[0])


def date_ns(text: object) -> int:
    """`YYYY-MM-DD HH:MM:SS[.1-9 digits][zone]` -> ns since 1970 UTC, exact to the last digit."""
    found = _DATE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError("YYYY-MM-DD HH:MM:SS[.fraction][+HH:MM]")
    year, month, day, hour, minute, second = (int(found[i]) for i in range(1, 7))
    if not (1 <= month <= 12 and 1 <= day <= _DAYS[month - 1] and hour < 24 and minute < 60 and second < 60):
        raise ValueError("a date and time that exist")
    if month == 2 and day == 29 and (year % 4 or (year % 100 == 0 and year % 400)):
        raise ValueError("a date and time that exist")
    whole_s = timegm((year, month, day, hour, minute, second)) - _zone_s(found[8])
    stamp_ns = whole_s * 10**9 + int((found[7] or "").ljust(9, "0"))
    if abs(stamp_ns) >= 2**63:
        raise ValueError("a year from 1678 to 2261")
    return stamp_ns


def _zone_s(zone: str | None) -> int:
    if zone is None or zone == "Z":
        return 0
    sign = -1 if zone[0] == "-" else 1
    hours, minutes = int(zone[1:3]), int(zone[-2:])
    if hours > 23 or minutes > 59:
        raise ValueError("a time zone within a day")
    return sign * (hours * 3600 + minutes * 60)


def _real(value: object, allowed: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(allowed)
    try:
        real = float(value) if not (isinstance(value, str) and ("_" in value or not value.isascii())) else math.nan
    except (ValueError, OverflowError):
        real = math.nan
    if not math.isfinite(real):
        raise ValueError(allowed)
    return real
