"""Which rows of an export belong to a range of steps, with what their figures need."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe_analysis.attribution.launches import Launches
from nvtxmoe_analysis.attribution.ranges import Segments
from nvtxmoe_analysis.attribution.step_starts import StepStarts
from nvtxmoe_analysis.core.arrays import AnyInts, Bools, Ints
from nvtxmoe_analysis.core.latest import latest
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.events.decode import Events, decode_events
from nvtxmoe_analysis.events.nvtx import pid_of
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export
from nvtxmoe_analysis.readers.nsys_tables import Table
from nvtxmoe_analysis.run.idle_steps import idle_batches
from nvtxmoe_analysis.trimming.mark_steps import mark_steps


class StepCut:
    """A range of steps of an export, and what belongs to it.

    A step takes with it the work launched after it, up to the next step: figures of the step count that work. The
    ranges in which a graph was captured stay if a kept step replays one of the graph's nodes.

    Parameters:
        nvtx: see ``read_nvtx``.
        segments: its flattened ranges.
        first, last: step numbers, both inclusive; None for no limit.

    Raises:
        NvtxmoeError: no rank has a step in that range.
    """

    def __init__(
        self, export: Export, nvtx: pl.DataFrame, segments: Segments, first: int | None, last: int | None
    ) -> None:
        self._export, self._nvtx, self._segments = export, nvtx, segments
        self._first, self._last = first, last
        batches = _batches(decode_events(export, nvtx))
        in_range = batches.filter(self._inside("step", "step"))
        steps = batches.filter(~pl.col("idle"))
        if in_range.filter(~pl.col("idle")).is_empty():
            raise self._no_step(export, steps)
        self._kept_ranges = in_range["row"]
        # In the order of the steps' rows (of ``Events.steps``); the last entry is for -1, no step.
        by_row = steps.with_columns(keep=self._inside("step", "step")).sort("step_row")["keep"].to_numpy()
        self._keep_step: Bools = np.append(by_row, False)
        self._idle = batches.filter("idle").with_columns(keep=self._inside("step", "step"))
        self._begin_ns = int(in_range["start"].to_numpy().min())

    def in_kept_step(self, tid: Ints, time_ns: Ints) -> Bools:
        """Return True for each thread and time (ns) inside a kept step."""
        keep: Bools = self._keep_step[self._segments.step[self._segments.find(tid, time_ns)]]
        return keep

    def operations(self, frames: Mapping[Table, pl.DataFrame]) -> dict[Table, pl.DataFrame]:
        """Return the GPU operations that belong to the kept steps.

        An operation whose launch call is lost belongs to no step: it stays if it starts while kept ones run.
        """
        launches = Launches(self._export, self._segments)
        calls = {table: _calls(launches, frame) for table, frame in frames.items()}
        lost = {int(c) for t, f in frames.items() for c in f["correlationId"].filter(calls[t] < 0).drop_nulls()}
        if lost:  # of calls whose name does not say that they launch
            launches.add(lost)
            calls = {table: _calls(launches, frame) for table, frame in frames.items()}
        keep = {table: self._belongs(launches, frame, calls[table].to_numpy()) for table, frame in frames.items()}
        ends = [frame["end"].filter(pl.Series(keep[table])).max() for table, frame in frames.items()]
        end_ns = max((int(end) for end in ends if end is not None), default=self._begin_ns)
        return {
            table: frame.filter(
                pl.Series(keep[table]) | ((calls[table] < 0) & frame["start"].is_between(self._begin_ns, end_ns))
            )
            for table, frame in frames.items()
        }

    def events(self, rows: pl.DataFrame, nodes: pl.DataFrame) -> pl.DataFrame:
        """Return the ranges and marks that belong to the kept steps; marks of no step, such as moe.meta, stay.

        A payload of several steps stays if all of them are in the range.

        Parameters:
            rows: of ``read_nvtx``.
            nodes: the graph nodes that are kept: ``globalTid``, ``start``.
        """
        outside = mark_steps(self._export, self._nvtx).filter(~self._inside("first", "last"))
        marks = rows.filter(pl.col("eventType") != nsys_tables.NVTX_PUSH_POP).join(outside, on="row", how="anti")
        ranges = rows.filter(pl.col("eventType") == nsys_tables.NVTX_PUSH_POP)
        batches = ranges.filter(pl.col("name").is_in([schema.STEP, schema.IDLE]))
        others = ranges.join(batches, on="row", how="anti")
        tid, start = others["globalTid"].fill_null(0).to_numpy(), others["start"].to_numpy()
        segment, pid = self._segments.find(tid, start), tid >> nsys_tables.TID_BITS
        keep = self._placed(segment, StepStarts(self._segments).before(pid, start), pid, start)
        in_no_batch = (self._segments.step[segment] < 0) & ~self._segments.idle[segment]
        keep |= in_no_batch & others["row"].is_in(_around(others, nodes).implode()).to_numpy()
        kept_batches = batches.filter(pl.col("row").is_in(self._kept_ranges.implode()))
        return pl.concat([marks, kept_batches, others.filter(pl.Series(keep))])

    def _inside(self, first: str, last: str) -> pl.Expr:
        """Boolean: whether the steps from one column to another, both inclusive, are all in the range."""
        inside = pl.lit(True)
        if self._first is not None:
            inside &= pl.col(first) >= self._first
        if self._last is not None:
            inside &= pl.col(last) <= self._last
        return inside.fill_null(False)

    def _belongs(self, launches: Launches, frame: pl.DataFrame, call: Ints) -> Bools:
        pid = frame["globalPid"].fill_null(0).to_numpy() >> nsys_tables.TID_BITS
        return self._placed(launches.segment[call], launches.after_step[call], pid, launches.start_ns[call])

    def _placed(self, segment: AnyInts, after_step: AnyInts, pid: Ints, time_ns: Ints) -> Bools:
        """Return True for what began in a kept step, in a kept idle batch, or after a kept step."""
        step, idle = self._segments.step[segment], self._segments.idle[segment]
        batch = latest(self._idle["process"].to_numpy(), self._idle["start"].to_numpy(), pid, time_ns)
        keep_idle = np.append(self._idle["keep"].to_numpy(), False)[batch]
        keep: Bools = np.where(step >= 0, self._keep_step[step], np.where(idle, keep_idle, self._keep_step[after_step]))
        return keep

    def _no_step(self, export: Export, steps: pl.DataFrame) -> NvtxmoeError:
        step_range = f"{'' if self._first is None else self._first}:{'' if self._last is None else self._last}"
        numbers = steps["step"].drop_nulls()
        captured = f"{number(numbers.n_unique(), 'step')} ({numbers.min()!s} to {numbers.max()!s})"
        return NvtxmoeError(
            f"none of its {captured} is in {step_range}" if len(numbers) else "the export has no step",
            where=export.source,
            remedy="Name other steps with --steps FIRST:LAST" if len(numbers) else "Capture steps too",
        )


def _batches(events: Events) -> pl.DataFrame:
    """Return steps and idle batches: ``row``, ``start`` (ns), ``step``, ``idle``, ``step_row``, ``process``.

    One without a number has that of the batch before it in its process, or, if there is none, after it.
    ``process`` is that of the thread, as GPU operations have it; ``step_row`` is null for idle batches.
    """
    columns = ("row", "pid", "globalTid", "start")
    steps = events.steps.with_row_index("step_row").select(
        *columns, "step", idle=False, step_row=pl.col("step_row").cast(pl.Int64)
    )
    idle = (
        events.ranges.filter(name=schema.IDLE)
        .select(columns)
        .join(idle_batches(events).select("row", "step"), on="row", how="left")
        .with_columns(idle=True, step_row=pl.lit(None, pl.Int64))
    )
    batches = pl.concat([steps, idle]).sort("pid", "start", "row")
    step = pl.col("step").fill_null(strategy="forward").fill_null(strategy="backward").over("pid")
    return batches.with_columns(step, process=pid_of("globalTid"))


def _calls(launches: Launches, frame: pl.DataFrame) -> pl.Series:
    """Return the call of each operation, -1 where its row is missing."""
    pid = frame["globalPid"].fill_null(0).to_numpy() >> nsys_tables.TID_BITS
    return pl.Series(launches.of(pid, frame["correlationId"].fill_null(-1).to_numpy(), frame["start"].to_numpy()))


def _around(ranges: pl.DataFrame, nodes: pl.DataFrame) -> pl.Series:
    """Return the rows of ranges in which a node was created on their thread."""
    created = nodes.select("globalTid", "start", created=pl.col("start")).sort("start")
    first = ranges.sort("start").join_asof(
        created, on="start", by="globalTid", strategy="forward", check_sortedness=False
    )
    return first.filter((pl.col("created") < pl.col("end")).fill_null(pl.col("created").is_not_null()))["row"]
