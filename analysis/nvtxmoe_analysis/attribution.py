"""Every GPU operation to its (step, layer, phase), or to the reason why it has none. docs/attribution.md.

The launch call decides the step. The launch call (eager) or the creation of the original graph node (graph)
decides layer and phase. Every join carries the process; what can't be placed is counted by reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.activity import KINDS, Operations, read_operations
from nvtxmoe_analysis.exports import tables
from nvtxmoe_analysis.exports.base import Export
from nvtxmoe_analysis.launches import Launches
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


@dataclass(frozen=True)
class Attribution:
    """GPU operations of one export, placed.

    Attributes:
        in_layer: one row an operation in a layer: ``step_row`` (row of ``Events.steps``), ``layer``, ``phase``
            (index into PHASE_NAMES), ``kind`` (index into KINDS), ``name`` (key of ``names``), ``graph`` (Boolean),
            ``start``, ``end`` (ns). In time order within each kind of operation.
        coverage: ``class``, ``reason``, ``kind``, ``operations``, ``time_ns`` of everything recorded.
        outside_layers: ``name``, ``kind``, ``operations``, ``time_ns`` of work in steps outside layers.
        names: kernel names by StringIds id, and labels of copies and memsets by negative ids.
        nodes_unresolved: graph node ids of replayed operations that lead to no creation.
        partial_graphs: positions (of ``Launches``) of graph launches in steps that gave fewer operations than
            another launch of the same graph.
    """

    in_layer: pl.DataFrame
    coverage: pl.DataFrame
    outside_layers: pl.DataFrame
    names: dict[int, str]
    nodes_unresolved: int
    partial_graphs: npt.NDArray[np.int32]


def attribute(export: Export, segments: Segments, launches: Launches) -> Attribution:
    """Place every kernel, copy and memset of an export.

    Parameters:
        segments: the flattened ranges of the export.
        launches: its runtime calls; those that gave GPU work are marked used.
    """
    nodes = _Nodes(export, segments)
    parts: list[pl.DataFrame] = []
    coverage: list[pl.DataFrame] = []
    outside: list[pl.DataFrame] = []
    names: dict[int, str] = {}
    for operations in read_operations(export):
        placed = _place(operations, segments, launches, nodes)
        coverage.append(_coverage(placed))
        parts.append(placed.filter(pl.col("class") == IN_LAYER).drop("class", "reason"))
        outside.append(_by_name(placed.filter(pl.col("class") == IN_STEP)))
        names |= operations.names
    return Attribution(
        in_layer=pl.concat(parts),
        coverage=_total(pl.concat(coverage), ["class", "reason", "kind"]),
        outside_layers=_total(pl.concat(outside), ["name", "kind"]),
        names=names,
        nodes_unresolved=len(nodes.unresolved),
        partial_graphs=nodes.partial_graphs(),
    )


def _place(operations: Operations, segments: Segments, launches: Launches, nodes: _Nodes) -> pl.DataFrame:
    frame = operations.frame
    pid = _pid(frame["globalPid"])
    call = launches.of(pid, frame["correlationId"])
    launches.use(call)
    segment = np.where(call >= 0, launches.segment[call], 0)
    step_row = segments.step[segment]
    layer, phase = segments.layer[segment], segments.phase[segment]
    crossing = segments.crossing[segment]
    graph = frame["graphNodeId"].is_not_null().to_numpy()
    resolved = np.ones(len(frame), dtype=np.bool_)
    if graph.any():
        node_segment = nodes.find(pid[graph], frame["graphNodeId"].drop_nulls().to_numpy(), call[graph])
        resolved[graph] = node_segment >= 0
        layer, phase, crossing = layer.copy(), phase.copy(), crossing.copy()
        layer[graph], phase[graph] = segments.layer[node_segment], segments.phase[node_segment]
        # A lost node points at the last segment; resolved says so. The step's own crossing still counts.
        crossing[graph] |= segments.crossing[node_segment] & (node_segment >= 0)
    in_step = step_row >= 0
    reason = np.full(len(frame), NO_REASON, dtype=np.int8)
    place = np.where(in_step, np.where(layer >= 0, IN_LAYER, IN_STEP), OUTSIDE).astype(np.int8)
    reason[~in_step & segments.idle[segment]] = IN_IDLE
    whole_graph = operations.kind == KINDS.index("graph")
    for condition, why in (
        (in_step & ~resolved, NODE_UNRESOLVED),
        (in_step & whole_graph, GRAPH_LEVEL),
        (crossing & (call >= 0), CROSSING),
        (call < 0, NO_LAUNCH),
        (frame["correlationId"].fill_null(0).to_numpy() == 0, NO_CORRELATION),
    ):
        place[condition] = UNPLACED
        reason[condition] = why
    return pl.DataFrame(
        {
            "step_row": step_row,
            "layer": layer,
            "phase": phase,
            "kind": np.full(len(frame), operations.kind, dtype=np.int8),
            "name": frame["name"],
            "graph": graph,
            "start": frame["start"],
            "end": frame["end"],
            "class": place,
            "reason": reason,
        }
    )


def _coverage(placed: pl.DataFrame) -> pl.DataFrame:
    return placed.group_by("class", "reason", "kind").agg(
        pl.len().cast(pl.Int64).alias("operations"), (pl.col("end") - pl.col("start")).sum().alias("time_ns")
    )


def _by_name(placed: pl.DataFrame) -> pl.DataFrame:
    return placed.group_by("name", "kind").agg(
        pl.len().cast(pl.Int64).alias("operations"), (pl.col("end") - pl.col("start")).sum().alias("time_ns")
    )


def _total(parts: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    return parts.group_by(by).agg(pl.col("operations").sum(), pl.col("time_ns").sum()).sort(by)


def _pid(column: pl.Series) -> Ints:
    return (column.fill_null(0).to_numpy() >> tables.PID_SHIFT) & tables.PID_MASK


class _Nodes:
    """From a replayed graph node to the segment in which its original was created."""

    def __init__(self, export: Export, segments: Segments) -> None:
        frame = export.read(tables.GRAPH_NODES).with_columns(
            pid=(pl.col("globalTid") // (1 << tables.PID_SHIFT)) & tables.PID_MASK
        )
        clones = frame.filter(pl.col("originalGraphNodeId").is_not_null())
        created = frame.filter(pl.col("originalGraphNodeId").is_null())
        own = created.select("pid", "graphNodeId", "globalTid", "start").unique(
            ["pid", "graphNodeId"], keep="first", maintain_order=True
        )
        cloned = (
            clones.select("pid", "graphNodeId", "originalGraphNodeId")
            .unique(["pid", "graphNodeId"], keep="first", maintain_order=True)
            .join(
                own.rename({"graphNodeId": "originalGraphNodeId"}),
                on=["pid", "originalGraphNodeId"],
                how="left",
                maintain_order="left",
            )
            .drop("originalGraphNodeId")
        )
        # A replayed id has two rows; the one that names its original leads to the layer.
        direct = own.join(cloned, on=["pid", "graphNodeId"], how="anti", maintain_order="left")
        both = pl.concat([cloned.select(own.columns), direct])
        known = both["start"].is_not_null().to_numpy()
        self._segment = np.full(len(both) + 1, -1, dtype=np.int32)
        found = both.filter(pl.col("start").is_not_null())
        self._segment[:-1][known] = segments.find(found["globalTid"].to_numpy(), found["start"].to_numpy())
        self._keys = both.select("pid", "graphNodeId").with_row_index("node")
        self._replays: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]] = []
        self.unresolved: set[tuple[int, int]] = set()

    def find(self, pid: Ints, node: Ints, call: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Segment of each node's original creation, -1 where there is none; notes which call replayed it."""
        asked = pl.DataFrame({"pid": pid, "graphNodeId": node})
        found = asked.join(self._keys, on=["pid", "graphNodeId"], how="left", maintain_order="left")
        row = found["node"].fill_null(len(self._segment) - 1).to_numpy().astype(np.int32)
        segment: npt.NDArray[np.int32] = self._segment[row]
        lost = asked.filter(pl.Series(segment < 0)).unique()
        self.unresolved.update((int(p), int(n)) for p, n in lost.rows())
        self._replays.append((call[call >= 0], row[call >= 0]))
        return segment

    def partial_graphs(self) -> npt.NDArray[np.int32]:
        """Calls that replayed fewer nodes than another call that shares a node with them."""
        if not self._replays:
            return np.zeros(0, dtype=np.int32)
        call = np.concatenate([c for c, _ in self._replays])
        row = np.concatenate([r for _, r in self._replays])
        calls, at = np.unique(call, return_inverse=True)
        size = np.bincount(at, minlength=len(calls))
        most = np.zeros(len(self._segment), dtype=np.int64)
        np.maximum.at(most, row, size[at])
        most[-1] = 0  # nodes that are nowhere say nothing of each other
        expected = np.zeros(len(calls), dtype=np.int64)
        np.maximum.at(expected, at, most[row])
        return calls[size < expected]
