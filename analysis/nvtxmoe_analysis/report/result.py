"""The result of writing a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvtxmoe_analysis.report.advice import Advice
from nvtxmoe_analysis.report.commands import output_folder
from nvtxmoe_analysis.report.finding import Finding

#: The page's name in DIR; charts are REPORT-NAME.svg and .png.
REPORT = "report"


def page_of(results: Path) -> Path:
    """Return where the page of a folder of result files is: beside ``moe_expert_tracking``, else in the folder."""
    return output_folder(results) / f"{REPORT}.html"


@dataclass(frozen=True)
class Report:
    """Files and findings of a written report.

    Attributes:
        page: the HTML file.
        advice: findings and answers, also in ``findings.json``.
        charts: names of the charts that were drawn.
        missing: the reason by chart that could not be drawn.
        images: the files of ``--images``.
        absent: files that are missing or could not be used, each with the reason.
    """

    page: Path
    advice: Advice
    charts: Sequence[str]
    missing: Mapping[str, str]
    images: Sequence[Path]
    absent: Sequence[str] = ()

    @property
    def findings(self) -> Sequence[Finding]:
        """The findings in the order of the page."""
        return self.advice.findings

    def as_dict(self) -> dict[str, Any]:
        """Return the report, JSON-ready; each finding with its numbers and their origin."""
        return {
            "report": str(self.page),
            **self.advice.as_dict(),
            "charts": list(self.charts),
            "missing": dict(self.missing),
            "absent": list(self.absent),
            "images": [str(image) for image in self.images],
        }
