"""The report: what the result files say, as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvtxmoe_analysis.report.finding import Finding

#: The page's name in DIR; charts are REPORT-NAME.svg and .png.
REPORT = "report"


@dataclass(frozen=True)
class Report:
    """What was made.

    Attributes:
        page: the HTML file.
        findings: in the order of the page.
        charts: names of the charts that were drawn.
        missing: the reason by chart that could not be drawn.
        images: the files of ``--images``.
        absent: files that are missing or could not be used, each with the reason.
    """

    page: Path
    findings: Sequence[Finding]
    charts: Sequence[str]
    missing: Mapping[str, str]
    images: Sequence[Path]
    absent: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready; each finding with its figures and where they are."""
        return {
            "report": str(self.page),
            "findings": [finding.as_dict() for finding in self.findings],
            "charts": list(self.charts),
            "missing": dict(self.missing),
            "absent": list(self.absent),
            "images": [str(image) for image in self.images],
        }


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
