"""Numbers with their origin (file, column, rows), and what is computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nvtxmoe_analysis.report.number_text import Value, duration, pct, shown

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
