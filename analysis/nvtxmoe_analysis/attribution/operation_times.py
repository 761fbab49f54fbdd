"""GPU operations whose times are impossible: they count in no sum.

The tolerances come from the golden captures (331,000 operations of H100 and H200): there an operation starts at least
3.8 us after its launch call; operations of different calls never overlap in one stream, and those of one graph replay
do by 1.4 us at most; the longest operation, a collective that waits, lasts 0.8 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.attribution.gpu_operations import STREAM, Operations, read_streams
from nvtxmoe_analysis.attribution.launches import Launches
from nvtxmoe_analysis.attribution.placed import (
    ENDS_BEFORE_START,
    LASTS_AN_HOUR,
    OVERRUNS_STREAM,
    STARTS_AN_HOUR_AFTER,
    STARTS_BEFORE_LAUNCH,
    PlacedBatch,
)
from nvtxmoe_analysis.core.arrays import Bools, Ints
from nvtxmoe_analysis.core.grouping import packed
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export

#: No operation lasts, or waits for its start, as long as this.
HOUR_NS = 3_600_000_000_000
#: The clocks of GPU and CPU agree better than this.
EARLY_NS = 100_000
#: An operation can run into the next call's work of its stream for less than this. With programmatic dependent launch a
#: kernel may begin while the kernel before it still waits, in a collective, for another rank.
OVERRUN_NS = 1_000_000_000

#: Rows of the file (``Operations.frame["at"]``) by kind.
RowsByKind = Mapping[int, Ints]


@dataclass(frozen=True)
class Judged:
    """What only all operations of an export together tell.

    Attributes:
        late: operations that overrun their stream (:func:`overruns`).
        clocks_agree: False if most operations start impossibly early or late for their calls. Then the clocks of GPU
            and CPU differ, which says nothing against a single row: launches do not judge starts.
    """

    late: RowsByKind = field(default_factory=dict)
    clocks_agree: bool = True


def time_reasons(start: Ints, end: Ints, called: Bools, launched_ns: Ints) -> npt.NDArray[np.int8]:
    """Why each operation's own times are impossible: index into ``placed.REASONS``, 0 where they are possible.

    Parameters:
        start, end: int64 [operations], ns, between ``nsys_tables.LEAST_NS`` and ``MOST_NS``, as the readers check.
        called: whether the launch call is known; launched_ns: when it began.
    """
    reason = np.zeros(len(start), dtype=np.int8)
    waited = np.where(called, start - np.where(called, launched_ns, 0), 0)
    reason[waited >= HOUR_NS] = STARTS_AN_HOUR_AFTER
    reason[waited < -EARLY_NS] = STARTS_BEFORE_LAUNCH
    lasted = end - start
    reason[lasted >= HOUR_NS] = LASTS_AN_HOUR
    reason[lasted < 0] = ENDS_BEFORE_START
    return reason


def may_overrun(batch: PlacedBatch) -> Ints:
    """Rows (``PlacedBatch.at``) of the operations that last longer than OVERRUN_NS, under an hour: usually none."""
    rows: Ints = batch.at[(batch.duration > OVERRUN_NS) & (batch.duration < HOUR_NS)]
    return rows


def overruns(export: Export, launches: Launches, suspects: RowsByKind, *, clocks_agree: bool) -> RowsByKind:
    """Those of the suspects that run on for more than OVERRUN_NS after a later call's work began in their stream.

    A stream is one of a process, a device and a context. Operations of one call (a graph's replay) may overlap. The
    operations are read once more, because few captures have any suspect.

    Parameters:
        suspects: see :func:`may_overrun`. clocks_agree: see :class:`Judged`.
    """
    parts = [pl.DataFrame(schema=_STREAMED)]
    for operations in read_streams(export):
        frame = operations.frame
        start, end = frame["start"].to_numpy(), frame["end"].to_numpy()
        pid = frame["globalPid"].fill_null(0).to_numpy() >> nsys_tables.TID_BITS
        call = launches.of(pid, frame["correlationId"].fill_null(-1).to_numpy(), start)
        possible = time_reasons(start, end, (call >= 0) & clocks_agree, launches.start_ns[call]) == 0
        rows = frame.with_columns(
            kind=pl.lit(operations.kind, pl.Int8),
            suspect=pl.Series(np.isin(frame["at"].to_numpy(), suspects.get(operations.kind, []))),
        )
        parts.append(rows.filter(pl.Series(possible)).select(*_STREAMED))
    rows = pl.concat(parts)
    key = packed([rows[name].fill_null(-1).to_numpy() for name in ("globalPid", *STREAM)])
    rows = rows.with_columns(stream=pl.Series(key))
    # Only streams with a suspect matter.
    rows = rows.filter(pl.col("stream").is_in(rows.filter("suspect")["stream"].unique().to_list()))
    rows = rows.sort("stream", "start", "end", maintain_order=True)
    fresh = pl.struct("stream", "correlationId").rle_id()
    first = rows.select("stream", "start", run=fresh).unique("run", keep="first", maintain_order=True)
    after = first.select(pl.col("run") - 1, pl.col("stream").alias("of"), pl.col("start").alias("next_ns"))
    late = (
        rows.with_columns(run=fresh)
        .filter("suspect")
        .join(after, on="run", how="inner")
        .filter((pl.col("of") == pl.col("stream")) & (pl.col("end") - pl.col("next_ns") > OVERRUN_NS))
    )
    return {int(kind): part["at"].to_numpy() for (kind,), part in late.group_by("kind")}


def reasons_of(operations: Operations, called: Bools, launched_ns: Ints, judged: Judged) -> npt.NDArray[np.int8]:
    """Why each operation's times are impossible, see :func:`time_reasons`; with those of :func:`overruns`."""
    frame = operations.frame
    reason = time_reasons(frame["start"].to_numpy(), frame["end"].to_numpy(), called & judged.clocks_agree, launched_ns)
    late = judged.late.get(operations.kind)
    if late is not None:
        reason[np.isin(frame["at"].to_numpy(), late) & (reason == 0)] = OVERRUNS_STREAM
    return reason


_STREAMED = {
    "globalPid": pl.Int64,
    **dict.fromkeys(STREAM, pl.Int64),
    **dict.fromkeys(("start", "end", "correlationId"), pl.Int64),
    "kind": pl.Int8,
    "at": pl.Int64,
    "suspect": pl.Boolean,
}
