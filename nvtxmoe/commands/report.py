"""Write findings and charts of results as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nvtxmoe.commands._common import PATH, command, json_option
from nvtxmoe.printing.console import print_json, stdout, waiting

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

    with waiting("drawing"):
        made = run(folder, images=images)
    if as_json:
        print_json(made.as_dict())
    else:
        show(stdout(), made)


def show(console: Console, made: Report) -> None:
    """Print the four answers, the findings' titles, what could not be drawn, and the files."""
    from nvtxmoe.printing.first_lines import show_first_lines  # noqa: PLC0415
    from nvtxmoe.terminal_text import harmless  # noqa: PLC0415  rich drops what it does not print
    from nvtxmoe_analysis.core.text import number  # noqa: PLC0415

    show_first_lines(console, [answer.as_dict() for answer in made.advice.answers])
    lines = [f"{place}. {finding.headline}" for place, finding in enumerate(made.findings, 1)]
    lines += [f"No chart {chart}: {reason.removeprefix('Not drawn: ')}" for chart, reason in made.missing.items()]
    lines.append(f"Report: {made.page}")
    if made.images:
        lines.append(f"Charts: {number(len(made.images), 'file')} {made.page.parent / 'report-*'}")
    for line in lines:
        console.print(harmless(line), soft_wrap=True, markup=False)
