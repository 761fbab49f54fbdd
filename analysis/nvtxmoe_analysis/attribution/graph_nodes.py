"""From a replayed CUDA-graph node to the ranges in which its original was created (docs/explanation/attribution.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvtxmoe_analysis.attribution.node_generations import generations
from nvtxmoe_analysis.attribution.ranges import Segments
from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.core.latest import latest
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
        graph_capture_start_ns: when the first node of the original's graph was created (ns), -1 likewise.
        unresolved: (pid, node) of those.
    """

    segment: Int32s
    row: Int32s
    created: Ints
    graph_capture_start_ns: Ints
    unresolved: set[tuple[int, int]]


class GraphNodes:
    """The graph nodes of an export, by process, id and time.

    A replayed id leads by way of the ids it was cloned from to the creation of the first original, and that to the
    ranges then open on its thread (``node_generations``). All of it within one process.
    """

    def __init__(self, export: Export, segments: Segments) -> None:
        self._of = of = generations(export)
        self._replayed = np.zeros(len(of.pid) + 1, dtype=np.bool_)
        self._segment = np.full(len(of.pid) + 1, -1, dtype=np.int32)
        known = np.flatnonzero(of.resolved)
        self._segment[known] = segments.find(of.origin_tid[known], of.origin_ns[known])
        self._created, self._graph_capture_start_ns = np.append(of.origin_ns, -1), np.append(of.begun_ns, -1)
        self._pids, slots = np.unique(of.pid, return_inverse=True)
        self._idents, columns = np.unique(of.node, return_inverse=True)
        # A table of generations by process and node: ids repeat between processes, so it is nearly full. The last row
        # and column stand for what is not there.
        self._first = np.full((len(self._pids) + 1, len(self._idents) + 1), -1, dtype=np.int32)
        self._first[slots[::-1], columns[::-1]] = np.arange(len(of.pid), dtype=np.int32)[::-1]
        number = np.zeros(self._first.shape, dtype=np.int32)
        np.add.at(number, (slots, columns), 1)
        self._repeated = number > 1 if (number > 1).any() else None
        self._cell = slots.astype(np.int64) * len(self._idents) + columns
        self._from_ns = np.append(of.from_ns, np.iinfo(np.int64).max)

    def find(self, pid: Ints, node: Ints, launched_ns: Ints) -> NodeLookup:
        """Look up replayed nodes.

        Parameters:
            launched_ns: when each one's graph was launched: of an id that was created several times the last creation
                before counts.
        """
        slot, column = _place(self._pids, pid), _place(self._idents, node)
        at = self._first[slot, column]
        if self._repeated is not None:
            repeated = np.flatnonzero(self._repeated[slot, column])
            cell = slot[repeated] * len(self._idents) + column[repeated]
            at[repeated] = latest(self._cell, self._of.from_ns, cell, launched_ns[repeated])
        at[self._from_ns[at] > launched_ns] = -1
        self._replayed[at] = True
        segment: Int32s = self._segment[at]
        lost = segment < 0
        unresolved: set[tuple[int, int]] = set()
        if lost.any():
            pairs = np.unique(np.stack([pid[lost], node[lost]]), axis=1)
            unresolved = {(int(p), int(n)) for p, n in pairs.T}
        row = np.where(lost, np.int32(-1), at)
        return NodeLookup(segment, row, self._created[at], self._graph_capture_start_ns[at], unresolved)

    @property
    def disordered(self) -> int:
        """Number of nodes out of their graph's order, among those that were looked up and their originals."""
        return self._of.disordered(self._replayed[:-1])

    def partial_graphs(self, replayed: Sequence[Replayed]) -> Int32s:
        """Calls that replayed fewer nodes than another call that shares a node with them."""
        known = [_known(call, row) for call, row in replayed]
        calls = 1 + max((int(call.max(initial=-1)) for call, _ in known), default=-1)
        # Batch by batch: arrays of all operations at once would set the peak memory of an analysis.
        size, expected = np.zeros(calls, dtype=np.int32), np.zeros(calls, dtype=np.int32)
        largest = np.zeros(len(self._segment), dtype=np.int32)
        for call, _ in known:
            np.add.at(size, call, np.int32(1))
        for call, row in known:
            np.maximum.at(largest, row, size[call])
        for call, row in known:
            np.maximum.at(expected, call, largest[row])
        return np.flatnonzero(size < expected).astype(np.int32)


def _known(call: Int32s, row: Int32s) -> Replayed:
    """Return the pairs whose call and node are both known."""
    both = (call >= 0) & (row >= 0)
    return (call, row) if both.all() else (call[both], row[both])


def _place(known: Ints, wanted_ids: Ints) -> npt.NDArray[np.intp]:
    """Position of each value among the sorted known ones, their number where it is not there."""
    if len(known) == 0:
        return np.zeros(len(wanted_ids), dtype=np.intp)
    at = np.searchsorted(known, wanted_ids)
    at[known[np.minimum(at, len(known) - 1)] != wanted_ids] = len(known)
    return at
