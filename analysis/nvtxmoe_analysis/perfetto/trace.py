"""The packets of a trace: a process a rank, and its tracks. docs/how-to/perfetto.md says what each is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import polars as pl

from nvtxmoe_analysis.attribution.ranges import PHASE_NAMES
from nvtxmoe_analysis.core.progress import Progress
from nvtxmoe_analysis.core.text import short_name
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.perfetto import counters, tracks
from nvtxmoe_analysis.perfetto import messages as m
from nvtxmoe_analysis.perfetto.lanes import lay
from nvtxmoe_analysis.perfetto.operations import PHASES, Placed, read_placed
from nvtxmoe_analysis.perfetto.slices import Slices, of_track
from nvtxmoe_analysis.perfetto.time_axis import Axis
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export

HOST_TRACK, LAYERS_TRACK, PHASES_TRACK, COLLECTIVES_TRACK, LOAD_TRACK = (
    "host",
    "GPU layers",
    "GPU phases",
    "collectives",
    "expert load",
)
#: Order of a process's tracks; streams come after these.
_ORDER = {name: i for i, name in enumerate((HOST_TRACK, LAYERS_TRACK, PHASES_TRACK, COLLECTIVES_TRACK, LOAD_TRACK))}
#: Largest process id that the format's 32 bits hold.
_MOST_PID = (1 << 31) - 1


@dataclass
class Totals:
    """How many of what a trace has.

    Attributes:
        slices: by track's name; those of all streams under ``operations``.
        counter_values: of all counters; untimed: (step, layer) cells whose step's range was not captured.
        tracks: of slices and counters.
    """

    slices: dict[str, int] = field(default_factory=dict)
    counter_values: int = 0
    untimed: int = 0
    tracks: int = 0


@dataclass
class _Writer:
    """Hands out ids, and counts."""

    totals: Totals
    _ids: Iterator[int] = field(default_factory=lambda: count(1))
    _sequences: Iterator[int] = field(default_factory=lambda: count(2))  # 1 has the descriptors

    def uuid(self) -> int:
        return next(self._ids)

    def sequence(self) -> int:
        return next(self._sequences)

    def slices(
        self, name: str, parent: int, order: int, frame: pl.DataFrame, offset_ns: int, *, nested: bool = False,
        counted: str | None = None,
    ) -> Iterator[bytes]:  # fmt: skip
        """Slices on a track, or on several of one name where they overlap."""
        at = [(pl.col(time) + offset_ns).alias(time) for time in ("start", "end")]
        slices = Slices(frame.with_columns(at))
        key = counted or name
        self.totals.slices[key] = self.totals.slices.get(key, 0) + len(slices)
        for events in lay(slices.start, slices.end, nested=nested):
            uuid = self.uuid()
            self.totals.tracks += 1
            yield m.track(uuid, parent, name, order)
            yield from of_track(slices, self.sequence(), uuid, events)


@dataclass(frozen=True)
class _Process:
    """A process of a report, and its track's uuid."""

    report: int
    pid: int
    rank: int | None
    uuid: int


def trace(
    results: RunMetrics,
    axis: Axis,
    reopen: Callable[[int], Export],
    totals: Totals,
    *,
    everything: bool,
    experts: int,
    progress: Progress,
) -> Iterator[bytes]:
    """The trace, in parts. Operations are read a report at a time.

    Parameters:
        reopen: gives the export of a report (position in ``results.reports``) once more.
        totals: filled in.
        everything, experts: see ``export.export_trace``.
    """
    writer = _Writer(totals)
    if axis.unix_ns is not None:
        yield m.clock(0, axis.unix_ns)
    processes = _processes(results, writer)
    yield from _named(results, processes)
    progress.begin("expert load")
    yield from _load(results, axis, writer, processes, experts)
    for index, report in enumerate(results.reports):
        if report.direct:
            continue
        report_processes = [process for process in processes if process.report == index]
        placed = read_placed(
            reopen(index),
            report.steps,
            results.selection,
            everything=everything,
            progress=progress,
            lives=report.events.lives,
            clocks_agree=report.clocks_agree,
        )
        progress.begin(f"{report.source.name}: writing {len(placed.frame):,} operations")
        split = results.collective_split.frame.filter(pl.col("report") == index, pl.col("kept"))
        frames = {
            HOST_TRACK: tracks.host_ranges(report, results.selection),
            LAYERS_TRACK: tracks.layers(report),
            PHASES_TRACK: tracks.phases(report, placed),
            COLLECTIVES_TRACK: tracks.collectives(split),
        }
        for process in report_processes:
            for name, frame in frames.items():
                process_rows = frame.filter(pl.col("pid") == process.pid).drop("pid") if len(frame) else frame
                yield from _of_threads(writer, name, process.uuid, process_rows, axis.offsets_ns[index])
        yield from _streams(writer, report_processes, placed, report, axis.offsets_ns[index])


def _of_threads(writer: _Writer, name: str, parent: int, frame: pl.DataFrame, offset_ns: int) -> Iterator[bytes]:
    """A track, or of ranges of the host one a thread that has any."""
    parts = [frame]
    if "globalTid" in frame.columns:
        parts = [part.drop("globalTid") for part in frame.partition_by("globalTid", maintain_order=True)]
    nested = name in {HOST_TRACK, COLLECTIVES_TRACK}
    for part in parts:
        if len(part):
            yield from writer.slices(name, parent, _ORDER[name], part, offset_ns, nested=nested)


def _streams(
    writer: _Writer, processes: list[_Process], placed: Placed, report: CaptureFacts, offset_ns: int
) -> Iterator[bytes]:
    """Operations, a track a stream."""
    texts = pl.DataFrame(
        {"name": list(placed.names), "kernel_name": list(placed.names.values())},
        schema={"name": pl.Int64, "kernel_name": pl.String},
    ).with_columns(
        pl.col("kernel_name").cast(pl.Categorical),
        short=pl.Series([short_name(text) for text in placed.names.values()], dtype=pl.Categorical),
    )
    phases = pl.DataFrame(
        {
            "phase": pl.Series(range(len(PHASES)), dtype=pl.Int8),
            "phase_name": pl.Series(PHASES, dtype=pl.Categorical),
            "category": pl.Series(
                [tracks.MOE] * len(PHASE_NAMES) + list(PHASES[len(PHASE_NAMES) :]), dtype=pl.Categorical
            ),
        }
    )
    ways = pl.DataFrame({"graph": [False, True], "launched_by": pl.Series(["eager", "graph"], dtype=pl.Categorical)})
    numbers = pl.concat([report.steps["step"], pl.Series([None], dtype=pl.Int64)])  # the last one stands for no step
    streams = placed.frame.select("pid", "device", "stream").unique().sort("device", "stream", nulls_last=True)
    for process in processes:
        process_streams = streams.filter(pl.col("pid") == process.pid)
        for order, (device, stream) in enumerate(
            process_streams.select("device", "stream").iter_rows(), start=len(_ORDER)
        ):
            rows = placed.frame.filter(
                pl.col("pid") == process.pid,
                pl.col("device").eq_missing(pl.lit(device, pl.Int32)),
                pl.col("stream").eq_missing(pl.lit(stream, pl.Int64)),
            )
            frame = (
                rows.join(texts, on="name", how="left", maintain_order="left")
                .join(phases, on="phase", how="left", maintain_order="left")
                .join(ways, on="graph", how="left", maintain_order="left")
            )
            row = frame["step_row"].to_numpy()
            step = numbers.gather(np.where(row < 0, len(numbers) - 1, row))
            named = frame.select(
                "start",
                "end",
                pl.col("short").alias("name"),
                "category",
                step.alias("step"),
                pl.when(pl.col("layer") >= 0).then("layer").alias("layer"),
                pl.col("phase_name").alias("phase"),
                "launched_by",
                "kernel_name",
            )
            title = f"GPU {_shown(device)} stream {_shown(stream)}"
            yield from writer.slices(title, process.uuid, order, named, offset_ns, counted="operations")


def _shown(number: int | None) -> str:
    return "?" if number is None else str(number)


def _load(results: RunMetrics, axis: Axis, writer: _Writer, processes: list[_Process], experts: int) -> Iterator[bytes]:
    """Counters of expert load, in the process of the rank that stands for its group."""
    load = counters.load(results, experts)
    writer.totals.untimed = load.untimed
    writer.totals.counter_values = len(load.frame)
    for process in processes:
        rank_series = load.frame.filter(pl.col("report") == process.report, pl.col("rank") == process.rank)
        if rank_series.is_empty():
            continue
        group = writer.uuid()
        yield m.track(group, process.uuid, LOAD_TRACK, _ORDER[LOAD_TRACK])
        key = ["layer", "what", "expert"]
        shown = rank_series.select(key).unique(maintain_order=True)
        uuids: list[tuple[int, str, int, int]] = []
        for order, (layer, what, expert) in enumerate(counters.in_order(shown)):
            uuids.append((layer, what, expert, writer.uuid()))
            name, unit = counters.title(what, layer, expert)
            yield m.counter(uuids[-1][-1], group, name, order, unit)
        writer.totals.tracks += len(uuids)
        series_uuids = pl.DataFrame(uuids, schema=[*key, "uuid"], orient="row")
        values = rank_series.join(series_uuids, on=key, how="left", maintain_order="left").select(
            (pl.col("time") + axis.offsets_ns[process.report]).alias("time"),
            "uuid",
            "value",
            (pl.col("what") != "max_mean_ratio").alias("whole"),
        )
        yield from counters.packets(values, writer.sequence())


def _processes(results: RunMetrics, writer: _Writer) -> list[_Process]:
    """Processes that have anything inside the selection, by rank."""
    keys: set[tuple[int, int, int | None]] = set()
    for index, report in enumerate(results.reports):
        ranks = {pid: meta.rank for pid, meta in report.metas.items()}
        ranks |= dict(report.steps.select("pid", "rank").drop_nulls().unique().iter_rows())
        seen = set(report.steps.filter("kept")["pid"].to_list()) | set(report.counts.cells["pid"].to_list())
        if not results.selection.active:
            seen |= set(report.events.ranges["pid"].to_list())
        keys |= {(index, pid, ranks.get(pid)) for pid in seen}
    ordered = sorted(keys, key=lambda process: (process[2] is None, process[2] or 0, process[0], process[1]))
    return [_Process(report, pid, rank, writer.uuid()) for report, pid, rank in ordered]


def _named(results: RunMetrics, processes: list[_Process]) -> Iterator[bytes]:
    """The processes' own tracks. Ids that two hosts both have are replaced by numbers from 1 on."""
    reports = results.reports
    pids = [
        process.pid if reports[process.report].direct else process.pid & nsys_tables.PID_MASK for process in processes
    ]
    distinct = len(set(pids)) == len(pids) and all(0 < pid <= _MOST_PID for pid in pids)
    for index, (pid, process) in enumerate(zip(pids, processes, strict=True), start=1):
        report = results.reports[process.report]
        meta = report.metas.get(process.pid)
        name = f"process {pid}" if process.rank is None else f"rank {process.rank}"
        labels = [report.source.name]
        for key in ("host", "device", "model"):
            value = None if meta is None else meta.raw.get(key)
            labels += [value] if isinstance(value, str) else []
        yield m.process(process.uuid, pid if distinct else index, name, labels)
