"""The GPU operations of an export one by one, placed as the tables have them, with their device and stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.attribution.attribute import place_batch
from nvtxmoe_analysis.attribution.gpu_operations import COPY_NAMES, GRAPH_NAME, MEMSET_NAME, Operations, operation_names
from nvtxmoe_analysis.attribution.graph_nodes import GraphNodes
from nvtxmoe_analysis.attribution.kernel_classes import KernelClasses
from nvtxmoe_analysis.attribution.launches import Launches
from nvtxmoe_analysis.attribution.operation_times import Judged
from nvtxmoe_analysis.attribution.placed import IN_LAYER, PlacedBatch
from nvtxmoe_analysis.attribution.ranges import PHASE_NAMES, classify, flatten
from nvtxmoe_analysis.attribution.step_sums import IDLE_SLOT, SLOTS, outside_layers, steps_and_slots
from nvtxmoe_analysis.core.progress import Progress
from nvtxmoe_analysis.events.nvtx import push_pop, read_nvtx, step_ranges
from nvtxmoe_analysis.events.process_lives import Lives
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export
from nvtxmoe_analysis.readers.nsys_tables import Table

_COLUMNS = ("start", "end", "globalPid", "correlationId", "deviceId", "streamId")
#: What stands for the name, by kind of operation.
_NAMES: tuple[tuple[Table, tuple[str, ...], pl.Expr], ...] = (
    (nsys_tables.KERNEL, ("graphNodeId", "demangledName"), pl.col("demangledName")),
    (nsys_tables.MEMCPY, ("graphNodeId", "copyKind"), COPY_NAMES - pl.col("copyKind")),
    (nsys_tables.MEMSET, ("graphNodeId",), pl.lit(MEMSET_NAME, pl.Int64)),
    (nsys_tables.GRAPH_TRACE, (), pl.lit(GRAPH_NAME, pl.Int64)),
)
#: Columns of :func:`read_placed`, but for the name.
COLUMNS = {
    "pid": pl.Int64,
    "step_row": pl.Int32,
    "layer": pl.Int32,
    "phase": pl.Int8,
    "graph": pl.Boolean,
    "device": pl.Int32,
    "stream": pl.Int64,
    "start": pl.Int64,
    "end": pl.Int64,
}


@dataclass(frozen=True)
class Placed:
    """Operations of one export.

    Attributes:
        frame: ``pid``, ``step_row`` (of the steps, -1: none; of work between steps that of the one before), ``layer``
            (-1: none), ``phase`` (index into PHASES), ``graph``, ``device``, ``stream``, ``start``, ``end`` (ns of the
            report), ``name`` (key of ``names``).
        names: texts.
    """

    frame: pl.DataFrame
    names: dict[int, str]


#: Phases of layers, then what work outside layers is summed by.
PHASES = (*PHASE_NAMES, *SLOTS)


def read_placed(
    export: Export,
    steps: pl.DataFrame,
    selection: Selection,
    *,
    everything: bool,
    progress: Progress | None = None,
    lives: Lives | None = None,
    clocks_agree: bool = True,
) -> Placed:
    """Read the operations that moe_kernel_timings counts.

    Parameters:
        steps: ``CaptureFacts.steps``.
        everything: also those outside layers, but where layers are asked for.
        lives: ``Events.lives``; clocks_agree: ``CaptureFacts.clocks_agree``.
    """
    progress = progress or Progress()
    nvtx = read_nvtx(export)
    segments = flatten(classify(push_pop(nvtx), step_ranges(nvtx)))
    launches = Launches(export, segments, progress)
    nodes, classes = GraphNodes(export, segments), KernelClasses(export)
    kept_steps = steps["kept"].to_numpy() if selection.narrows_work else None
    outside = everything and selection.layers is None
    parts: list[pl.DataFrame] = []
    lost: list[Operations] = []

    def place(operations: Operations, *, last: bool) -> None:
        batch, _, left = place_batch(
            operations, segments, launches, nodes, Judged(clocks_agree=clocks_agree), lives, last=last
        )
        frame = operations.frame
        if left is not None:
            lost.append(left)
            frame = frame.join(left.frame.select("at"), on="at", how="anti", maintain_order="left")
        parts.append(_inside(batch, frame, classes, kept_steps, selection, outside=outside))

    for operations in _read(export, progress):
        place(operations, last=False)
    if lost:  # as attribution does it
        launches.add({int(c) for batch in lost for c in batch.frame["correlationId"].drop_nulls().unique()})
        for operations in lost.copy():
            place(operations, last=True)
    frame = pl.concat([pl.DataFrame(schema={**COLUMNS, "name": pl.Int64}), *parts])
    return Placed(frame, operation_names(export, frame["name"].unique().to_list()))


def _read(export: Export, progress: Progress) -> Iterator[Operations]:
    rows = sum(export.rows(table) for table, _, _ in _NAMES)
    progress.begin(f"{export.source.name}: {rows:,} GPU operations for the trace", rows)
    for kind, (table, more, name) in enumerate(_NAMES):
        for batch in progress.over(export.batches(table, (*_COLUMNS, *more))):
            frame = batch.with_row_index("at").with_columns(name=name.cast(pl.Int64))
            if "graphNodeId" not in more:
                frame = frame.with_columns(graphNodeId=pl.lit(None, pl.Int64))
            yield Operations(kind, frame)


def _inside(
    batch: PlacedBatch,
    frame: pl.DataFrame,
    classes: KernelClasses,
    kept_steps: npt.NDArray[np.bool_] | None,
    selection: Selection,
    *,
    outside: bool,
) -> pl.DataFrame:
    """The operations of a batch that are wanted; ``frame`` has their columns, in the batch's order."""
    step, slot = steps_and_slots(batch, classes.of(batch.kind, batch.name))
    selected = batch.place == IN_LAYER
    if kept_steps is not None:
        selected &= np.append(kept_steps, np.False_)[step]
    if selection.layers is not None:
        selected &= np.isin(batch.layer, list(selection.layers))
    if outside:
        at, inside = outside_layers(step, slot, kept_steps)
        selected[at] = inside
    rows = np.flatnonzero(selected)
    in_layer = batch.place[rows] == IN_LAYER
    columns = {
        "pid": batch.pid[rows],
        "step_row": np.where(slot[rows] == IDLE_SLOT, -1, step[rows]),
        "layer": np.where(in_layer, batch.layer[rows], -1),
        "phase": np.where(in_layer, batch.phase[rows], len(PHASE_NAMES) + slot[rows]),
        "graph": batch.graph[rows],
    }
    columns_of_frame = frame.select(
        pl.col("deviceId").alias("device"), pl.col("streamId").alias("stream"), "start", "end", "name"
    )[rows]
    return pl.DataFrame(columns).hstack(columns_of_frame).cast(COLUMNS)  # type: ignore[arg-type]
