"""From a replayed CUDA-graph node to the ranges in which its original was created (docs/attribution.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.attribution.ranges import Segments
from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.events.nvtx import pid_of
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export

Int32s = npt.NDArray[np.int32]


#: Calls and the rows of the nodes that they replayed (``NodeLookup.row``).
Replayed = tuple[Int32s, Int32s]


@dataclass(frozen=True)
class NodeLookup:
    """Nodes looked up.

    Attributes:
        segment: in which each node's original was created, -1 where there is no creation.
        row: a number for each node, -1 likewise.
        created: when each node's original was created (ns), -1 likewise.
        begun: when the first node of the original's graph was created (ns), -1 likewise.
        unresolved: (pid, node) of those.
    """

    segment: Int32s
    row: Int32s
    created: Ints
    begun: Ints
    unresolved: set[tuple[int, int]]


class GraphNodes:
    """The graph nodes of an export.

    A replayed id has two rows; the one that names its original leads to the original's own creation row, and that
    to the ranges then open on its thread. All of it within one process.
    """

    def __init__(self, export: Export, segments: Segments) -> None:
        nodes = _resolved(export)
        self._pids = nodes["pid"].unique().sort().to_numpy()
        self._idents = nodes["graphNodeId"].unique().sort().to_numpy()
        known = nodes["start"].is_not_null().to_numpy()
        segment = np.full(len(nodes), -1, dtype=np.int32)
        created = nodes.filter(pl.Series(known))
        segment[known] = segments.find(created["globalTid"].to_numpy(), created["start"].to_numpy())
        # A table by process and node: ids repeat between processes, so it is nearly full. The last row and column
        # stand for what is not there.
        shape = (len(self._pids) + 1, len(self._idents) + 1)
        self._segment = np.full(shape, -1, dtype=np.int32)
        slots = np.searchsorted(self._pids, nodes["pid"].to_numpy())
        columns = np.searchsorted(self._idents, nodes["graphNodeId"].to_numpy())
        self._segment[slots, columns] = segment
        self._created, self._begun = np.full((2, *shape), -1, dtype=np.int64)
        self._created[slots, columns] = nodes["start"].fill_null(-1).to_numpy()
        self._begun[slots, columns] = nodes["begun"].fill_null(-1).to_numpy()

    def find(self, pid: Ints, node: Ints) -> NodeLookup:
        """Look up replayed nodes."""
        slot, column = _place(self._pids, pid), _place(self._idents, node)
        segment: Int32s = self._segment[slot, column]
        lost = segment < 0
        unresolved: set[tuple[int, int]] = set()
        if lost.any():
            pairs = np.unique(np.stack([pid[lost], node[lost]]), axis=1)
            unresolved = {(int(p), int(n)) for p, n in pairs.T}
        row = (slot * self._segment.shape[1] + column).astype(np.int32)
        return NodeLookup(
            segment,
            np.where(lost, np.int32(-1), row),
            self._created[slot, column],
            self._begun[slot, column],
            unresolved,
        )

    def partial_graphs(self, replayed: Sequence[Replayed]) -> Int32s:
        """Calls that replayed fewer nodes than another call that shares a node with them."""
        call = np.concatenate([np.zeros(0, dtype=np.int32), *(c for c, _ in replayed)])
        row = np.concatenate([np.zeros(0, dtype=np.int32), *(r for _, r in replayed)])
        known = (call >= 0) & (row >= 0)
        if not known.all():
            call, row = call[known], row[known]
        size = np.bincount(call)
        most = np.zeros(self._segment.size, dtype=np.int64)
        np.maximum.at(most, row, size[call])
        expected = np.zeros(len(size), dtype=np.int64)
        np.maximum.at(expected, call, most[row])
        return np.flatnonzero(size < expected).astype(np.int32)


def _place(known: Ints, asked: Ints) -> npt.NDArray[np.intp]:
    """Position of each value among the sorted known ones, their number where it is not there."""
    if len(known) == 0:
        return np.zeros(len(asked), dtype=np.intp)
    at = np.searchsorted(known, asked)
    at[known[np.minimum(at, len(known) - 1)] != asked] = len(known)
    return at


def _resolved(export: Export) -> pl.DataFrame:
    """``pid``, ``graphNodeId``, and ``globalTid`` and ``start`` of its original's creation (null: not captured), and
    ``begun``, the first creation of a node of the original's graph.

    The upper half of a node's id numbers its graph.
    """
    frame = export.read(nsys_tables.GRAPH_NODES).with_columns(pid=pid_of("globalTid"))
    key = ["pid", "graphNodeId"]
    own = (
        frame.filter(pl.col("originalGraphNodeId").is_null())
        .unique(key, keep="first", maintain_order=True)
        .select(
            *key,
            "globalTid",
            "start",
            pl.col("start").min().over("pid", pl.col("graphNodeId") // (1 << 32)).alias("begun"),
        )
    )
    clones = (
        frame.filter(pl.col("originalGraphNodeId").is_not_null())
        .unique(key, keep="first", maintain_order=True)
        .select(*key, "originalGraphNodeId")
    )
    originals = own.rename({"graphNodeId": "originalGraphNodeId"})
    cloned = clones.join(originals, on=["pid", "originalGraphNodeId"], how="left", maintain_order="left")
    return pl.concat([cloned.select(own.columns), own.join(clones, on=key, how="anti", maintain_order="left")])
