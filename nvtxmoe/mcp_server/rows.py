"""Rows of a table: filtered, sorted, cut."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.mcp_server.answers import Condition
from nvtxmoe_analysis.outputs.read import no_such

_COMPARISONS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def select_rows(
    frame: pl.DataFrame,
    table: str,
    columns: Sequence[str] | None,
    where: Sequence[Condition],
    sort_by: str | None,
    descending: bool,
    step_sets: Callable[[], Mapping[str, frozenset[int]]],
) -> pl.DataFrame:
    """Return the rows that meet all conditions, in the file's order or sorted; empty cells come last.

    Parameters:
        step_sets: returns the steps of each name that ``in_steps`` takes.

    Raises:
        NvtxmoeError: there is no such column, or a value does not fit its column.
    """
    for condition in where:
        in_steps = condition.op == "in_steps"
        frame = frame.filter(
            _in_steps(frame, table, condition, step_sets()) if in_steps else _compared(frame, table, condition)
        )
    if sort_by is not None:
        _require(frame, table, sort_by)
        if frame.schema[sort_by].is_nested():
            raise NvtxmoeError(f"column {sort_by!r} of {table} holds lists, which have no order")
        frame = frame.sort(sort_by, descending=descending, nulls_last=True, maintain_order=True)
    for name in columns or ():
        _require(frame, table, name)
    return frame.select(list(dict.fromkeys(columns))) if columns else frame


def _require(frame: pl.DataFrame, table: str, column: str) -> None:
    if column not in frame.columns:
        raise no_such(f"column of {table} named", column, frame.columns)


def _in_steps(frame: pl.DataFrame, table: str, condition: Condition, sets: Mapping[str, frozenset[int]]) -> pl.Expr:
    _require(frame, table, condition.column)
    if condition.column != "step":
        raise NvtxmoeError(f"in_steps is for the column step, not {condition.column!r}")
    if condition.value not in sets:
        raise no_such("set of steps", str(condition.value), sets)
    return pl.col("step").is_in(sorted(sets[str(condition.value)]))


def _compared(frame: pl.DataFrame, table: str, condition: Condition) -> pl.Expr:
    _require(frame, table, condition.column)
    column, value = pl.col(condition.column), condition.value
    if condition.op == "is_empty":
        return column.is_null()
    if condition.op == "is_not_empty":
        return column.is_not_null()
    if value is None:
        raise NvtxmoeError(
            f"{condition.op} on {condition.column!r} has no value", remedy="Give one, or use is_empty for empty cells"
        )
    dtype = frame.schema[condition.column]
    kind, fits = (
        ("text", isinstance(value, str))
        if dtype == pl.String
        else ("true or false", isinstance(value, bool) and condition.op in ("==", "!="))
        if dtype == pl.Boolean
        else ("number", isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 63)
    )
    if dtype.is_nested() or not fits or (condition.op == "contains" and kind != "text"):
        holds = "lists" if dtype.is_nested() else kind
        raise NvtxmoeError(
            f"column {condition.column!r} of {table} holds {holds}: {condition.op} {value!r} does not fit it",
            remedy="Compare numbers with numbers and text with text; contains is for text",
        )
    if condition.op == "contains":
        return column.str.contains(str(value), literal=True)
    compared: pl.Expr = _COMPARISONS[condition.op](column, pl.lit(value))
    return compared
