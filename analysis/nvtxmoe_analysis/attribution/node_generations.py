"""Generations of CUDA-graph nodes: each creation of a node id, when it holds, and the creation of its original.

A node id has a creation row, and a clone (a replayed id) a second row that names its original. A clone's original can
be a clone too. An id can be created again after its graph was destroyed; each creation is a generation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from nvtxmoe_analysis.attribution.order import nodes_disordered
from nvtxmoe_analysis.core.arrays import Bools, Ints
from nvtxmoe_analysis.core.grouping import packed
from nvtxmoe_analysis.core.latest import latest
from nvtxmoe_analysis.events.nvtx import pid_of
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export

#: The upper half of a node's id numbers its graph.
GRAPH_SPAN = 1 << 32


@dataclass(frozen=True)
class Generations:
    """Generations by process and node, the older first: int64 [generations].

    Attributes:
        pid, node: the process and the node's id.
        from_ns: when it was created.
        origin_tid: globalTid on which its original was created; -1 where that is unknown, as in the next two.
        origin_ns: when its original was created.
        begun_ns: when the first node of the original's graph was created.
        resolved: bool, whether it leads to an original.
        root: position of the original's generation; -1 where that is unknown.
        named: the id that a clone names as its original; -1 of an original.
        paired: bool, whether a clone has a creation row of its own too.
        times: how often the node was created up to then.
    """

    pid: Ints
    node: Ints
    from_ns: Ints
    origin_tid: Ints
    origin_ns: Ints
    begun_ns: Ints
    resolved: Bools
    root: Ints
    named: Ints
    paired: Bools
    times: Ints

    def disordered(self, replayed: Bools) -> int:
        """Return how many nodes are out of their graph's order, in graphs with a replayed node or the original of one.

        Creations by time and clones by their originals (``order.nodes_disordered``): of all nodes of such a graph, as
        one that was not replayed may have changed places with one that was. And replayed nodes that are no clone with
        a creation of its own, in a graph that has such clones; nodes that are not replayed may lack it (the last ones
        of graphs of vLLM 0.33 on an H200). Graphs of which nothing was replayed are left out: vLLM captures graphs to
        measure memory and destroys them, and ids of what is left are not in order.

        Parameters:
            replayed: bool [generations].
        """
        chosen = replayed.copy()
        chosen[self.root[replayed & self.resolved]] = True
        graph = packed([self.pid, self.node // GRAPH_SPAN, self.times])
        at = np.flatnonzero(np.isin(graph, graph[chosen]))
        total = nodes_disordered(graph[at], self.node[at], self.from_ns[at])
        at = at[self.named[at] >= 0]
        total += nodes_disordered(graph[at], self.node[at], self.named[at])
        # However often it was created: a node whose row became another one's seems to be created once more.
        graph = packed([self.pid, self.node // GRAPH_SPAN])
        complete_graphs = np.isin(graph, graph[self.paired])
        numbered = self.node >= GRAPH_SPAN  # else ids tell no graph
        return total + int(np.count_nonzero(chosen & numbered & complete_graphs & ~self.paired))


def generations(export: Export) -> Generations:
    """Read the graph nodes of an export and follow each to its original, by however many clones.

    The original of a clone is the latest generation of the named id that was not created after the clone. A chain that
    ends at an id without a creation, or that runs in a circle, leads nowhere.
    """
    rows = (
        export.read(nsys_tables.GRAPH_NODES)
        .with_row_index("row")
        .select(
            pid_of("globalTid").fill_null(0).alias("pid"),
            pl.col("graphNodeId").alias("node"),
            "originalGraphNodeId",
            "start",
            pl.col("globalTid").fill_null(0),
            pl.col("originalGraphNodeId").is_not_null().alias("is_clone"),
            "row",
        )
        .sort("pid", "node", "start", "is_clone", "row")
    )
    times = pl.col("is_clone").not_().cast(pl.Int64).cum_sum().over("pid", "node")
    rows = rows.with_columns(times=times).with_columns(begun=_graph_capture_start_ns())
    # A clone's own creation row comes right before the row that names its original: both are one generation.
    same_id = (pl.col("pid").shift(-1) == pl.col("pid")) & (pl.col("node").shift(-1) == pl.col("node"))
    paired = (~pl.col("is_clone") & same_id & pl.col("is_clone").shift(-1)).fill_null(False)
    rows = rows.with_columns(
        before=paired,
        paired=paired.shift(1, fill_value=False),
        from_ns=pl.when(paired.shift(1)).then(pl.col("start").shift(1)).otherwise("start"),
    ).filter(~pl.col("before"))
    pid, node, from_ns = (rows[name].to_numpy() for name in ("pid", "node", "from_ns"))
    root = _roots(pid, node, rows["originalGraphNodeId"], from_ns)
    resolved = root >= 0
    return Generations(
        pid=pid,
        node=node,
        from_ns=from_ns,
        origin_tid=np.where(resolved, rows["globalTid"].to_numpy()[root], -1),
        origin_ns=np.where(resolved, rows["start"].to_numpy()[root], -1),
        begun_ns=np.where(resolved, rows["begun"].to_numpy()[root], -1),
        resolved=resolved,
        root=root,
        named=rows["originalGraphNodeId"].fill_null(-1).to_numpy(),
        paired=rows["paired"].to_numpy(),
        times=rows["times"].cast(pl.Int64).to_numpy(),
    )


def _graph_capture_start_ns() -> pl.Expr:
    """The first creation of the row's graph: of all its nodes that were created as often as this one."""
    created = pl.when(~pl.col("is_clone")).then("start")
    return created.min().over("pid", pl.col("node") // GRAPH_SPAN, "times")


def _roots(pid: Ints, node: Ints, original: pl.Series, from_ns: Ints) -> Ints:
    """Position of the generation that each one's chain of originals ends at, -1 where it leads nowhere."""
    number = len(pid)
    clones = np.flatnonzero(original.is_not_null().to_numpy())
    named = original.fill_null(0).to_numpy()[clones]
    key = packed([np.concatenate([pid, pid[clones]]), np.concatenate([node, named])])
    lead = np.arange(number + 1)  # the last entry stands for nowhere
    to = latest(key[:number], from_ns, key[number:], from_ns[clones])
    lead[clones] = np.where(to >= 0, to, number)
    for _ in range(number.bit_length() + 1):  # each round doubles the length followed
        further = lead[lead]
        if np.array_equal(further, lead):
            break
        lead = further
    root = lead[:number]
    ends = np.ones(number + 1, dtype=np.bool_)
    ends[clones] = False  # who still leads to a clone runs in a circle
    ends[number] = False
    return np.where(ends[root], root, -1)
