"""The facts of one export, keyed by (rank, step, layer): what every later stage works on."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from nvtxmoe.formats import schema
from nvtxmoe_analysis.attribution.attribute import Attribution, attribute
from nvtxmoe_analysis.attribution.expert_matmuls import expert_matmuls
from nvtxmoe_analysis.attribution.gpu_operations import KINDS
from nvtxmoe_analysis.attribution.launches import Launches
from nvtxmoe_analysis.attribution.layer_sums import cell_timings, kernel_timings
from nvtxmoe_analysis.attribution.ranges import PHASE_NAMES, classify, flatten
from nvtxmoe_analysis.attribution.step_sums import in_steps, outside_timings, step_work
from nvtxmoe_analysis.core.files import size_bytes
from nvtxmoe_analysis.core.progress import Progress
from nvtxmoe_analysis.events.decode import Events, decode_events
from nvtxmoe_analysis.events.journals import read_session
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.events.nvtx import COLUMNS as NVTX
from nvtxmoe_analysis.events.nvtx import push_pop, read_nvtx, step_ranges
from nvtxmoe_analysis.events.tables import CountTable, TopkTable
from nvtxmoe_analysis.facts.launch_facts import LaunchFacts, launch_facts
from nvtxmoe_analysis.facts.layer_rows import COLUMNS, layer_rows
from nvtxmoe_analysis.facts.range_gaps import RangeGaps, range_gaps
from nvtxmoe_analysis.facts.routing_features import cell_features, unevenness
from nvtxmoe_analysis.facts.selection import Selection, marked, ranks_of, select_counts, select_operations, select_topk
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export
from nvtxmoe_analysis.readers.session import KIND as JOURNAL
from nvtxmoe_analysis.readers.session import Session

#: Columns of ``CaptureFacts.worked``.
WORKED = ("step_row", "pid", "rank", "step", "layer", "gpu_start_ns", "experts_ns")


@dataclass(frozen=True)
class CaptureFacts:
    """One export, decoded, attributed and narrowed to the selection; or one session of direct mode, without GPU work.

    Attributes:
        source: what the user named.
        metas: moe.meta by process id.
        steps: ``Events.steps`` with ``kept`` (Boolean: inside the selection); ranks filled from moe.meta.
        counts, topk: narrowed to the selection; ``all_counts`` and ``all_topk`` are not.
        features: what the counts of each cell say, in the order of ``counts.cells``: see
            ``routing_features.cell_features`` (but ``min_count``) and, of exports, ``routing_features.unevenness``.
        layers: see ``layer_rows.layer_rows``; narrowed. Without rows in direct mode.
        all_worked: see :attr:`worked`; None where ``layers`` tells.
        kernels: see ``layer_sums.kernel_timings`` and, where no layers are asked for, ``step_sums.outside_timings``;
            narrowed.
        step_work: ``step_row`` (of ``steps``; of those with one number the first), the columns of ``step_sums.SLOTS``
            (ns), ``pid``, ``rank``, ``step``; the whole export.
        expert_matmuls: see ``expert_matmuls.expert_matmuls``; narrowed.
        collectives: collective kernels in steps: ``pid``, ``rank``, ``step``, ``layer`` (null: tied to none),
            ``inferred``, ``phase`` (null where ranges tell no layer), ``kernel_name``, ``graph``, ``start``, ``end``
            (ns, the report's own time), ``step_row`` (of ``step_work``), ``kept`` (Boolean: inside the selection; where
            layers are asked for none that is tied to no layer); the whole export.
        implausible_ranges: ranges with impossible times, by ``ranges.RANGE_REASONS``; unclosed_ranges: those without an
            end, other than steps. range_gaps: those that are missing.
        implausible_in_steps, clocks_agree, disordered: see ``Attribution``.
        coverage, outside_layers: see ``Attribution``; the whole export.
        outside_kept: as ``outside_layers``, of the steps inside the selection.
        launches: those in steps; the whole export.
        collective_ranges: how many ``moe.collective`` ranges there are.
        epoch_ns: unix time of the export's time 0, None when it is not recorded.
        kind: ``sqlite``, ``parquet``, or ``journal``: see :attr:`direct`.
        repeated_operations: GPU operations that repeat another one.
        unnamed_operations: GPU operations of steps whose name is not in StringIds; the whole export.
        other_tables: names of tables that this version does not read, and that stand in the place of one it reads.
        cuda_asked: whether the capture was asked to trace CUDA; None where the export does not contain that.
    """

    source: Path
    kind: str
    size_bytes: int
    events: Events
    metas: dict[int, Meta]
    steps: pl.DataFrame
    counts: CountTable
    topk: TopkTable
    features: pl.DataFrame
    layers: pl.DataFrame
    all_worked: pl.DataFrame | None
    kernels: pl.DataFrame
    step_work: pl.DataFrame
    expert_matmuls: pl.DataFrame
    collectives: pl.DataFrame
    coverage: pl.DataFrame
    outside_layers: pl.DataFrame
    outside_kept: pl.DataFrame
    launches: LaunchFacts
    runtime_calls: int
    repeated_calls: int
    crossings: int
    nodes_unresolved: int
    operations: int
    implausible_in_steps: int
    clocks_agree: bool
    disordered: Mapping[str, int]
    implausible_ranges: Mapping[str, int]
    unclosed_ranges: int
    range_gaps: RangeGaps
    epoch_ns: int | None
    export_info: dict[str, str]
    warnings: tuple[str, ...]
    gpus: tuple[str, ...]
    graph_rows: int
    collective_ranges: int
    repeated_operations: int
    unnamed_operations: int
    other_tables: tuple[str, ...]
    cuda_asked: bool | None

    @property
    def worked(self) -> pl.DataFrame:
        """The cells of the whole export that have GPU work, when the first of it starts, and the kernel time of their
        experts: the columns of WORKED."""
        if self.all_worked is not None:
            return self.all_worked
        return self.layers.filter(pl.col("gpu_start_ns").is_not_null()).select(WORKED)

    def to_merge(self) -> CaptureFacts:
        """The same without what ``run_facts.merge``, the checks and the outputs do not need: ranges other than
        ``moe.idle``, and of ``events.steps`` what ``steps`` has too, but ``pid``, ``start`` and ``step``."""
        ranges = self.events.ranges.filter(name=schema.IDLE)
        steps = self.events.steps.select("pid", "start", "step")
        return replace(self, events=replace(self.events, ranges=ranges, steps=steps))

    def recorded_clock(self) -> tuple[int | None, str | None]:
        """Unix time of the export's time 0, and what tells it.

        ``export`` (utcEpochNs); else ``moe.meta``: the clock that it gives, less its mark's time. The mark comes after
        the clock was read, so of several processes the latest is nearest.
        """
        if self.epoch_ns is not None:
            return self.epoch_ns, "export"
        epochs = [meta.epoch_ns for meta in self.metas.values() if meta.epoch_ns is not None]
        return (max(epochs), "moe.meta") if epochs else (None, None)

    @property
    def direct(self) -> bool:
        """Whether direct mode recorded it: journals, which hold neither ranges nor GPU work."""
        return self.kind == JOURNAL


def read_capture(export: Export, selection: Selection, progress: Progress | None = None) -> CaptureFacts:
    """Read everything in an export (or the journals of a session) and place it.

    Raises:
        NvtxmoeError: see ``read_events`` and the export's ``read``.
    """
    nvtx = pl.DataFrame(schema=NVTX) if isinstance(export, Session) else read_nvtx(export)
    with ThreadPoolExecutor(1) as aside:
        decoding = aside.submit(_decoded, export, nvtx)
        classified = classify(push_pop(nvtx), step_ranges(nvtx))
        segments = flatten(classified)
        launches = Launches(export, segments, progress)
        if selection.narrows_work:
            # Which steps are kept must be known before work outside layers is added up.
            steps = _steps(decoding.result(), selection)
            placed = attribute(export, segments, launches, progress, selected=steps["kept"].to_numpy())
        else:
            placed = attribute(export, segments, launches, progress)
            steps = _steps(decoding.result(), selection)
        events = decoding.result()
        if events.lives:
            # Known only now, and rare: the work outside layers must be added up by process once more.
            kept_steps = steps["kept"].to_numpy() if selection.narrows_work else None
            placed = attribute(export, segments, launches, progress, selected=kept_steps, lives=events.lives)
    keys = steps.with_row_index("step_row").select(pl.col("step_row").cast(pl.Int32), "pid", "rank", "step")
    in_layer = _repeats_merged(select_operations(placed.in_layer, steps, selection), keys)
    timings = _keyed(cell_timings(in_layer), keys)
    of_steps = step_work(placed.work.by_step, _first_rows(keys)).join(
        keys, on="step_row", how="left", maintain_order="left"
    )
    counts = select_counts(events.counts, steps, selection)
    direct = isinstance(export, Session)
    return CaptureFacts(
        source=export.source,
        kind=export.kind,
        size_bytes=sum(file.size_bytes for file in events.journals.values()) or size_bytes(export.path),
        events=events,
        metas=events.metas,
        steps=steps,
        counts=counts,
        topk=select_topk(events, steps, selection),
        coverage=placed.coverage,
        outside_layers=_named(placed.outside_layers, placed.names),
        outside_kept=_named(in_steps(placed.work, only_kept=True), placed.names),
        launches=launch_facts(
            launches.in_steps().with_columns(
                partial=pl.col("call").is_in(placed.partial_graphs.astype("int64").tolist())
            ),
            keys,
        ),
        runtime_calls=export.rows(nsys_tables.RUNTIME),
        repeated_calls=launches.repeated,
        crossings=segments.crossings,
        nodes_unresolved=placed.nodes_unresolved,
        operations=int(placed.coverage["operations"].sum()),
        implausible_in_steps=placed.implausible_in_steps,
        clocks_agree=placed.clocks_agree,
        # Ids begin anew only where a process id was used again.
        disordered=placed.disordered
        if events.lives
        else {**placed.disordered, "calls": launches.disordered + launches.restarts},
        implausible_ranges=segments.implausible,
        unclosed_ranges=segments.unclosed,
        range_gaps=range_gaps(classified, events),
        graph_rows=export.rows(nsys_tables.GRAPH_NODES),
        features=cell_features(counts).drop("min_count").hstack([] if direct else unevenness(counts).get_columns()),
        layers=pl.DataFrame(schema=COLUMNS)
        if direct
        else layer_rows(steps, counts.cells, timings, of_steps, events.metas, selection),
        all_worked=_all_worked(placed.in_layer, keys) if selection.active else None,
        kernels=_kernels(in_layer, placed, steps, selection, ranks_of(events, steps)),
        step_work=of_steps,
        expert_matmuls=expert_matmuls(in_layer, placed.names),
        collective_ranges=int((events.ranges["name"] == schema.COLLECTIVE).sum()),
        collectives=_collectives(placed, steps, selection, keys),
        epoch_ns=_epoch_ns(export),
        export_info=export.metadata(nsys_tables.EXPORT_META),
        warnings=_warnings(export),
        gpus=tuple(export.read(nsys_tables.GPU_INFO)["name"].drop_nulls().to_list()),
        repeated_operations=placed.repeated,
        unnamed_operations=_unnamed(placed),
        other_tables=export.other_tables(),
        cuda_asked=export.cuda_asked(),
    )


def _decoded(export: Export, nvtx: pl.DataFrame) -> Events:
    return read_session(export) if isinstance(export, Session) else decode_events(export, nvtx)


def _all_worked(in_layer: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """The columns of WORKED, of cells in the order of steps and layers."""
    experts = (pl.col("kind") == KINDS.index("kernel")) & (pl.col("phase") == PHASE_NAMES.index("experts"))
    first = (
        _repeats_merged(in_layer, keys)
        .group_by("step_row", "layer")
        .agg(
            gpu_start_ns=pl.col("start").min(),
            experts_ns=(pl.col("end") - pl.col("start")).filter(experts).sum(),
        )
    )
    return _keyed(first.sort("step_row", "layer"), keys).select(WORKED)


def _keyed(cells: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """Cells (``step_row``, ``layer`` and others) with ``pid``, ``rank``, ``step``."""
    return cells.join(keys, on="step_row", how="left", maintain_order="left").with_columns(
        pl.col("layer").cast(pl.Int64)
    )


def _repeats_merged(in_layer: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """Ranges that repeat a step's number (checks.unique_keys) share its cells; steps without a number stay apart."""
    first = _first_rows(keys)
    if first.equals(keys["step_row"]):
        return in_layer
    return in_layer.with_columns(step_row=first.gather(in_layer["step_row"]))


def _first_rows(keys: pl.DataFrame) -> pl.Series:
    """Of every step the first row that has its number."""
    step_row = pl.col("step_row")
    first = pl.when(pl.col("step").is_null()).then(step_row).otherwise(step_row.first().over("pid", "rank", "step"))
    return keys.select(first)["step_row"]


def _kernels(
    in_layer: pl.DataFrame, placed: Attribution, steps: pl.DataFrame, selection: Selection, ranks: dict[int, int]
) -> pl.DataFrame:
    inside = kernel_timings(in_layer, placed.names, steps["rank"])
    if selection.layers is not None:
        return inside
    return pl.concat([inside, outside_timings(placed.work.by_name, placed.names, ranks)])


def _collectives(placed: Attribution, steps: pl.DataFrame, selection: Selection, keys: pl.DataFrame) -> pl.DataFrame:
    phases = dict(enumerate(PHASE_NAMES))
    tied = pl.col("layer") >= 0
    return (
        _repeats_merged(marked(placed.collectives, steps, selection), keys)
        .join(keys, on="step_row", how="left", maintain_order="left")
        .select(
            "pid",
            "rank",
            "step",
            pl.when(tied).then(pl.col("layer").cast(pl.Int64)),
            "inferred",
            pl.when(tied & ~pl.col("inferred"))
            .then(pl.col("phase").replace_strict(phases, return_dtype=pl.String))
            .alias("phase"),
            pl.col("name").replace_strict(placed.names, default="", return_dtype=pl.String).alias("kernel_name"),
            "graph",
            "start",
            "end",
            "step_row",
            "kept",
        )
    )


def _unnamed(placed: Attribution) -> int:
    """Number of GPU operations whose name is an id without a text."""
    known = list(placed.names)
    inside = len(placed.in_layer.filter(~pl.col("name").is_in(known)))
    return inside + int(placed.work.by_name.filter(~pl.col("name").is_in(known))["count"].sum())


def _epoch_ns(export: Export) -> int | None:
    if isinstance(export, Session):
        return 0
    start = export.read(nsys_tables.SESSION_START)["utcEpochNs"].drop_nulls()
    return int(start[0]) if len(start) else None


def _warnings(export: Export) -> tuple[str, ...]:
    texts = export.read(nsys_tables.DIAGNOSTICS)["text"].drop_nulls()
    serious = texts.filter(texts.str.contains(r"(?i)might not have been collected|\bnot all\b|\bdropped\b|\blost\b"))
    return tuple(sorted(set(serious.to_list())))


def _steps(events: Events, selection: Selection) -> pl.DataFrame:
    steps = _with_ranks(events.steps, events.metas)
    return steps.with_columns(kept=selection.of_steps(steps))


def _with_ranks(steps: pl.DataFrame, metas: dict[int, Meta]) -> pl.DataFrame:
    """Ranks of steps without a payload come from their process's moe.meta."""
    ranks = {pid: meta.rank for pid, meta in metas.items()}
    known = pl.col("pid").replace_strict(ranks, default=None, return_dtype=pl.Int64)
    return steps.with_columns(rank=pl.coalesce("rank", known))


def _named(by_name: pl.DataFrame, names: dict[int, str]) -> pl.DataFrame:
    return by_name.with_columns(pl.col("name").replace_strict(names, default="", return_dtype=pl.String)).sort(
        "time_ns", "name", descending=[True, False]
    )
