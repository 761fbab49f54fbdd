"""Write findings and charts of results as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nvtxmoe.commands._common import PATH, command, json_option
from nvtxmoe.printing.console import print_json, stderr, stdout

if TYPE_CHECKING:
    from rich.console import Console

    from nvtxmoe_analysis.report.result import Report


@command("report", "nvtxmoe report results\nnvtxmoe report results --images")
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--images", is_flag=True, help="Also write each chart as SVG and PNG beside the page.")
@json_option
def report(folder: Path, images: bool, as_json: bool) -> None:
    """Findings and charts of an analysis, in DIR/report.html.

    DIR is the folder that `nvtxmoe analyze -o DIR` or `nvtxmoe merge` wrote, or moe_expert_tracking inside it. The page
    needs nothing else: it can be mailed, and opens without a network. Every number of it is in the files. What an
    older analysis, or a run without nsys, does not have is left out, and the page says so.
    """
    from nvtxmoe_analysis.report import report as run  # noqa: PLC0415  polars and altair only when needed

    with stderr().status("drawing"):
        made = run(folder, images=images)
    if as_json:
        print_json(made.as_dict())
    else:
        show(stdout(), made)


def show(console: Console, made: Report) -> None:
    """Print the findings' first sentences, what could not be drawn, and the files."""
    for number, finding in enumerate(made.findings, 1):
        _line(console, f"{number}. {finding.headline}")
    for chart, reason in made.missing.items():
        _line(console, f"No chart {chart}: {reason.removeprefix('Not drawn: ')}")
    _line(console, f"Report: {made.page}")
    if made.images:
        _line(console, f"Charts: {len(made.images)} files {made.page.parent / 'report-*'}")


def _line(console: Console, text: str) -> None:
    """A line as it stands: names come from the capture."""
    shown: Any = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    console.print(shown, soft_wrap=True, markup=False)
