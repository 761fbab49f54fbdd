"""Analyze captures: expert statistics and GPU time of every (rank, step, layer)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nvtxmoe.commands._common import (
    PATH,
    command,
    ending,
    json_option,
    opening_options,
    partial_option,
    refuse_results,
    renew_report,
)
from nvtxmoe.commands._selection import selection_options
from nvtxmoe.printing.console import print_json, progress_bar, stdout

if TYPE_CHECKING:
    from nvtxmoe_analysis.facts.selection import Selection


@command(
    "analyze",
    "nvtxmoe analyze report1.nsys-rep -o results\n"
    "nvtxmoe analyze rank0.sqlite rank1.sqlite -o results --only decode --skip-first 10",
)
@click.argument("inputs", metavar="INPUT...", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the results; made if need be.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["csv", "parquet"]),
    multiple=True,
    default=("csv",),
    show_default=True,
    help="Format of the tables. Give it twice for both.",
)
@click.option("--sqlite", "database", type=PATH, help="Also store the tables in this SQLite file, for SQL.")
@selection_options
@click.option(
    "--capacity-factor",
    "capacity_factors",
    metavar="F",
    type=click.FloatRange(min=0, min_open=True, max=1000),
    multiple=True,
    help="A further capacity factor for moe_capacity, beside 1, 1.25, 1.5 and 2. Repeatable.",
)
@click.option(
    "--peak-gbs",
    metavar="GB/S",
    type=click.FloatRange(min=0, min_open=True),
    help="Memory bandwidth of the GPUs, for moe_roofline. Default: of the data sheet, where the GPU is known.",
)
@click.option(
    "--peak-tflops",
    metavar="TFLOP/S",
    type=click.FloatRange(min=0, min_open=True),
    help="Dense matrix throughput of the GPUs for the experts' number type, likewise.",
)
@click.option("--report", "with_report", is_flag=True, help="Also write DIR/report.html: see `nvtxmoe report`.")
@click.option("--strict", is_flag=True, help="Exit with 3 when the capture is incomplete.")
@partial_option
@click.option(
    "-j",
    "--jobs",
    metavar="N",
    type=click.IntRange(min=1),
    help="Read at most N inputs at a time. Default: as cores and memory allow; with --dask, as there are workers.",
)
@click.option(
    "--dask", metavar="ADDRESS", help="Read the inputs on the Dask cluster of this scheduler, tcp://HOST:8786."
)
@json_option
@opening_options
def analyze(
    inputs: tuple[Path, ...],
    output: Path,
    formats: tuple[str, ...],
    database: Path | None,
    selection: Selection,
    capacity_factors: tuple[float, ...],
    peak_gbs: float | None,
    peak_tflops: float | None,
    with_report: bool,
    strict: bool,
    partial_ok: bool,
    jobs: int | None,
    dask: str | None,
    as_json: bool,
    nsys: Path | None,
    cache_dir: Path | None,
) -> int:
    """Expert statistics and GPU time of every (rank, step, layer).

    INPUT is a .nsys-rep, a SQLite export, a folder of Parquet files, or a folder of such reports. Several, one a rank
    or node, make one result. Filters narrow the tables; the checks look at the whole capture all the same.

    INPUT may also be the session folder of a run without nsys: it gives the tables that need no GPU time, as
    `nvtxmoe merge` does.

    Of several inputs, one that can't be read costs what is in it, not the others: the results are of those, the
    verdict is incomplete, and the exit code 2, or 0 with --partial-ok.
    """
    from nvtxmoe_analysis.core.malloc import keep_low  # noqa: PLC0415

    keep_low()
    from nvtxmoe_analysis.analyze import analyze as run  # noqa: PLC0415  polars only when needed
    from nvtxmoe_analysis.metrics.roofline.peaks import PeakOptions  # noqa: PLC0415
    from nvtxmoe_analysis.overview import overview  # noqa: PLC0415

    refuse_results(inputs)
    with progress_bar() as report_progress:
        done = run(
            inputs,
            output,
            selection=selection,
            formats=tuple(dict.fromkeys(formats)),
            capacity_factors=capacity_factors,
            database=database,
            cache_dir=cache_dir,
            nsys=nsys,
            jobs=jobs,
            dask=dask,
            peaks=PeakOptions(peak_gbs, peak_tflops),
            tell=report_progress,
        )
        summary = overview(done)
        summary["files"] += renew_report(done, report_progress, with_report=with_report)
    if as_json:
        print_json(summary)
    else:
        from nvtxmoe.printing.analysis import show_analysis  # noqa: PLC0415

        show_analysis(stdout(), summary)
    return ending(done, strict=strict, partial_ok=partial_ok)
