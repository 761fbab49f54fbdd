"""The report: what the result files say, as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from nvtxmoe_analysis.report.result import Report


def report(folder: Path, *, images: bool = False) -> Report:
    """Write DIR/report.html from the result files.

    Parameters:
        folder: DIR of ``analyze`` or ``merge``, or ``moe_expert_tracking`` inside it.
        images: also each chart as SVG and PNG beside the page.

    Raises:
        NvtxmoeError: no results there, or the page can't be written. What is absent or damaged among the results is
            said in the page.
    """
    from nvtxmoe_analysis.report.build import build  # noqa: PLC0415  altair only when a report is made

    return build(folder, images=images)
