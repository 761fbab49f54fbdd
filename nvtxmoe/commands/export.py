"""Write a trace for ui.perfetto.dev: steps, layers, kernels and expert load in time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nvtxmoe.commands._common import PATH, command, json_option, opening_options, refuse_results
from nvtxmoe.commands._selection import selection_options
from nvtxmoe.printing.console import print_json, progress_bar, stdout

if TYPE_CHECKING:
    from nvtxmoe_analysis.facts.selection import Selection
    from nvtxmoe_analysis.perfetto.export import Exported


@command(
    "export",
    "nvtxmoe export report1.nsys-rep --perfetto run.pftrace.gz\n"
    "nvtxmoe export report1.sqlite --perfetto steps.pftrace --steps 10:20 --all",
)
@click.argument("inputs", metavar="INPUT...", type=PATH, nargs=-1, required=True)
@click.option("--perfetto", "out", metavar="OUT", type=PATH, required=True, help="The trace; compressed as OUT.gz.")
@click.option("--all", "everything", is_flag=True, help="Also operations outside MoE layers.")
@click.option(
    "--experts",
    metavar="N",
    type=click.IntRange(0, 1 << 16),
    default=4,
    show_default=True,
    help="Counters of each layer's N hottest experts.",
)
@selection_options
@click.option(
    "--max-operations",
    metavar="N",
    type=click.IntRange(min=0),
    default=2_000_000,
    show_default=True,
    help="Refuse a trace with more operations.",
)
@json_option
@opening_options
def export(
    inputs: tuple[Path, ...],
    out: Path,
    everything: bool,
    experts: int,
    selection: Selection,
    max_operations: int,
    as_json: bool,
    nsys: Path | None,
    cache_dir: Path | None,
) -> None:
    """A trace for ui.perfetto.dev and Perfetto's trace_processor.

    A process a rank, with its steps, MoE layers, phases, operations by stream, collectives and counters of expert load.
    INPUT is what `nvtxmoe analyze` takes; so are the filters. Sessions of runs without nsys have the counters alone.
    """
    from nvtxmoe_analysis.perfetto.export import export_trace  # noqa: PLC0415  polars only when needed

    refuse_results(inputs)
    with progress_bar() as report_progress:
        done = export_trace(
            inputs,
            out,
            selection=selection,
            everything=everything,
            experts=experts,
            most_operations=max_operations,
            cache_dir=cache_dir,
            nsys=nsys,
            tell=report_progress,
        )
    if as_json:
        print_json(_described(done))
    else:
        for line in _lines(done):
            stdout().print(line, markup=False, soft_wrap=True)


def _described(done: Exported) -> dict[str, Any]:
    totals = done.totals
    return {
        "file": str(done.path),
        "bytes": done.size_bytes,
        "slices": totals.slices,
        "counter_values": totals.counter_values,
        "cells_without_time": totals.untimed,
        "tracks": totals.tracks,
        "clock": done.axis.clock,
        "offsets_ns": list(done.axis.offsets_ns),
        "unix_ns": done.axis.unix_ns,
    }


#: What is said of clocks where something is to be said.
_CLOCKS = {
    "collectives": "Note: the reports' clocks were put together by their collectives, not by what they recorded.",
    "none": "Note: the reports' clocks could not be put on one axis: times of different reports can't be compared.",
}


def _lines(done: Exported) -> list[str]:
    from nvtxmoe_analysis.core.text import number  # noqa: PLC0415  only when it prints

    totals = done.totals
    lines = [
        f"{done.path}: {number(sum(totals.slices.values()), 'slice')} and "
        f"{number(totals.counter_values, 'value')} of counters on {number(totals.tracks, 'track')}, "
        f"{done.size_bytes / 1e6:.1f} MB",
        *(f"  {count:>12,}  {name}" for name, count in totals.slices.items()),
    ]
    if totals.untimed:
        lines.append(
            f"Note: {totals.untimed:,} (step, layer) have counts and no range of their step: not in the trace."
        )
    if done.axis.clock in _CLOCKS:
        lines.append(_CLOCKS[done.axis.clock])
    return [*lines, "Open it in https://ui.perfetto.dev (nothing is uploaded), or with Perfetto's trace_processor."]
