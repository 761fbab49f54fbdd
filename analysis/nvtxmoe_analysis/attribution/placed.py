"""A batch of GPU operations with where they belong: what attribution finds and the summaries of work add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.attribution.gpu_operations import KINDS
from nvtxmoe_analysis.core.arrays import Ints

#: Classes of operations, by code.
CLASSES = ("in_layer", "in_step", "outside_steps", "unplaced", "implausible")
IN_LAYER, IN_STEP, OUTSIDE, UNPLACED, IMPLAUSIBLE = range(5)

#: Reasons, by code. Those of class ``outside_steps`` say what kind of outside; those of ``unplaced`` what is missing;
#: those of ``implausible`` what is impossible in the operation's times (see ``operation_times``).
REASONS = (
    "",
    "idle",
    "no_correlation_id",
    "launch_call_missing",
    "crossing_ranges",
    "graph_node_unresolved",
    "graph_level_tracing",
    "ends_before_start",
    "lasts_an_hour",
    "starts_before_launch",
    "starts_an_hour_after_launch",
    "overruns_its_stream",
)
(NO_REASON, IN_IDLE, NO_CORRELATION, NO_LAUNCH, CROSSING, NODE_UNRESOLVED, GRAPH_LEVEL) = range(7)
(ENDS_BEFORE_START, LASTS_AN_HOUR, STARTS_BEFORE_LAUNCH, STARTS_AN_HOUR_AFTER, OVERRUNS_STREAM) = range(7, 12)

WHOLE_GRAPH = KINDS.index("graph")


@dataclass(frozen=True)
class PlacedBatch:
    """Operations of one kind, placed; all of one length.

    Attributes:
        kind: index into KINDS.
        place, reason: int8, indices into CLASSES and REASONS.
        pid: int64, the process.
        step_row: int32, row of the step in which each was launched, -1 outside steps. It is told of unplaced ones
            too, but for those whose launch call is missing or stands where ranges cross.
        after_step: int32, of those launched outside steps the row of the last step that had begun in the process, -1
            where none had; -1 of all others.
        origin_segment: int32, the segment (of ``Segments``) in which each was launched eagerly, or its graph
            node created.
        layer: int32, -1 outside layers; phase: int8, index into PHASE_NAMES.
        graph: whether a graph launch replayed it.
        origin_order: int64, rises in the order of launches (eager), of creations (graph).
        graph_capture_start_ns: int64, when the capture of its graph began (ns); -1 if launched eagerly.
        name: see ``Operations.frame``. start, end: ns.
        at: int64, the row's position among those of its kind in the file.
        disordered: how many are out of their streams' order (``order.operations_disordered``).
        overlapping: how many go on beside later ones of their streams (``order.operations_overlapping``).
    """

    kind: int
    place: npt.NDArray[np.int8]
    reason: npt.NDArray[np.int8]
    pid: Ints
    step_row: npt.NDArray[np.int32]
    after_step: npt.NDArray[np.int32]
    origin_segment: npt.NDArray[np.int32]
    layer: npt.NDArray[np.int32]
    phase: npt.NDArray[np.int8]
    graph: npt.NDArray[np.bool_]
    origin_order: Ints
    graph_capture_start_ns: Ints
    name: pl.Series
    start: pl.Series
    end: pl.Series
    at: Ints
    disordered: int = 0
    overlapping: int = 0

    @property
    def duration(self) -> Ints:
        """Nanoseconds of each."""
        lasted: npt.NDArray[Any] = self.end.to_numpy() - self.start.to_numpy()
        return lasted
