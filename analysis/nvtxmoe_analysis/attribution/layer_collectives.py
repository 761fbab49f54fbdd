"""Collective kernels of steps, each with the layer that it belongs to.

One that was launched (or whose graph node was created) in ranges of a layer belongs there. One that runs after its
layer's range, where capture put no moe.collective around it, can't be told by ranges. It is tied to the layer by one
rule, and flagged ``inferred``: it is the first kernel after the layer's range, on that thread, in the same step (or
the capture of the same graph), before any other range of ours begins. Copies may come before it: vLLM's eager
all-reduce first copies its input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.attribution.kernel_classes import COLLECTIVE, KERNEL
from nvtxmoe_analysis.attribution.placed import IN_LAYER, IN_STEP, PlacedBatch
from nvtxmoe_analysis.attribution.ranges import PHASE_NAMES, TIME_BITS, Segments
from nvtxmoe_analysis.core.grouping import dense
from nvtxmoe_analysis.readers import nsys_tables

PHASE_COLLECTIVE = PHASE_NAMES.index("collective")

#: Columns of :meth:`Collectives.frame`.
COLUMNS = {
    "step_row": pl.Int32,
    "layer": pl.Int32,
    "inferred": pl.Boolean,
    "phase": pl.Int8,
    "name": pl.Int64,
    "graph": pl.Boolean,
    "start": pl.Int64,
    "end": pl.Int64,
}


@dataclass(frozen=True)
class Part:
    """Of one batch: its collectives in steps (COLUMNS without ``inferred``, and where and when
    each was launched or its node created), and
    the first kernel of each gap (``origin_segment``, ``graph``, ``first``)."""

    rows: pl.DataFrame
    first: pl.DataFrame


class Collectives:
    """Picks the collectives of batches, then ties them to layers.

    Parameters:
        segments: the flattened ranges.
        infer: whether the export has any; if not, nothing is looked for.
    """

    def __init__(self, segments: Segments, *, infer: bool) -> None:
        self._infer = infer
        self._segments = segments
        self._after = layer_before(segments) if infer else np.zeros(0, dtype=np.int32)

    def pick(self, batch: PlacedBatch, classes: npt.NDArray[np.int8]) -> Part:
        """The part of a batch; ``classes`` as of ``KernelClasses.of``."""
        if not self._infer or batch.kind != KERNEL:
            return Part(_NO_FOUND, _NO_FIRST)
        in_step = (batch.place == IN_LAYER) | (batch.place == IN_STEP)
        at = np.flatnonzero(in_step & (classes == COLLECTIVE))
        collectives = pl.DataFrame(
            {
                "step_row": batch.step_row[at],
                "layer": batch.layer[at],
                "phase": batch.phase[at],
                "name": batch.name.gather(at),
                "graph": batch.graph[at],
                "start": batch.start.gather(at),
                "end": batch.end.gather(at),
                "origin_segment": batch.origin_segment[at],
                "origin_order": batch.origin_order[at],
                "graph_capture_start_ns": batch.graph_capture_start_ns[at],
            }
        )
        gap = np.flatnonzero((batch.place == IN_STEP) & (self._after[batch.origin_segment] >= 0))
        first = (
            pl.DataFrame(
                {
                    "origin_segment": batch.origin_segment[gap],
                    "graph": batch.graph[gap],
                    "first": batch.origin_order[gap],
                }
            )
            .group_by("origin_segment", "graph")
            .agg(pl.col("first").min())
        )
        return Part(collectives, first)

    def frame(self, parts: list[Part]) -> pl.DataFrame:
        """All of them: COLUMNS, in the order in which they ran; ``layer`` -1 and ``phase`` 0 where tied to none."""
        collectives = pl.concat([_NO_FOUND, *(part.rows for part in parts)])
        first = (
            pl.concat([_NO_FIRST, *(part.first for part in parts)])
            .group_by("origin_segment", "graph")
            .agg(pl.col("first").min())
        )
        collectives = collectives.join(first, on=["origin_segment", "graph"], how="left", maintain_order="left")
        origin_segment = collectives["origin_segment"].to_numpy()
        inferred = (
            (pl.col("layer") < 0)
            & (pl.col("origin_order") == pl.col("first")).fill_null(False)
            & (
                ~pl.col("graph") | (pl.col("graph_capture_start_ns") < pl.col("gap_ns"))
            )  # the graph was captured during the layer too
        )
        return (
            collectives.with_columns(
                after=pl.Series(self._after[origin_segment], dtype=pl.Int32),
                gap_ns=pl.Series(self._segments.start_ns(origin_segment), dtype=pl.Int64),
            )
            .with_columns(inferred=inferred)
            .with_columns(layer=pl.when("inferred").then("after").otherwise("layer"))
            .select(list(COLUMNS))
            .sort("start", "end", maintain_order=True)
        )


def layer_before(segments: Segments) -> npt.NDArray[np.int32]:
    """Of every segment that comes right after a layer's range that layer, else -1: int32 [segments].

    Such a segment is on the layer's thread, in the same step (or, of a graph's capture outside steps, in none), and
    in no range of ours but the step. A layer that the process put a moe.collective range for anywhere has none: its
    collective is told by that range.
    """
    after = np.full(len(segments.step), -1, dtype=np.int32)
    thread = segments.keys >> TIME_BITS
    current, before = slice(1, None), slice(0, -1)
    follows = (
        (thread[current] == thread[before])
        & (segments.layer[current] < 0)
        & (segments.layer[before] >= 0)
        & (segments.step[current] == segments.step[before])
        & ~(segments.crossing[current] | segments.crossing[before])
        & ~(segments.idle[current] | segments.idle[before])
    )
    at = np.flatnonzero(follows)
    after[at + 1] = segments.layer[at]
    collective_segments = np.flatnonzero(segments.phase == PHASE_COLLECTIVE)
    if len(collective_segments):
        pid = np.zeros(len(thread), dtype=np.int64)
        # Numbered, because a whole process id does not fit above a layer's 32 bits.
        pid[1:] = dense(segments.tids[thread[1:]] >> nsys_tables.TID_BITS)[1] + 1
        key = (pid << 32) | np.maximum(after, 0)
        after[np.isin(key, (pid[collective_segments] << 32) | segments.layer[collective_segments])] = -1
    return after


_NO_FOUND = pl.DataFrame(
    schema={
        **{c: t for c, t in COLUMNS.items() if c != "inferred"},
        "origin_segment": pl.Int32,
        "origin_order": pl.Int64,
        "graph_capture_start_ns": pl.Int64,
    }
)
_NO_FIRST = pl.DataFrame(schema={"origin_segment": pl.Int32, "graph": pl.Boolean, "first": pl.Int64})
