"""Predict what other placements of experts would save, in microseconds per step, with a verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click

from nvtxmoe.commands._common import PATH, command, json_option
from nvtxmoe.commands._selection import numbers
from nvtxmoe.printing.console import print_json, stdout, waiting


@command(
    "place",
    "nvtxmoe place results\n"
    "nvtxmoe place results -o placements --link-gbs 400 --rearrange-every 3000\n"
    "nvtxmoe place results --value mine.json --json",
)
@click.argument("results", metavar="RESULTS", type=PATH)
@click.option("-o", "--output", type=PATH, help="Also write placements and JSON into DIR/moe_placement.")
@click.option(
    "--value",
    "placement_files",
    metavar="PLACEMENT.json",
    type=PATH,
    multiple=True,
    help="Value this placement instead of the algorithms'. May be given several times.",
)
@click.option(
    "--redundant",
    metavar="N",
    type=click.IntRange(min=1),
    help="Slots beyond one per expert. Default: the fewest that divide equally between the ranks.",
)
@click.option(
    "--rearrange-every",
    metavar="STEPS",
    type=click.IntRange(min=1),
    default=3000,
    show_default=True,
    help="Steps between two rearrangements, over which the cost of moving weights is spread.",
)
@click.option(
    "--link-gbs",
    metavar="GB/S",
    type=click.FloatRange(min=0, min_open=True),
    help="At which a rank gets weights (10^9 bytes). Default: moving is not counted.",
)
@click.option(
    "--least-gain",
    "least_gain_pct",
    metavar="PERCENT",
    type=click.FloatRange(0, 100),
    default=1.0,
    show_default=True,
    help="Of a step's GPU time: a smaller gain is not worth it.",
)
@click.option("--fit-layers", metavar="LIST", help="Fit by these layers only (0,3,8-11) and predict all.")
@click.option(
    "--batch",
    "batches",
    metavar="TOKENS",
    type=click.IntRange(min=1),
    multiple=True,
    help="Also predict decode at this many tokens per step, within those seen. May be given several times.",
)
@json_option
def place(
    results: Path,
    output: Path | None,
    placement_files: tuple[Path, ...],
    redundant: int | None,
    rearrange_every: int,
    link_gbs: float | None,
    least_gain_pct: float,
    fit_layers: str | None,
    batches: tuple[int, ...],
    as_json: bool,
) -> int:
    """Predict what other placements of experts on ranks would save.

    RESULTS is a folder that `nvtxmoe analyze -o` wrote, of a run with expert parallelism and GPU time. The kernel time
    of each rank is fitted to its expert tiles and active experts on half of the steps; placements are valued on the
    other half. docs/explanation/placement.md has the formula and its limits.
    """
    from nvtxmoe_analysis import load  # noqa: PLC0415  polars only when needed
    from nvtxmoe_analysis.placement.batch import at_batch  # noqa: PLC0415
    from nvtxmoe_analysis.placement.document import document, write  # noqa: PLC0415
    from nvtxmoe_analysis.placement.formats.ours import read  # noqa: PLC0415
    from nvtxmoe_analysis.placement.predict import Options, Predictor  # noqa: PLC0415

    layers = numbers(fit_layers, "--fit-layers")
    options = Options(
        redundant, rearrange_every, link_gbs, least_gain_pct, None if layers is None else tuple(sorted(layers))
    )
    with waiting("predicting"):
        placements = {path.stem: read(path) for path in placement_files}
        predictor = Predictor(load(results), options)
        prediction = predictor.value(placements) if placements else predictor.place()
        fields = document(prediction, [at_batch(predictor, tokens) for tokens in batches])
        files: list[Path] = []
        files_lacking: Mapping[str, str] = {}
        if output is not None:
            files, files_lacking = write(prediction, output, json.dumps(fields, indent=1) + "\n")
    fields = {**fields, "files": [str(file) for file in files], "files_lacking": dict(files_lacking)}
    if as_json:
        print_json(fields)
    else:
        from nvtxmoe.printing.placement import show_placement  # noqa: PLC0415

        show_placement(stdout(), fields)
    return 0
