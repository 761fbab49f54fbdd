"""What comes of a run: exports, the standard set, and where everything is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats.journal import RANKS, SUFFIX
from nvtxmoe.profile.nsys_command import RAW_FILE, REPORT_FILE
from nvtxmoe.profile.plan import Plan
from nvtxmoe.profile.qdstrm_import import IMPORTER

if TYPE_CHECKING:
    from nvtxmoe_analysis.analyze import Analysis

RESULTS = "moe_expert_tracking"
_HOOKS = (
    "Run it again with --verbose and look in the command's output for what was hooked; "
    "`nvtxmoe doctor` tells whether this vLLM can be hooked"
)


def check_report(plan: Plan) -> Path:
    """The report, after a look that nsys left one.

    Raises:
        NvtxmoeError: it did not.
    """
    report = plan.folder / REPORT_FILE
    if report.exists():
        return report
    raw = plan.folder / RAW_FILE
    if raw.exists():
        raise NvtxmoeError(
            "nsys recorded, but could not make a report of it", where=raw,
            remedy=f"See the end of {plan.log}; the {IMPORTER} of an nsys of this version may still make one of it",
        )  # fmt: skip
    raise NvtxmoeError("nsys left no report", where=plan.folder, remedy=f"See the end of {plan.log}")


def analyze_report(plan: Plan, report: Path) -> Analysis:
    """Export the report with its payloads, write the result files and report.html into the folder, and print what was
    found.

    Raises:
        NvtxmoeError: it can't be read, or the hooks recorded nothing.
    """
    done = _analyze(report, plan.folder, plan.nsys.path if plan.nsys else None)
    _show(done)
    _draw(done)
    return done


def merge_session(session: Path, show: bool) -> Analysis:
    """Merge the journals of direct mode into the standard set, as `nvtxmoe merge` does.

    Parameters:
        session: the folder of direct mode; the results go into it.
        show: print what was found.

    Returns:
        The analysis of the journals.

    Raises:
        NvtxmoeError: nothing was recorded, or the journals can't be merged.
    """
    if not any((session / RANKS).glob(f"*{SUFFIX}")):
        raise NvtxmoeError("nothing was recorded", where=session, remedy=_HOOKS)
    done = _analyze(session, session, None)
    if show:
        _show(done)
    return done


def _analyze(source: Path, output: Path, nsys: Path | None) -> Analysis:
    from nvtxmoe.printing.console import progress_bar  # noqa: PLC0415  polars and rich only when needed
    from nvtxmoe_analysis.analyze import analyze  # noqa: PLC0415

    try:
        with progress_bar() as report_progress:
            return analyze([source], output, nsys=nsys, tell=report_progress)
    except NvtxmoeError as error:
        remedy = f"{error.remedy}. {_HOOKS}" if error.remedy else _HOOKS
        raise NvtxmoeError(error.what, where=error.where or source, remedy=remedy) from error


def _show(done: Analysis) -> None:
    from nvtxmoe.printing.analysis import show_analysis  # noqa: PLC0415
    from nvtxmoe.printing.console import stdout  # noqa: PLC0415
    from nvtxmoe_analysis.overview import overview  # noqa: PLC0415

    show_analysis(stdout(), overview(done))


def _draw(done: Analysis) -> None:
    """report.html, where what draws it is installed: a server may have less than a laptop."""
    from nvtxmoe.printing.console import stdout  # noqa: PLC0415

    try:
        from nvtxmoe_analysis.report import report  # noqa: PLC0415  altair

        page = report(done.folder).page
    except ImportError as error:
        message = f"No report.html: {error}. Elsewhere: nvtxmoe report {done.folder}"
    else:
        message = f"Report: {page}"
    stdout().print(message, soft_wrap=True, markup=False)


def listing(plan: Plan) -> list[str]:
    """The files and folders that a run left, relative to its folder, for people."""
    entries = [entry for entry in sorted(plan.folder.iterdir()) if not entry.name.startswith(".")]
    return [f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries]
