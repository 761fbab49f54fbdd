"""Test whether a capture can work here, and find what is in its way."""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from nvtxmoe.commands._common import PATH, command, json_option
from nvtxmoe.doctor.diagnosis import NOTE, OK, PROBLEM, Finding
from nvtxmoe.doctor.kernel_choice import GENERATIONS
from nvtxmoe.errors import BAD_INPUT
from nvtxmoe.printing.console import print_json, stdout, waiting
from nvtxmoe.printing.table import Column, cell_text, show_table

_COLUMNS = (Column("level", False), Column("topic", False), Column("text", False, wraps=True))
_STYLES = {OK: "green", NOTE: "yellow", PROBLEM: "bold red"}


@command(
    "doctor",
    "nvtxmoe doctor\n"
    "nvtxmoe doctor --python ~/vllm/bin/python --model Qwen/Qwen3-30B-A3B --steps 5000\n"
    "nvtxmoe doctor --model ./Qwen3-30B-A3B --gpu b200",
)
@click.option("--python", type=PATH, help="The Python that serves. Default: that of the vllm command, else this one.")
@click.option("--nsys", type=PATH, help="An nsys that has to work. Default: $NVTXMOE_NSYS, then nsys on the PATH.")
@click.option(
    "--model",
    type=PATH,
    help="A model's folder, config.json, or name on the hub if it is in the local cache: say how each of its layers "
    "will be recorded, and estimate the bytes of its capture.",
)
@click.option("--gpu", type=click.Choice(sorted(GENERATIONS)), help="The GPU that will serve. Default: this machine's.")
@click.option("--steps", type=click.IntRange(1), default=1000, show_default=True, help="Steps of that estimate.")
@click.option("--tokens", type=click.IntRange(1), default=32, show_default=True, help="Tokens a step of it.")
@json_option
def doctor(
    python: Path | None,
    nsys: Path | None,
    model: Path | None,
    gpu: str | None,
    steps: int,
    tokens: int,
    as_json: bool,
) -> int:
    """Say whether a capture can work here, and what is in its way.

    Looks at vLLM, PyTorch, nvtx and Nsight Systems (trying out whether it records what nvtx emits), the way into vLLM,
    the settings in force, the disk, and kernels that hide routing. Imports vLLM in a process of its own. Exits with 2
    when a capture can't work, but not where --model is given on a machine without a GPU: there the question is how
    the model's layers will be recorded elsewhere.
    """
    from nvtxmoe.doctor.examinations.gpu import device_names  # noqa: PLC0415  only when it runs
    from nvtxmoe.doctor.examine import can_capture, examine  # noqa: PLC0415

    with waiting("looking"):
        findings = examine(os.environ, python=python, nsys=nsys, model=model, gpu=gpu, steps=steps, tokens=tokens)
    good = can_capture(findings)
    elsewhere = model is not None and not device_names()
    if as_json:
        print_json({"can_capture": good, "findings": [finding.as_dict() for finding in findings]})
    else:
        show_findings(stdout(), findings, good, elsewhere)
    return 0 if good or elsewhere else BAD_INPUT


def show_findings(console: Console, findings: list[Finding], good: bool, elsewhere: bool) -> None:
    """Print what was found, and whether a capture can work."""
    from nvtxmoe_analysis.core.text import number  # noqa: PLC0415  only when it prints

    rows = []
    for finding in findings:
        text = cell_text(finding.what)
        if finding.remedy:
            text.append("\n").append(cell_text(finding.remedy).plain, "bold")
        rows.append((Text(finding.level, _STYLES[finding.level]), finding.topic, text))
    show_table(console, _COLUMNS, rows, elsewhere="see --json", header=False)
    counts = {level: sum(finding.level == level for finding in findings) for level in (NOTE, PROBLEM)}
    end = "A capture can work." if good else "A capture can't work: see the problems."
    if elsewhere and not good:
        end = "This machine, which has no GPU, can't capture: see the problems. What is said of the model is not of it."
    level_counts = [number(counts[level], word) for level, word in ((PROBLEM, "problem"), (NOTE, "note"))]
    console.print(f"{end} {', '.join(level_counts)}.")
