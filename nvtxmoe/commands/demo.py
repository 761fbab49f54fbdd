"""Analyze the capture that ships with nvtxmoe; needs no GPU and no nsys."""

from __future__ import annotations

from pathlib import Path

import click

import nvtxmoe
from nvtxmoe.commands._common import PATH, command, json_option
from nvtxmoe.printing.console import print_json, progress_bar, stdout

CAPTURE = Path(nvtxmoe.__file__).parent / "data" / "demo"


@command("demo", "nvtxmoe demo\nnvtxmoe demo -o /tmp/first-look")
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("nvtxmoe-demo"),
    show_default=True,
    help="Folder for the results.",
)
@json_option
def demo(output: Path, as_json: bool) -> None:
    """Analyse the capture that ships with nvtxmoe.

    Two H200s, vLLM 0.33.0 with CUDA graphs, tensor and expert parallel: 51 steps of the shape of Qwen3-30B-A3B (48
    layers, 128 experts, top-8). Weights and prompts are made up, and gates are skewed on purpose. Needs no GPU and no
    nsys.
    """
    from nvtxmoe_analysis.analyze import analyze  # noqa: PLC0415  polars only when needed
    from nvtxmoe_analysis.overview import overview  # noqa: PLC0415
    from nvtxmoe_analysis.report import report  # noqa: PLC0415

    with progress_bar() as report_progress:
        done = analyze([_capture()], output, tell=report_progress)
        summary = overview(done)
        report_progress("report", None)
        page = report(done.folder).page
        summary["files"].append(str(page))
    if as_json:
        print_json(summary)
        return
    from nvtxmoe.printing.analysis import show_analysis  # noqa: PLC0415

    console = stdout()
    console.print("A real capture: 2 x H200, vLLM 0.33.0, CUDA graphs, shape of Qwen3-30B-A3B.")
    console.print("Made up: weights, prompts, and gates, which are skewed to make experts hot.")
    show_analysis(console, summary)
    console.print(f"Open {page} in a browser for all findings and charts.", soft_wrap=True)
    console.print("Next, your own: nvtxmoe analyze REPORT.nsys-rep -o results --report")


def _capture() -> Path:
    """Return the capture's path, from the current folder if it is below that: commands are printed with it."""
    current = Path.cwd()
    return CAPTURE.relative_to(current) if CAPTURE.is_relative_to(current) else CAPTURE
