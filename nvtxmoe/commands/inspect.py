"""Show what is in an export, in a second, before any analysis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nvtxmoe.commands._common import PATH, command, json_option, opening_options, refuse_results
from nvtxmoe.errors import BAD_INPUT
from nvtxmoe.printing.console import print_json, stdout, waiting

if TYPE_CHECKING:
    from nvtxmoe_analysis.inspection.inspect import Inspection


@command("inspect", "nvtxmoe inspect report1.nsys-rep\nnvtxmoe inspect rank0.sqlite rank1.sqlite --json")
@click.argument("inputs", metavar="INPUT...", type=PATH, nargs=-1, required=True)
@json_option
@opening_options
def inspect(inputs: tuple[Path, ...], as_json: bool, nsys: Path | None, cache_dir: Path | None) -> int:
    """Say what is in an export, before any analysis.

    Versions, processes, steps, layers, payloads, CUDA activity, and whether something is missing as far as that
    can be told at a glance. INPUT is a .nsys-rep, a SQLite export, a folder of Parquet files, or the session folder
    of a run without nsys; several belong to one run. Exits with 2 when an input holds no nvtxmoe events.
    """
    from nvtxmoe_analysis.inspection.inspect import NO_EVENTS  # noqa: PLC0415
    from nvtxmoe_analysis.inspection.inspect import inspect as run  # noqa: PLC0415
    from nvtxmoe_analysis.readers.open import open_export, refuse_mixture  # noqa: PLC0415  polars only when needed

    refuse_results(inputs)
    refuse_mixture(inputs)
    with waiting("reading"):
        inspection: Inspection = run([open_export(path, cache_dir=cache_dir, nsys=nsys) for path in inputs])
    if as_json:
        print_json(inspection.as_dict())
    else:
        from nvtxmoe.printing.inspection import show_inspection  # noqa: PLC0415

        show_inspection(stdout(), inspection)
    return BAD_INPUT if inspection.verdict == NO_EVENTS else 0
