"""How numbers are written for people."""

from __future__ import annotations

import math

Value = int | float


def capital(text: str) -> str:
    """Return a text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


UNKNOWN = "not known"


def shown(value: Value, column: str = "", time_unit: str = "") -> str:
    """Format a number for people; the column's suffix sets the unit, of times ``time_unit`` if it is given."""
    if value != value:  # noqa: PLR0124  not a number
        return UNKNOWN
    if column.endswith("_ns"):
        return duration(value, time_unit)
    if column.endswith("_us"):
        return duration(1e3 * value, time_unit)
    if column.endswith(("pct", "percentage")):
        return pct(value)
    if column.endswith(("_ratio", "factor")):
        return times(value)
    return count(value)


#: From so many nanoseconds on: the unit, and its decimals. Below, nanoseconds.
TIME_UNITS = ((1e9, "s", 2), (1e7, "ms", 1), (1e6, "ms", 2), (1e4, "us", 1), (1e2, "us", 2))
SCALE = {"s": 1e9, "ms": 1e6, "us": 1e3, "ns": 1.0}


def duration(ns: Value | None, time_unit: str = "") -> str:
    """Format nanoseconds as ``38.1 us``, ``15.6 ms``, ``2.30 s``, or in a unit that is given, from a thousandth of it
    on; None is not known."""
    if ns is None:
        return UNKNOWN
    size = abs(ns)
    if time_unit and (not size or size >= SCALE[time_unit] / 1e3):
        return f"{ns / SCALE[time_unit]:,.{_decimals(size / SCALE[time_unit])}f} {time_unit}"
    for limit, unit, digits in TIME_UNITS:
        if size >= limit:
            return f"{ns / SCALE[unit]:,.{digits}f} {unit}"
    return f"{ns:,.0f} ns"


def unit_for(ns: Value) -> str:
    """Return the unit in which a time and its parts are written: ``s``, ``ms`` or ``us``."""
    return next((unit for unit in ("s", "ms") if abs(ns) >= SCALE[unit]), "us")


#: Decimals at most where values would else look alike.
MOST_DECIMALS = 6


def _decimals(size: float) -> int:
    """Return the decimals of a value in a unit that is given: three digits, two of a value below 0.1."""
    if not size or size >= 10:
        return 1 if size else 0
    if size >= 0.1:
        return 2 if size >= 1 else 3
    return 1 - math.floor(math.log10(size))


def durations(*ns: Value) -> list[str]:
    """Format nanoseconds that one sentence compares: in one unit, with as many digits as tell them apart."""
    largest = max((abs(value) for value in ns if math.isfinite(value)), default=0.0)
    unit, digits = next(((unit, digits) for limit, unit, digits in TIME_UNITS if largest >= limit), ("ns", 0))
    scale = SCALE[unit]
    different = len(set(ns))
    while digits < MOST_DECIMALS and len({round(value / scale, digits) for value in ns}) < different:
        digits += 1
    return [f"{value / scale:,.{digits}f} {unit}" for value in ns]


def pct(value: Value | None) -> str:
    """Format a share, 0 to 100; None is not known."""
    if value is None:
        return UNKNOWN
    return f"{value:.2f} %" if 0 < abs(value) < 0.95 else f"{value:.1f} %"


def times(value: Value | None) -> str:
    """Format a ratio; None is not known."""
    if value is None:
        return UNKNOWN
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def count(value: Value) -> str:
    """Format a count; a fraction has three digits."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
