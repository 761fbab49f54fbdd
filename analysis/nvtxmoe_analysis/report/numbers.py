"""Numbers with their origin (file, column, rows), sentences of such numbers, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

Value = int | float
#: Ways to take a number that are sums over steps, divided by ``over``.
PER_STEP = ("per_step", "first_of_step", "idle")
Where = Mapping[str, int | float | str | None]
#: Unit by suffix of a column.
UNITS = {
    "_ns": "ns", "_ns_per_unit": "ns", "_us": "us", "_us_a_rank": "us", "_sec": "s", "_bytes": "bytes", "_bits": "bits",
    "_flop": "FLOP", "pct": "%", "percentage": "%", "_ratio": "1", "gb_per_s": "GB/s", "tflop_per_s": "TFLOP/s",
    "flop_per_byte": "FLOP/byte",
}  # fmt: skip


def unit_of(column: str) -> str:
    """Return the unit of a column by its name; empty for a number without one."""
    return next((unit for suffix, unit in UNITS.items() if column.endswith(suffix)), "")


@dataclass(frozen=True)
class SourcedNumber:
    """Number as it is shown, with its origin.

    Attributes:
        value: the number, in the unit of its column.
        text: the number for people.
        file: the file it was taken from; empty if it was computed from ``parts``.
        column: the column, or the path of keys in a JSON document.
        how: ``cell`` (as it stands there), ``sum``, ``mean``, ``median``, ``min``, ``max``, ``rows`` (their number),
            ``known`` (rows with a value), ``distinct`` (values, empty cells left out), ``wins`` (of the ``once``
            groups, those in which the row of ``where`` has the largest value), ``lift`` (of a pair of experts, see
            ``pairs.with_lift``), ``predicted`` (by ``nvtxmoe place``: ``column`` is a key of its verdict),
            ``per_step`` (sum over the rows of ``steps``, divided by ``over``), ``first_of_step`` (likewise, of the row
            that starts first in each (rank, step)), ``idle`` (likewise, of the time between the layers' first start
            and last end that exceeds the step's GPU time); of parts ``ratio``, ``percent``, ``difference``, ``total``.
        where: the rows: value by column, None for an empty cell.
        once: columns of which each combination counts once, if several rows repeat a value.
        rows: number of these rows.
        parts: the numbers that it was computed from.
        steps: numbers of the steps whose rows count; None: all. steps_in_words: which these are.
        over: what a sum over ``steps`` is divided by: the number of (rank, step), or of (group, step).
        interval: 95 % interval of an estimate, in the unit of ``value``.
        estimated: True if a model gave it.
        time_unit: unit in which it is written, and numbers that are computed from it; empty: by its size.
    """

    value: Value
    text: str
    file: str = ""
    column: str = ""
    how: str = "cell"
    where: Where = field(default_factory=dict)
    once: tuple[str, ...] = ()
    rows: int = 0
    parts: tuple[SourcedNumber, ...] = ()
    steps: frozenset[int] | None = field(default=None, repr=False)
    steps_in_words: str = ""
    over: int = 1
    interval: tuple[float, float] | None = None
    estimated: bool = False
    time_unit: str = ""

    def __str__(self) -> str:
        return self.text

    @property
    def is_estimated(self) -> bool:
        """True if a model gave the number, or one that it was computed from."""
        return self.estimated or self.how == "predicted" or any(part.is_estimated for part in self.parts)

    @property
    def unit(self) -> str:
        """The unit of ``value``, see ``unit_of``; 1 for a ratio."""
        if self.how in ("percent", "ratio"):
            return "%" if self.how == "percent" else "1"
        if self.how in ("rows", "known", "distinct", "wins", "lift"):
            return ""
        if self.parts:
            return self.parts[0].unit
        return unit_of(self.column)

    @property
    def evidence(self) -> dict[str, Any]:
        """File, column and rows, JSON-ready."""
        if self.how == "predicted":
            return {"command": "nvtxmoe place --json", "key": f"verdict.{self.column}", "file": self.file}
        return {
            "file": self.file,
            "column": self.column,
            **({"where": dict(self.where)} if self.where else {}),
            **({"steps": self.steps_in_words} if self.steps is not None else {}),
            **({"rows": self.rows} if self.rows else {}),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return value, text and origin, JSON-ready."""
        return {
            "value": self.value if math.isfinite(self.value) else None,
            "text": self.text,
            "unit": self.unit,
            "kind": "estimated" if self.is_estimated else "measured",
            "interval": list(self.interval) if self.interval else None,
            "origin": self.origin,
            "how": self.how,
            **({"of": [part.text for part in self.parts]} if self.parts else {}),
            **({"file": self.file, "column": self.column} if self.file else {}),
            **({"where": dict(self.where)} if self.where else {}),
            **({"once": list(self.once)} if self.once else {}),
        }

    @property
    def origin(self) -> str:
        """File, column and rows of the number in words; the parts of a computed number."""
        if self.parts:
            verb = {"ratio": "over", "percent": "as a share of", "difference": "minus", "total": "plus"}[self.how]
            return f" {verb} ".join(part.text for part in self.parts)
        rows = f"{self.rows:,} row{'' if self.rows == 1 else 's'}"
        condition = ", ".join(
            f"{name} {'empty' if value is None else f'= {value}'}" for name, value in self.where.items()
        )
        scope = f" where {condition}" if condition else ""
        once = f", each ({', '.join(self.once)}) once" if self.once else ""
        if self.how == "wins":
            groups = f"of {self.rows:,} ({', '.join(self.once)})"
            groups += f" in {self.steps_in_words}" if self.steps is not None else ""
            return f"{self.file}: {groups} those with the largest {self.column}{scope}"
        if self.how == "lift":
            return f"{self.file}: share of the tokens over the product of both experts' own shares{scope}"
        if self.how == "predicted":
            return f"`nvtxmoe place --json`: verdict.{self.column}, predicted from {self.file}"
        if self.steps is not None:
            what = {
                "first_of_step": f"{self.column} of the row with the least start_ns of each (rank, step)",
                "idle": "gpu_end_ns of the last layer less gpu_start_ns of the first and step_gpu_ns, where positive",
            }.get(self.how, self.column)
            if self.how not in PER_STEP:
                return f"{self.file}: {self.how} of {what}{scope} in {self.steps_in_words} ({rows}{once})"
            return f"{self.file}: sum of {what}{scope} in {self.steps_in_words} ({rows}{once}), over {self.over:,}"
        if self.how == "rows":
            return f"{self.file}: number of rows{scope}"
        if self.how == "cell":
            return f"{self.file}: {self.column}{scope}"
        what = {"distinct": "distinct values of", "known": "number of rows with"}.get(self.how, f"{self.how} of")
        return f"{self.file}: {what} {self.column}{scope} ({rows}{once})"


@dataclass(frozen=True)
class Sentence:
    """Text with numbers in it.

    Attributes:
        parts: texts and numbers in order.
    """

    parts: tuple[str | SourcedNumber, ...]

    def __str__(self) -> str:
        return "".join(map(str, self.parts))

    @property
    def numbers(self) -> list[SourcedNumber]:
        """The numbers in order."""
        return [part for part in self.parts if isinstance(part, SourcedNumber)]


def sentence(template: str, *values: SourcedNumber | Sentence | str | int) -> Sentence:
    """Fill a template: each ``{}`` is replaced by the next value. Values that are no ``SourcedNumber`` become text.

    Raises:
        ValueError: more values than ``{}``.
    """
    parts: list[str | SourcedNumber] = []
    unused = list(values)
    for text, hole, _, _ in Formatter().parse(template):
        if text:
            parts.append(text)
        if hole is not None:
            value = unused.pop(0)
            parts += (
                value.parts
                if isinstance(value, Sentence)
                else [value if isinstance(value, SourcedNumber) else str(value)]
            )
    if unused:
        raise ValueError(f"more values than places in {template!r}")
    return Sentence(tuple(parts))


def capital(text: str) -> str:
    """Return a text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def together(clauses: Sequence[Sentence]) -> Sentence:
    """Join clauses as ``a, b and c``."""
    parts: list[str | SourcedNumber] = []
    for i, clause in enumerate(clauses):
        if i:
            parts.append(" and " if i == len(clauses) - 1 else ", ")
        parts += clause.parts
    return Sentence(tuple(parts))


def ratio(first: SourcedNumber, second: SourcedNumber, column: str = "_ratio") -> SourcedNumber:
    """Divide the first by the second; the suffix of ``column`` sets the unit."""
    value = first.value / second.value if second.value else float("nan")
    return SourcedNumber(value, shown(value, column), how="ratio", parts=(first, second))


def percent(first: SourcedNumber, second: SourcedNumber) -> SourcedNumber:
    """Return the first as a share of the second, 0 to 100."""
    value = 100.0 * first.value / second.value if second.value else float("nan")
    return SourcedNumber(value, pct(value), how="percent", parts=(first, second))


def difference(first: SourcedNumber, second: SourcedNumber) -> SourcedNumber:
    """Return the first minus the second, in their unit."""
    value, unit = first.value - second.value, first.time_unit
    text = shown(value, first.column or second.column, unit)
    return SourcedNumber(value, text, how="difference", parts=(first, second), time_unit=unit)


def total(*parts: SourcedNumber) -> SourcedNumber:
    """Return the sum, in the unit of the first; that number itself if it is the only one."""
    if len(parts) == 1:
        return parts[0]
    value, unit = sum(part.value for part in parts), parts[0].time_unit
    return SourcedNumber(value, shown(value, parts[0].column, unit), how="total", parts=parts, time_unit=unit)


def interval_words(number: SourcedNumber) -> str:
    """Return ``, 95 % interval 1.0 us to 1.2 us``; empty without an interval."""
    if number.interval is None:
        return ""
    low, high = (duration(end, number.time_unit) for end in number.interval)
    return f" (95 % interval {low} to {high})"


# How numbers are written ---------------------------------------------------------------------------------------------


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
