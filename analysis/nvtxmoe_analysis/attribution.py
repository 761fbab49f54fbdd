"""Every GPU operation to its (step, layer, phase), or to the reason why it has none. docs/attribution.md.

The launch call decides the step. The launch call (eager) or the creation of the original graph node (graph)
decides layer and phase. Every join carries the process; what can't be placed is counted by reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.activity import KINDS, Operations, operation_names, read_operations
from nvtxmoe_analysis.exports import tables
from nvtxmoe_analysis.exports.base import Export
from nvtxmoe_analysis.graph_nodes import GraphNodes, Replayed
from nvtxmoe_analysis.launches import Launches
from nvtxmoe_analysis.parallel import ordered_map
from nvtxmoe_analysis.progress import Progress
from nvtxmoe_analysis.ranges import Segments

Ints = npt.NDArray[np.int64]

#: Classes of operations, by code.
CLASSES = ("in_layer", "in_step", "outside_steps", "unplaced")
IN_LAYER, IN_STEP, OUTSIDE, UNPLACED = range(4)

#: Reasons, by code. Those of class ``outside_steps`` say what kind of outside; those of ``unplaced`` what is missing.
REASONS = (
    "",
    "idle",
    "no_correlation_id",
    "launch_call_missing",
    "crossing_ranges",
    "graph_node_unresolved",
    "graph_level_tracing",
)
(NO_REASON, IN_IDLE, NO_CORRELATION, NO_LAUNCH, CROSSING, NODE_UNRESOLVED, GRAPH_LEVEL) = range(7)

WHOLE_GRAPH = KINDS.index("graph")
CODES = len(CLASSES) * len(REASONS) * len(KINDS)


@dataclass(frozen=True)
class Attribution:
    """GPU operations of one export, placed.

    Attributes:
        in_layer: one row an operation in a layer: ``step_row`` (row of ``Events.steps``), ``layer``, ``phase``
            (index into PHASE_NAMES), ``kind`` (index into KINDS), ``name`` (key of ``names``), ``graph`` (Boolean),
            ``start``, ``end`` (ns).
        coverage: ``class``, ``reason``, ``kind``, ``operations``, ``time_ns`` of everything recorded.
        outside_layers: ``name``, ``kind``, ``operations``, ``time_ns`` of work in steps outside layers.
        names: see ``activity.operation_names``.
        nodes_unresolved: graph node ids of replayed operations that lead to no creation.
        partial_graphs: calls (of ``Launches``) of graph launches that gave fewer operations than another launch of
            the same graph.
    """

    in_layer: pl.DataFrame
    coverage: pl.DataFrame
    outside_layers: pl.DataFrame
    names: dict[int, str]
    nodes_unresolved: int
    partial_graphs: npt.NDArray[np.int32]


def attribute(export: Export, segments: Segments, launches: Launches, progress: Progress | None = None) -> Attribution:
    """Place every kernel, copy and memset of an export.

    Parameters:
        segments: the flattened ranges of the export.
        launches: its launch calls; those that gave GPU work are marked used.
    """
    nodes = GraphNodes(export, segments)

    def work(operations: Operations) -> _Placed:
        return _place(operations, segments, launches, nodes)

    parts = list(ordered_map(work, read_operations(export, progress or Progress())))
    lost = [part.lost for part in parts if part.lost is not None]
    if lost:
        # Calls whose name does not say that they launch: read them too, then try again.
        launches.add({int(c) for operations in lost for c in operations.frame["correlationId"].drop_nulls().unique()})
        parts += [_place(operations, segments, launches, nodes, last=True) for operations in lost]
    in_layer = [_NOTHING, *(part.in_layer for part in parts)]
    outside = [part.in_step for part in parts]
    tally = sum((part.tally for part in parts), np.zeros((2, CODES), dtype=np.int64))
    replays = [part.replayed for part in parts]
    beside = _total(pl.concat(outside), ["name", "kind"]) if outside else _total(_BY_NAME, ["name", "kind"])
    layers = pl.concat(in_layer)
    named = set(layers["name"].unique().to_list()) | set(beside["name"].to_list())
    return Attribution(
        in_layer=layers,
        coverage=_coverage(tally),
        outside_layers=beside,
        names=operation_names(export, named),
        nodes_unresolved=len(set().union(*(part.unresolved for part in parts))),
        partial_graphs=nodes.partial_graphs(replays),
    )


def _pid(column: pl.Series) -> Ints:
    return (column.fill_null(0).to_numpy() >> tables.PID_SHIFT) & tables.PID_MASK


@dataclass(frozen=True)
class _Placed:
    in_layer: pl.DataFrame
    in_step: pl.DataFrame
    tally: Ints
    replayed: Replayed
    unresolved: set[tuple[int, int]]
    lost: Operations | None


def _place(
    operations: Operations, segments: Segments, launches: Launches, nodes: GraphNodes, *, last: bool = False
) -> _Placed:
    """Place a batch. Operations whose launch call has not been read are handed back, unless it is the last try."""
    lost = None
    call = launches.of(_pid(operations.frame["globalPid"]), operations.frame["correlationId"].fill_null(-1).to_numpy())
    if not last and (call < 0).any():
        lost = Operations(operations.kind, operations.frame.filter(pl.Series(call < 0)))
        operations = Operations(operations.kind, operations.frame.filter(pl.Series(call >= 0)))
        call = call[call >= 0]
    launches.use(call)
    frame = operations.frame
    segment = launches.segment[call]
    step_row, crossing, idle = segments.step[segment], segments.crossing[segment], segments.idle[segment]
    # Where the operation's own ranges are looked for: those of its call, or of its node's creation.
    graph = frame["graphNodeId"].is_not_null().to_numpy()
    at = np.flatnonzero(graph)
    found = nodes.find(_pid(frame["globalPid"])[at], frame["graphNodeId"].drop_nulls().to_numpy())
    birth = segment.copy()
    birth[at] = found.segment
    resolved = birth >= 0
    layer = segments.layer[birth]
    in_step = step_row >= 0
    reason = np.where(~in_step & idle, IN_IDLE, NO_REASON).astype(np.int8)
    place = np.where(in_step, np.where(layer >= 0, IN_LAYER, IN_STEP), OUTSIDE).astype(np.int8)
    for condition, why in (
        (in_step & ~resolved, NODE_UNRESOLVED),
        (in_step if operations.kind == WHOLE_GRAPH else np.zeros(0, dtype=np.intp), GRAPH_LEVEL),
        (crossing | (segments.crossing[birth] & resolved), CROSSING),
        (call < 0, NO_LAUNCH),
        (frame["correlationId"].fill_null(0).to_numpy() == 0, NO_CORRELATION),
    ):
        place[condition] = UNPLACED
        reason[condition] = why
    duration = frame["end"].to_numpy() - frame["start"].to_numpy()
    inside = np.flatnonzero(place == IN_LAYER)
    beside = np.flatnonzero(place == IN_STEP)
    return _Placed(
        in_layer=pl.DataFrame(
            {
                "step_row": step_row[inside],
                "layer": layer[inside],
                "phase": segments.phase[birth[inside]],
                "kind": np.full(len(inside), operations.kind, dtype=np.int8),
                "name": frame["name"].gather(inside),
                "graph": graph[inside],
                "start": frame["start"].gather(inside),
                "end": frame["end"].gather(inside),
            }
        ),
        in_step=_total(
            pl.DataFrame(
                {
                    "name": frame["name"].gather(beside),
                    "kind": np.full(len(beside), operations.kind, dtype=np.int8),
                    "operations": np.ones(len(beside), dtype=np.int64),
                    "time_ns": duration[beside],
                }
            ),
            ["name", "kind"],
        ),
        tally=_tally(place, reason, operations.kind, duration),
        replayed=(call[at], found.row),
        unresolved=found.unresolved,
        lost=lost,
    )


def _tally(place: npt.NDArray[np.int8], reason: npt.NDArray[np.int8], kind: int, duration: Ints) -> Ints:
    """[operations, ns] by class, reason and kind, flattened."""
    code = (place.astype(np.intp) * len(REASONS) + reason) * len(KINDS) + kind
    time_ns = np.zeros(CODES, dtype=np.int64)
    for one in np.unique(code):
        time_ns[one] = duration[code == one].sum()
    return np.stack([np.bincount(code, minlength=CODES), time_ns])


def _coverage(tally: Ints) -> pl.DataFrame:
    codes = np.flatnonzero(tally[0])
    shape = (len(CLASSES), len(REASONS), len(KINDS))
    place, reason, kind = np.unravel_index(codes, shape)
    return pl.DataFrame(
        {
            "class": place.astype(np.int8),
            "reason": reason.astype(np.int8),
            "kind": kind.astype(np.int8),
            "operations": tally[0, codes],
            "time_ns": tally[1, codes],
        }
    )


def _total(parts: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    return parts.group_by(by).agg(pl.col("operations").sum(), pl.col("time_ns").sum()).sort(by)


_BY_NAME = pl.DataFrame(schema={"name": pl.Int64, "kind": pl.Int8, "operations": pl.Int64, "time_ns": pl.Int64})
_NOTHING = pl.DataFrame(
    schema={
        "step_row": pl.Int32,
        "layer": pl.Int32,
        "phase": pl.Int8,
        "kind": pl.Int8,
        "name": pl.Int64,
        "graph": pl.Boolean,
        "start": pl.Int64,
        "end": pl.Int64,
    }
)
