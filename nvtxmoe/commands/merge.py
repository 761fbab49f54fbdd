"""Merge the journals of a run without nsys into expert statistics."""

from __future__ import annotations

from pathlib import Path

import click

from nvtxmoe.commands._common import PATH, command, ending, json_option, partial_option, renew_report
from nvtxmoe.printing.console import print_json, progress_bar, stdout


@command(
    "merge",
    "nvtxmoe merge /tmp/vllm_profiling/session_20251125_083000\n"
    "nvtxmoe merge /tmp/vllm_profiling/session_20251125_083000 --report\n"
    "nvtxmoe merge host0/session_20251125_083000 host1/session_20251125_083001 -o results",
)
@click.argument("sessions", metavar="SESSION...", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, help="Folder for the results. Default: the first SESSION.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["csv", "parquet"]),
    multiple=True,
    default=("csv",),
    show_default=True,
    help="Format of the tables. Give it twice for both.",
)
@click.option("--report", "with_report", is_flag=True, help="Also write DIR/report.html: see `nvtxmoe report`.")
@click.option("--strict", is_flag=True, help="Exit with 3 when the capture is incomplete.")
@partial_option
@json_option
def merge(
    sessions: tuple[Path, ...],
    output: Path | None,
    formats: tuple[str, ...],
    with_report: bool,
    strict: bool,
    partial_ok: bool,
    as_json: bool,
) -> int:
    """Expert statistics of a run without nsys.

    SESSION is the folder that direct mode made of a run. Several, one a host, make one result. A run that still goes
    on, or was killed, is read as far as its processes have written. In place of a folder, journals (the files in its
    folder ranks) may be named: those of one run, where an engine was started again.

    Of several, one that can't be read costs what is in it, not the others: the results are of those, the verdict is
    incomplete, and the exit code 2, or 0 with --partial-ok.
    """
    from nvtxmoe_analysis.analyze import analyze  # noqa: PLC0415
    from nvtxmoe_analysis.overview import overview  # noqa: PLC0415
    from nvtxmoe_analysis.readers.session import require_session, session_folder  # noqa: PLC0415  polars when needed

    for session in sessions:
        require_session(session)
    chosen = session_folder(sessions[0]) if output is None else output
    with progress_bar() as report_progress:
        done = analyze(sessions, chosen, formats=tuple(dict.fromkeys(formats)), tell=report_progress)
        summary = overview(done)
        summary["files"] += renew_report(done, report_progress, with_report=with_report)
    if as_json:
        print_json(summary)
    else:
        from nvtxmoe.printing.analysis import show_analysis  # noqa: PLC0415

        show_analysis(stdout(), summary)
    return ending(done, strict=strict, partial_ok=partial_ok)
