"""Write the report: the findings and charts of a results folder as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nvtxmoe_analysis.report.result import Report

if TYPE_CHECKING:
    from nvtxmoe_analysis.report.advice import Advised


def report(folder: Path, *, images: bool = False, advised: Advised | None = None) -> Report:
    """Write DIR/report.html from the result files.

    Parameters:
        folder: DIR of ``analyze`` or ``merge``, or ``moe_expert_tracking`` inside it.
        images: write each chart as SVG and PNG beside the page too.
        advised: the results in memory with their findings, as ``analyze`` gives them; default: they are read and found.

    Raises:
        NvtxmoeError: the folder has no results, or the page can't be written. The page itself lists results that are
            absent or damaged.
    """
    from nvtxmoe_analysis.report.build import build  # noqa: PLC0415  altair only when a report is made

    return build(folder, images=images, advised=advised)
