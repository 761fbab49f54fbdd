"""Take numbers from the result files, with file, column and rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from nvtxmoe_analysis.report.numbers import SourcedNumber, Value, Where, shown
from nvtxmoe_analysis.report.results import Source


def rows_where(frame: pl.DataFrame, where: Where) -> pl.DataFrame:
    """Return the rows whose columns have these values; None is an empty cell."""
    for name, value in where.items():
        frame = frame.filter(pl.col(name).is_null() if value is None else pl.col(name) == value)
    return frame


class Ledger:
    """Numbers of one results folder."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def take(
        self,
        name: str,
        column: str,
        how: str = "cell",
        *,
        where: Where | None = None,
        once: Sequence[str] = (),
        text: str | None = None,
    ) -> SourcedNumber:
        """Take a number from a frame that exists.

        Parameters:
            name: name of the frame.
            how: see ``SourcedNumber.how``; ``cell`` needs exactly one row.
            where: the rows: value by column.
            once: columns of which each combination counts once.
            text: the number for people; default: by the column's unit.
        """
        chosen = rows_where(getattr(self.source.loaded, name), where or {})
        if once:
            chosen = chosen.unique(list(once), keep="first", maintain_order=True)
        value = _reduced(chosen[column], how)
        return SourcedNumber(
            value,
            shown(value, column if how not in ("rows", "known", "distinct") else "") if text is None else text,
            self.source.file(name),
            column,
            how,
            dict(where or {}),
            tuple(once),
            len(chosen),
        )

    def wins(self, name: str, column: str, where: Where, of: Sequence[str]) -> SourcedNumber:
        """Count the groups of equal ``of`` in which the row of ``where`` has the largest value. Groups of one row and
        ties do not count."""
        frame: pl.DataFrame = getattr(self.source.loaded, name)
        largest = pl.col(column).max().over(*of)
        ties = (pl.col(column) == largest).sum().over(*of)
        groups_of_several = frame.with_columns(won=(pl.col(column) == largest) & (ties == 1)).filter(
            pl.len().over(*of) > 1
        )
        won = int(rows_where(groups_of_several, where)["won"].sum())
        groups = groups_of_several.select(pl.struct(*of).n_unique()).item() if len(groups_of_several) else 0
        return SourcedNumber(won, shown(won), self.source.file(name), column, "wins", dict(where), tuple(of), groups)

    def from_document(self, name: str, *keys: str | int, text: str | None = None) -> SourcedNumber:
        """Take a number from a JSON document that exists, by its path of keys."""
        value: Any = self.source.document(name)
        for key in keys:
            value = value[key]
        path = ".".join(map(str, keys))
        return SourcedNumber(value, shown(value, path) if text is None else text, self.source.file(name), path)


def _reduced(values: pl.Series, how: str) -> Value:
    """Reduce a column to one number; NaN if it has no value."""
    if how == "rows":
        return len(values)
    if how == "known":
        return int(values.fill_nan(None).count()) if values.dtype.is_float() else int(values.count())
    if how == "distinct":
        return values.drop_nulls().n_unique()
    if how == "cell":
        (number,) = values.to_list()
    else:
        number = {
            "sum": values.sum,
            "mean": values.mean,
            "median": values.median,
            "min": values.min,
            "max": values.max,
        }[how]()
    return float("nan") if number is None else number
