"""Take numbers from the result files, with file, column and rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import polars as pl

from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.number_text import Value, shown, unit_for
from nvtxmoe_analysis.report.numbers import SourcedNumber, Where
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.steady import CORRELATION, STEP, Steady, steady, steady_others


def rows_where(frame: pl.DataFrame, where: Where) -> pl.DataFrame:
    """Return the rows whose columns have these values; None is an empty cell."""
    return frame.filter(*conditions(where)) if where else frame


def conditions(where: Where) -> list[pl.Expr]:
    """What holds of rows whose columns have these values; None is an empty cell."""
    return [pl.col(name).is_null() if value is None else pl.col(name) == value for name, value in where.items()]


class Ledger:
    """Numbers of one results folder.

    Attributes:
        source: the folder.
        findings: of the topics that come before.
        of_others: True if times per step are of another kind of steps than those of headlines.
    """

    def __init__(self, source: Source, steps: Steady | None = None) -> None:
        """Open a folder.

        Parameters:
            steps: what times per step are of; default: the steady steps that headlines are of.
        """
        self.source = source
        self.findings: list[Finding] = []
        self.of_others = steps is not None
        self._steps = steps
        self._row_numbers: dict[tuple[object, ...], pl.Series] = {}

    @cached_property
    def steady(self) -> Steady | None:
        """The steady steps, which all times per step are of; None without GPU time of steps."""
        return self._steps or steady(self.source)

    @cached_property
    def others(self) -> Sequence[Ledger]:
        """A ledger of each other kind of steps that has steady ones, the most GPU time first."""
        return () if self.of_others else tuple(Ledger(self.source, steps) for steps in steady_others(self.source))

    @cached_property
    def time_unit(self) -> str:
        """The unit of times per step: that of the step's GPU time."""
        assert self.steady is not None
        steps = self._rows(CORRELATION, ("step_gpu_ns",), None, STEP, steady=True)["step_gpu_ns"]
        return unit_for(_per(steps, self.steady.rank_steps))

    @cached_property
    def step_time(self) -> SourcedNumber | None:
        """GPU time per steady step; None without."""
        return None if self.steady is None else self.per_step(CORRELATION, "step_gpu_ns", once=STEP)

    @cached_property
    def of_mean_rank(self) -> str:
        """`` of the mean rank`` where there are several: of a single one a time may be longer. Else empty."""
        frame = self.source.frame(CORRELATION, STEP)
        return " of the mean rank" if frame is not None and frame["rank"].n_unique() > 1 else ""

    def per_step(
        self,
        name: str,
        column: str,
        *,
        where: Where | None = None,
        once: Sequence[str] = (),
        by: Sequence[str] = (),
        interval: tuple[str, str] | None = None,
    ) -> SourcedNumber:
        """Take a time per steady step of the mean rank from a frame that exists; NaN if it is unknown there.

        Parameters:
            where, once: see ``take``.
            by: columns whose combinations in the rows are counted, and the sum divided by their number; default: the
                (rank, step) that are steady.
            interval: columns of the ends of an estimate's interval; the number is then an estimate.
        """
        assert self.steady is not None
        chosen = self._rows(name, (column, *by, *(interval or ())), where, once, steady=True)
        over = chosen.select(pl.struct(*by).n_unique()).item() if by and len(chosen) else self.steady.rank_steps
        ends = None if interval is None else tuple(_per(chosen[end], over) for end in interval)
        return self.of_steps(
            _per(chosen[column], over),
            name,
            column,
            "per_step",
            where=where,
            once=once,
            rows=len(chosen),
            over=over,
            interval=None if ends is None else (ends[0], ends[1]),
        )

    def of_steps(
        self,
        value: float,
        name: str,
        column: str,
        how: str,
        *,
        where: Where | None = None,
        once: Sequence[str] = (),
        rows: int,
        over: int,
        steps: frozenset[int] | None = None,
        in_words: str = "",
        interval: tuple[float, float] | None = None,
    ) -> SourcedNumber:
        """Return a number that was computed from rows of steps, by default the steady ones."""
        assert self.steady is not None
        unit = "" if "layer_idx" in (where or {}) else self.time_unit
        return SourcedNumber(
            value,
            shown(value, column, unit),
            self.source.file(name),
            column,
            how,
            dict(where or {}),
            tuple(once),
            rows,
            steps=self.steady.numbers if steps is None else steps,
            steps_in_words=in_words or self.steady.in_words,
            over=over,
            interval=interval,
            estimated=interval is not None,
            time_unit=unit,
        )

    def take(
        self,
        name: str,
        column: str,
        how: str = "cell",
        *,
        where: Where | None = None,
        once: Sequence[str] = (),
        text: str | None = None,
        steady: bool = False,
    ) -> SourcedNumber:
        """Take a number from a frame that exists.

        Parameters:
            name: name of the frame.
            how: see ``SourcedNumber.how``; ``cell`` needs exactly one row.
            where: the rows: value by column.
            once: columns of which each combination counts once.
            text: the number for people; default: by the column's unit.
            steady: only rows of steady steps.
        """
        steps = self.steady if steady else None
        chosen = self._rows(name, (column,), where, once, steady=steady)
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
            steps=None if steps is None else steps.numbers,
            steps_in_words="" if steps is None else steps.in_words,
        )

    def wins(self, name: str, column: str, where: Where, of: Sequence[str], *, steady: bool = False) -> SourcedNumber:
        """Count the groups of equal ``of`` in which the row of ``where`` has the largest value, if ``steady`` in steady
        steps alone. Groups of one row and ties do not count."""
        steps = self.steady if steady else None
        frame = self._rows(name, (column, *where, *of), None, (), steady=steady)
        largest = frame.group_by(of).agg(largest=pl.col(column).max(), rows=pl.len()).filter(pl.col("rows") > 1)
        winners = frame.join(largest, on=of, nulls_equal=True).filter(pl.col(column) == pl.col("largest"))
        alone = winners.group_by(of).len().filter(len=1)
        won = len(rows_where(winners, where).join(alone, on=of, nulls_equal=True))
        groups = len(largest)
        return SourcedNumber(
            won,
            shown(won),
            self.source.file(name),
            column,
            "wins",
            dict(where),
            tuple(of),
            groups,
            steps=None if steps is None else steps.numbers,
            steps_in_words="" if steps is None else steps.in_words,
        )

    def _rows(
        self, name: str, columns: Sequence[str], where: Where | None, once: Sequence[str], *, steady: bool
    ) -> pl.DataFrame:
        """Return columns of the rows of a frame that exists; see ``take``."""
        key = (name, *sorted((where or {}).items()), *once, steady)
        if key not in self._row_numbers:
            self._row_numbers[key] = self._find(name, where or {}, once, steady=steady)
        return self.source.loaded.frame(name)[list(dict.fromkeys(columns))][self._row_numbers[key]]

    def _find(self, name: str, where: Where, once: Sequence[str], *, steady: bool) -> pl.Series:
        """Return the numbers of rows in a frame that exists; see ``take``."""
        frame, chosen = self.source.loaded.frame(name), conditions(where)
        if steady and self.steady is not None:
            chosen.append(pl.col("step").is_in(self.steady.numbers))
        row_numbers = pl.int_range(len(frame), eager=True)
        if chosen:
            row_numbers = frame.select(pl.arg_where(pl.all_horizontal(chosen))).to_series()
        if not once:
            return row_numbers
        keys = frame[list(once)][row_numbers]
        first: pl.Series = row_numbers.filter(keys.select(pl.struct(*once).is_first_distinct()).to_series())
        return first

    def from_document(self, name: str, *keys: str | int, text: str | None = None) -> SourcedNumber:
        """Take a number from a JSON document that exists, by its path of keys."""
        value: Any = self.source.document(name)
        for key in keys:
            value = value[key]
        path = ".".join(map(str, keys))
        return SourcedNumber(value, shown(value, path) if text is None else text, self.source.file(name), path)


def _per(values: pl.Series, over: int) -> float:
    """Return the sum over a number; NaN if no value is known."""
    return float(values.sum()) / over if values.count() and over else float("nan")


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
