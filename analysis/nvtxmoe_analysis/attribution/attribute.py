"""Every GPU operation to its (step, layer, phase), or to the reason why it has none. docs/explanation/attribution.md.

The launch call decides the step. The launch call (eager) or the creation of the original graph node (graph)
decides layer and phase. Every join carries the process; what can't be placed is counted by reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.attribution import step_sums as work
from nvtxmoe_analysis.attribution.gpu_operations import KINDS, STREAM, Operations, operation_names, read_operations
from nvtxmoe_analysis.attribution.graph_nodes import GraphNodes, Replayed
from nvtxmoe_analysis.attribution.kernel_classes import KernelClasses
from nvtxmoe_analysis.attribution.launches import Calls, Launches
from nvtxmoe_analysis.attribution.layer_collectives import Collectives, Part
from nvtxmoe_analysis.attribution.operation_times import Judged, RowsByKind, may_overrun, overruns, reasons_of
from nvtxmoe_analysis.attribution.order import operations_disordered, operations_of_streams, operations_overlapping
from nvtxmoe_analysis.attribution.placed import (
    CLASSES,
    CROSSING,
    GRAPH_LEVEL,
    IMPLAUSIBLE,
    IN_IDLE,
    IN_LAYER,
    IN_STEP,
    NO_CORRELATION,
    NO_LAUNCH,
    NO_REASON,
    NODE_UNRESOLVED,
    OUTSIDE,
    REASONS,
    STARTS_AN_HOUR_AFTER,
    STARTS_BEFORE_LAUNCH,
    UNPLACED,
    WHOLE_GRAPH,
    PlacedBatch,
)
from nvtxmoe_analysis.attribution.ranges import Segments
from nvtxmoe_analysis.attribution.repeated_rows import Digests, repeated, row_digests
from nvtxmoe_analysis.core.arrays import Bools, Ints
from nvtxmoe_analysis.core.grouping import packed
from nvtxmoe_analysis.core.parallel import ordered_map
from nvtxmoe_analysis.core.progress import Progress
from nvtxmoe_analysis.events.process_lives import Lives
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export

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
        work: sums by step and class, and of work outside layers by name: see ``step_sums.Work``.
        collectives: of steps: see ``Collectives.frame``.
        names: see ``gpu_operations.operation_names``.
        nodes_unresolved: graph node ids of replayed operations that lead to no creation.
        implausible_in_steps: operations of class ``implausible`` that were launched in a step.
        clocks_agree: see ``operation_times.Judged``.
        disordered: rows out of the order in which things happen (``order``), by what they are: ``calls``, ``nodes``,
            ``operations``; and ``overlapping`` operations of a stream.
        partial_graphs: calls (of ``Launches``) of graph launches that gave fewer operations than another launch of
            the same graph.
        repeated: operations that repeat another one: see ``repeated_rows``.
    """

    in_layer: pl.DataFrame
    coverage: pl.DataFrame
    outside_layers: pl.DataFrame
    work: work.Work
    collectives: pl.DataFrame
    names: dict[int, str]
    nodes_unresolved: int
    implausible_in_steps: int
    clocks_agree: bool
    disordered: Mapping[str, int]
    partial_graphs: npt.NDArray[np.int32]
    repeated: int


def attribute(
    export: Export,
    segments: Segments,
    launches: Launches,
    progress: Progress | None = None,
    *,
    selected: npt.NDArray[np.bool_] | None = None,
    lives: Lives | None = None,
) -> Attribution:
    """Place every kernel, copy and memset of an export.

    Parameters:
        segments: the flattened ranges of the export.
        launches: its launch calls; those that gave GPU work are marked used.
        selected: by row of the step, whether it is inside the selection; None for all. Only ``Work.by_name`` heeds it.
        lives: process ids that were used again. Only ``Work.by_name`` heeds it: ids of calls and nodes go by time.
    """
    nodes = GraphNodes(export, segments)
    classes = KernelClasses(export)
    collectives = Collectives(segments, infer=classes.any_collective)

    def place(operations: Operations, *, last: bool = False) -> _Placed:
        batch, nodes_of_batch, lost = place_batch(operations, segments, launches, nodes, judged, lives, last=last)
        of = classes.of(batch.kind, batch.name)
        return _Placed(
            in_layer=_in_layer(batch),
            work=work.sum_batch(batch, of, selected),
            collectives=collectives.pick(batch, of),
            tally=_tally(batch),
            implausible_in_steps=int(((batch.place == IMPLAUSIBLE) & (batch.step_row >= 0)).sum()),
            kind=batch.kind,
            suspects=may_overrun(batch),
            operations=len(batch.place),
            off=int(np.isin(batch.reason, (STARTS_BEFORE_LAUNCH, STARTS_AN_HOUR_AFTER)).sum()),
            disordered=batch.disordered,
            overlapping=batch.overlapping,
            replayed=nodes_of_batch[0],
            unresolved=nodes_of_batch[1],
            lost=lost,
            digests=None if last else row_digests(operations),
        )

    judged = Judged()
    parts = list(ordered_map(place, read_operations(export, progress or Progress())))
    lost = [part.lost for part in parts if part.lost is not None]
    if lost:
        # Calls whose name does not say that they launch: read them too, then try again.
        launches.add({int(c) for operations in lost for c in operations.frame["correlationId"].drop_nulls().unique()})
        parts += [place(operations, last=True) for operations in lost]
    off, total = sum(part.off for part in parts), sum(part.operations for part in parts)
    clocks_agree = 2 * off <= total
    late = _late(export, launches, parts, clocks_agree=clocks_agree)
    if late or not clocks_agree:
        # Known only now that all operations have been read; so rare that reading them once more is no matter.
        judged = Judged(late, clocks_agree)
        operations_again = read_operations(export, progress or Progress())
        parts = list(ordered_map(partial(place, last=True), operations_again))
    layers = pl.concat([_NOTHING, *(part.in_layer for part in parts)])
    done = work.add([part.work for part in parts])
    inferred = collectives.frame([part.collectives for part in parts])
    named = {*layers["name"].unique().to_list(), *done.by_name["name"].unique().to_list()}
    return Attribution(
        in_layer=layers,
        coverage=_coverage([part.tally for part in parts]),
        clocks_agree=clocks_agree,
        disordered={
            "calls": launches.disordered,
            "nodes": nodes.disordered,
            "operations": sum(part.disordered for part in parts),
            "overlapping": sum(part.overlapping for part in parts),
        },
        implausible_in_steps=sum(part.implausible_in_steps for part in parts),
        outside_layers=work.in_steps(done),
        work=done,
        collectives=inferred,
        names=operation_names(export, named),
        nodes_unresolved=len(set().union(*(part.unresolved for part in parts))),
        partial_graphs=nodes.partial_graphs([part.replayed for part in parts]),
        repeated=repeated([part.digests for part in parts if part.digests is not None]),
    )


def _late(export: Export, launches: Launches, parts: Sequence[_Placed], *, clocks_agree: bool) -> RowsByKind:
    """Operations that overrun their stream."""
    suspects = {
        kind: np.concatenate([part.suspects for part in parts if part.kind == kind])
        for kind in {part.kind for part in parts if len(part.suspects)}
    }
    return overruns(export, launches, suspects, clocks_agree=clocks_agree) if suspects else {}


def _pid(column: pl.Series) -> Ints:
    pid: Ints = column.fill_null(0).to_numpy() >> nsys_tables.TID_BITS
    return pid


@dataclass(frozen=True)
class _Placed:
    in_layer: pl.DataFrame
    work: work.Work
    collectives: Part
    tally: Ints
    implausible_in_steps: int
    kind: int
    suspects: Ints
    operations: int
    off: int
    disordered: int
    overlapping: int
    replayed: Replayed
    unresolved: set[tuple[int, int]]
    lost: Operations | None
    digests: Digests | None


def place_batch(
    operations: Operations,
    segments: Segments,
    launches: Launches,
    nodes: GraphNodes,
    judged: Judged,
    lives: Lives | None = None,
    *,
    last: bool,
) -> tuple[PlacedBatch, tuple[Replayed, set[tuple[int, int]]], Operations | None]:
    """Place a batch; the batch, what it replayed and which of its nodes are unresolved, and the operations handed
    back: those whose launch call has not been read, unless it is the last try.

    Parameters:
        judged: what all operations together tell of times.
        lives: process ids that were used again.
    """
    lost = None
    pid = _pid(operations.frame["globalPid"])
    start = operations.frame["start"].to_numpy()
    call = launches.of(pid, operations.frame["correlationId"].fill_null(-1).to_numpy(), start)
    if not last and (call < 0).any():
        lost = Operations(operations.kind, operations.frame.filter(pl.Series(call < 0)))
        operations = Operations(operations.kind, operations.frame.filter(pl.Series(call >= 0)))
        pid, call = pid[call >= 0], call[call >= 0]
    launches.use(call)
    frame = operations.frame
    correlation = frame["correlationId"].fill_null(0).to_numpy()
    segment = launches.segment[call]
    step_row, crossing, idle = segments.step[segment], segments.crossing[segment], segments.idle[segment]
    # Where the operation's own ranges are looked for: those of its call, or of its node's creation.
    graph = frame["graphNodeId"].is_not_null().to_numpy()
    at = np.flatnonzero(graph)
    start, launched_ns = frame["start"].to_numpy(), launches.start_ns[call]
    lookup = nodes.find(pid[at], frame["graphNodeId"].drop_nulls().to_numpy(), launched_ns[at])
    origin_segment, origin_order, graph_start = (
        segment.copy(),
        correlation.copy(),
        np.full(len(frame), -1, dtype=np.int64),
    )
    origin_segment[at], origin_order[at], graph_start[at] = (
        lookup.segment,
        lookup.created,
        lookup.graph_capture_start_ns,
    )
    resolved = origin_segment >= 0
    layer = segments.layer[origin_segment]
    in_step = step_row >= 0
    reason = np.where(~in_step & idle, IN_IDLE, NO_REASON).astype(np.int8)
    place = np.where(in_step, np.where(layer >= 0, IN_LAYER, IN_STEP), OUTSIDE).astype(np.int8)
    for condition, why in (
        (in_step & ~resolved, NODE_UNRESOLVED),
        (in_step if operations.kind == WHOLE_GRAPH else np.zeros(0, dtype=np.intp), GRAPH_LEVEL),
        (crossing | (segments.crossing[origin_segment] & resolved), CROSSING),
        (call < 0, NO_LAUNCH),
        (correlation == 0, NO_CORRELATION),
    ):
        place[condition] = UNPLACED
        reason[condition] = why
    impossible = reasons_of(operations, call >= 0, launched_ns, judged)
    place[impossible > 0], reason[impossible > 0] = IMPLAUSIBLE, impossible[impossible > 0]
    disordered, overlapping = _out_of_order(frame, launches, call, impossible == 0)
    without_step = crossing | (call < 0) | (correlation == 0)
    batch = PlacedBatch(
        kind=operations.kind,
        place=place,
        reason=reason,
        pid=lives.of(pid, np.where(call >= 0, launched_ns, start)) if lives else pid,
        step_row=np.where(without_step, np.int32(-1), step_row),
        after_step=launches.after_step[call],
        origin_segment=origin_segment,
        layer=layer,
        phase=segments.phase[origin_segment],
        graph=graph,
        origin_order=origin_order,
        graph_capture_start_ns=graph_start,
        name=frame["name"],
        start=frame["start"],
        end=frame["end"],
        at=frame["at"].to_numpy(),
        disordered=disordered if judged.clocks_agree else 0,
        overlapping=overlapping,
    )
    return batch, ((call[at], lookup.row), lookup.unresolved), lost


def _in_layer(batch: PlacedBatch) -> pl.DataFrame:
    inside = np.flatnonzero(batch.place == IN_LAYER)
    return pl.DataFrame(
        {
            "step_row": batch.step_row[inside],
            "layer": batch.layer[inside],
            "phase": batch.phase[inside],
            "kind": np.full(len(inside), batch.kind, dtype=np.int8),
            "name": batch.name.gather(inside),
            "graph": batch.graph[inside],
            "start": batch.start.gather(inside),
            "end": batch.end.gather(inside),
        }
    )


def _out_of_order(frame: pl.DataFrame, launches: Launches, call: Calls, possible: Bools) -> tuple[int, int]:
    """Return how many operations of possible times are out of their stream's order, and go on beside later ones."""
    if not set(STREAM) <= set(frame.columns):  # whole graphs, and what a trace reads
        return 0, 0
    stream = packed([frame[name].fill_null(-1).to_numpy() for name in ("globalPid", *STREAM)])
    start, end = frame["start"].to_numpy(), frame["end"].to_numpy()
    launched = possible & (call >= 0)
    if launched.all():
        return operations_of_streams(stream, launches.thread[call], start, end, launches.start_ns[call])
    called, in_time = (slice(None) if some.all() else np.flatnonzero(some) for some in (launched, possible))
    return (
        operations_disordered(
            packed([stream[called], launches.thread[call[called]]]), start[called], launches.start_ns[call[called]]
        ),
        operations_overlapping(stream[in_time], start[in_time], end[in_time]),
    )


def _tally(batch: PlacedBatch) -> Ints:
    """[operations, ns] by class, reason and kind, flattened."""
    duration = batch.duration
    code = (batch.place.astype(np.intp) * len(REASONS) + batch.reason) * len(KINDS) + batch.kind
    number = np.bincount(code, minlength=CODES)
    time_ns = np.zeros(CODES, dtype=np.int64)
    for number_of_class in np.flatnonzero(number):
        time_ns[number_of_class] = _total(duration[code == number_of_class])
    return np.stack([number, time_ns])


def _total(durations: Ints) -> int:
    """Their sum, or the most (least) that 64 bits hold: impossible times need not add up to 64 bits."""
    low = int((durations & _LOW_BITS).sum())
    return min(max((int((durations >> 32).sum()) << 32) + low, _INT64.min), _INT64.max)


_LOW_BITS = (1 << 32) - 1
_INT64 = np.iinfo(np.int64)


def _coverage(tallies: Sequence[Ints]) -> pl.DataFrame:
    tally = np.zeros((2, CODES), dtype=np.int64)
    for tally_of_batch in tallies:
        times = zip(tally[1].tolist(), tally_of_batch[1].tolist(), strict=True)
        tally[0] += tally_of_batch[0]
        tally[1] = [min(max(a + b, _INT64.min), _INT64.max) for a, b in times]
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
