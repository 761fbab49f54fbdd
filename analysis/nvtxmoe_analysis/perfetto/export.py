"""From inputs to a trace: the whole of ``nvtxmoe export --perfetto`` as one call."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.files import cannot_write, check_file, reach, whole_file
from nvtxmoe_analysis.core.progress import Progress
from nvtxmoe_analysis.facts.capture_facts import read_capture
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.perfetto.time_axis import Axis, axis_of
from nvtxmoe_analysis.perfetto.trace import Totals, trace
from nvtxmoe_analysis.readers.base import Export
from nvtxmoe_analysis.readers.nsys_export import REPORT_SUFFIX
from nvtxmoe_analysis.readers.open import open_export, refuse_mixture
from nvtxmoe_analysis.run.run_facts import merge

#: Operations that a trace may have unless the caller allows more. A guess at what a browser takes, not measured.
MOST_OPERATIONS = 2_000_000
#: Of each layer so many experts have a counter.
EXPERTS = 4

GZIP_SUFFIX = ".gz"
#: Kernels' packets repeat each other: more effort gains little.
_GZIP_LEVEL = 3


@dataclass(frozen=True)
class Exported:
    """The trace that was written.

    Attributes:
        totals: how many of what it has.
        axis: how the reports' clocks were put together.
    """

    path: Path
    size_bytes: int
    totals: Totals
    axis: Axis
    results: RunMetrics


def export_trace(
    inputs: Sequence[Path],
    out: Path,
    *,
    selection: Selection | None = None,
    everything: bool = False,
    experts: int = EXPERTS,
    most_operations: int = MOST_OPERATIONS,
    cache_dir: Path | None = None,
    nsys: Path | None = None,
    tell: Callable[[str, float | None], None] | None = None,
) -> Exported:
    """Write a trace of exports, reports or sessions of one run. Of sessions it has the counters alone.

    Parameters:
        out: compressed where its name ends in .gz.
        everything: also work outside layers, but where the selection asks for layers.
        experts: how many of each layer's experts get a counter.
        most_operations: refuse a trace that has more of them.
        tell: see ``progress.Progress``.

    Raises:
        NvtxmoeError: bad input, too many operations, or an output that can't be written. Nothing is left half-written.
    """
    selection = selection or Selection()
    progress = Progress(tell)
    check_target(out, inputs)
    refuse_mixture(inputs)
    reports = []
    for path in inputs:
        progress.begin(f"{path.name}: {'exporting with nsys' if path.suffix == REPORT_SUFFIX else 'opening'}")
        reports.append(read_capture(open_export(path, cache_dir=cache_dir, nsys=nsys), selection, progress))
    progress.begin("joining")
    results = RunMetrics.of(merge(reports, selection, {}))
    operations = operations_of(results, everything=everything)
    if operations > most_operations:
        raise NvtxmoeError(
            f"the trace would have {operations:,} operations, more than {most_operations:,}",
            where=out,
            remedy="Choose some with --steps, --layers or --ranks, or allow more with --max-operations N",
        )
    axis = axis_of(results)

    def reopen(index: int) -> Export:
        return open_export(inputs[index], cache_dir=cache_dir, nsys=nsys)

    totals = Totals()
    parts = trace(results, axis, reopen, totals, everything=everything, experts=experts, progress=progress)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as stage:
            _write(parts, stage, compressed=out.suffix == GZIP_SUFFIX)
    except OSError as error:
        raise _cannot_write(out, error) from error
    return Exported(out, out.stat().st_size, totals, axis, results)


def operations_of(results: RunMetrics, *, everything: bool) -> int:
    """How many operations a trace has: those that moe_kernel_timings counts, in layers or all."""
    rows = results.kernels if everything else results.kernels.filter(pl.col("layer_idx").is_not_null())
    return int(rows["count"].sum())


def check_target(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse early an output that is an input, is no regular file, or can't be written.

    Raises:
        NvtxmoeError: it is so.
    """
    if any(os.path.realpath(out) == os.path.realpath(path) for path in inputs):
        raise NvtxmoeError("input and output are the same", where=out, remedy="Name another output")
    try:
        check_file(out)
        reach(out.parent)
    except OSError as error:
        raise _cannot_write(out, error) from error


def _write(parts: Iterable[bytes], stage: Path, *, compressed: bool) -> None:
    with stage.open("wb") as raw:
        if compressed:
            with gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0) as packed:
                packed.writelines(parts)
        else:
            raw.writelines(parts)


def _cannot_write(out: Path, error: OSError) -> NvtxmoeError:
    return cannot_write(error, out, "the trace", "Name another file, or make room")
