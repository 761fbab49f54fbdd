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
        disordered: rows out of their graph's order, see ``order.nodes_disordered``: creations and clones.
    """

    pid: Ints
    node: Ints
    from_ns: Ints
    origin_tid: Ints
    origin_ns: Ints
    begun_ns: Ints
    resolved: Bools
    disordered: int


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
    rows = rows.with_columns(times=times).with_columns(begun=_begun())
    # A clone's own creation row comes right before the row that names its original: both are one generation.
    same_id = (pl.col("pid").shift(-1) == pl.col("pid")) & (pl.col("node").shift(-1) == pl.col("node"))
    paired = (~pl.col("is_clone") & same_id & pl.col("is_clone").shift(-1)).fill_null(False)
    disordered = _disordered(rows, paired)
    rows = rows.with_columns(
        paired=paired, from_ns=pl.when(paired.shift(1)).then(pl.col("start").shift(1)).otherwise("start")
    ).filter(~pl.col("paired"))
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
        disordered=disordered,
    )


def _begun() -> pl.Expr:
    """The first creation of the row's graph: of all its nodes that were created as often as this one."""
    created = pl.when(~pl.col("is_clone")).then("start")
    return created.min().over("pid", pl.col("node") // GRAPH_SPAN, "times")


def _disordered(rows: pl.DataFrame, paired: pl.Expr) -> int:
    """Rows out of order: creations by time, clones by their originals, and clones without a creation of their own (or
    creations that name no original) in a graph whose other clones have both rows."""
    both = rows.select("pid", "node", both=paired | paired.shift(1, fill_value=False))
    whole = pl.col("both").any().over("pid", pl.col("node") // GRAPH_SPAN)
    numbered = pl.col("node") >= GRAPH_SPAN  # else ids tell no graph
    total = int(both.select((numbered & whole & ~pl.col("both")).sum()).item())
    for of_clones, value in ((False, "start"), (True, "originalGraphNodeId")):
        some = rows.filter(pl.col("is_clone") == of_clones)
        graph = packed([some["pid"].to_numpy(), some["node"].to_numpy() // GRAPH_SPAN, some["times"].to_numpy()])
        total += nodes_disordered(graph, some["node"].to_numpy(), some[value].to_numpy())
    return total


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
