"""Print the overview of an analysis: ``analyze``, ``demo``, ``merge``, ``profile``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from nvtxmoe.printing.first_lines import show_first_lines
from nvtxmoe.printing.table import Column, show_item, show_table
from nvtxmoe_analysis.core.text import number, short_name

#: Most layers listed in the terminal; the files have all.
MOST_LAYERS = 16


def show_analysis(console: Console, overview: dict[str, Any]) -> None:
    """Print an overview (see ``nvtxmoe_analysis.overview``). The overview of a session has no GPU time."""
    timed = "in_layer_ns" in overview
    show_first_lines(console, overview["answers"])
    console.print(
        f"{number(overview['ranks'], 'rank')}, {number(overview['steps_kept'], 'step')}"
        + (f" of {overview['steps_captured']:,}" if overview["steps_kept"] != overview["steps_captured"] else "")
        + f", {number(len(overview['layers']), 'MoE layer')}, {number(overview['tokens'], 'token')}"
    )
    if overview["recording"]:
        console.print(f"Expert ids recorded by: {ways_text(overview['recording'])} (docs/reference/payload-schema.md)")
    if timed and overview["in_layer_ns"] is None:
        console.print("GPU time is unknown: the capture has no GPU operation.")
    _show_layers(console, overview, timed)
    if timed:
        _show_operations(
            console, "Kernels with most GPU time in MoE layers (sum of all steps and ranks):", overview["kernels"]
        )
        _show_operations(
            console, "Kernels with most GPU time outside MoE layers (sum of all steps and ranks):", overview["outside"]
        )
        _show_explained(console, overview["explained"])
    _show_verdict(console, overview)
    console.print(f"Results in [bold]{escape(overview['folder'])}[/bold]:", soft_wrap=True)
    for file in overview["files"]:
        console.print(f"  {escape(file)}", soft_wrap=True)


def ways_text(recording: Mapping[str, str]) -> str:
    """Return ``references (layers 0-2), recomputed (layer 3)``; one way of all layers alone, ``references``."""
    if len(recording) == 1:
        return next(iter(recording))
    return ", ".join(f"{way} (layer{'' if layers.isdigit() else 's'} {layers})" for way, layers in recording.items())


#: Columns of a layer; those with a number have no room in a narrow terminal, the largest number first.
_ROUTED = (
    Column("layer"),
    Column("experts", drop=4),
    Column("top-k", drop=5),
    Column("used", drop=3),
    Column("hottest expert"),
    Column("max/mean"),
)
#: Times per step of a layer: title, key, whether there is room in a narrow terminal.
_TIMED = (("kernel time", "kernel_time_ns_per_step", 1), ("own time", "own_ns_per_step", 0))


def _show_layers(console: Console, overview: dict[str, Any], timed: bool) -> None:
    """Print the layers that take most, and which steps the numbers are of."""
    layers = overview["layers"]
    if not layers:
        return
    of = overview.get("times_per_step_of")
    counted = f"Experts by layer, counted over {number(overview['steps_kept'], 'step')} of all ranks"
    console.print(f"{counted}; times per step, {of}:" if of else f"{counted}:")
    key = "own_ns_per_step" if of else "max_mean"
    shown = sorted(layers, key=lambda layer: -(layer.get(key) or 0))[:MOST_LAYERS]
    times = [time for time in _TIMED if of] if timed else []
    units = {name: _unit(layers, name) for _, name, _ in times}
    rows = [
        (
            str(layer["layer"]),
            *("-" if layer[key] is None else str(layer[key]) for key in ("num_experts", "top_k", "used")),
            "-" if layer["hottest"] is None else f"{layer['hottest']} ({layer['hottest_pct']:.1f} %)",
            "-" if layer["max_mean"] is None else f"{layer['max_mean']:.2f}",
            *("-" if layer[name] is None else _in_unit(layer[name], unit) for name, unit in units.items()),
        )
        for layer in sorted(shown, key=lambda layer: layer["layer"])
    ]
    columns = [*_ROUTED, *(Column(f"{title} ({units[name]})", drop=drop) for title, name, drop in times)]
    where = "moe_summary.json, moe_layer_timings" if timed else "moe_summary.json"
    show_table(console, columns, rows, elsewhere=f"see {where}")
    console.print("max/mean: the hottest expert over the mean expert." + (f" {OWN}" if times else ""))
    if len(layers) > MOST_LAYERS:
        ranked_by = "most own time" if of else "highest max/mean"
        console.print(f"The {MOST_LAYERS} layers with the {ranked_by} of {len(layers)}; the files have all.")


OWN = "Own time is kernel time without collectives."
#: Nanoseconds of the units that a column of times has, the longest first.
UNITS = {"s": 1e9, "ms": 1e6, "us": 1e3}
#: So many of a unit are its least for a column.
LEAST_OF_UNIT = 10


def _unit(rows: list[dict[str, Any]], name: str) -> str:
    """Return the one unit of a column of times, by its longest."""
    longest = max((row[name] or 0 for row in rows), default=0)
    return next((unit for unit, ns in UNITS.items() if longest >= LEAST_OF_UNIT * ns), "us")


def _in_unit(ns: float, unit: str) -> str:
    """Return a time without its unit, ``< 0.1`` if one decimal does not show it."""
    value = ns / UNITS[unit]
    return "< 0.1" if 0 < value < 0.05 else f"{value:,.1f}"


#: After the phase of a collective that runs inside another phase, such as an exchange of data-parallel ranks.
COLLECTIVE_IN = ", collective"


def _is_collective_elsewhere(operation: dict[str, Any]) -> bool:
    return bool(operation.get("collective")) and operation["phase"] != "collective"


def _show_operations(console: Console, title: str, operations: list[dict[str, Any]]) -> None:
    if not operations:
        return
    console.print(title)
    unit = _unit(operations, "total_ns")
    rows = [
        (
            f"  {_in_unit(operation['total_ns'], unit)} {unit}",
            f"{operation['pct']:.1f} %",
            operation["phase"] + (COLLECTIVE_IN if _is_collective_elsewhere(operation) else ""),
            short_name(operation["kernel_name"]),
        )
        for operation in operations
    ]
    show_table(console, _OPERATION, rows, elsewhere="see moe_kernel_timings", header=False)


#: Columns of a kernel or copy: time, share, phase, name.
_OPERATION = (Column("time"), Column("share"), Column("phase", right=False, drop=1), Column("name", False, wraps=True))


def _show_explained(console: Console, sentences: list[str]) -> None:
    if sentences:
        console.print("What explains the layers' time (docs/explanation/models.md):")
    for sentence in sentences:
        show_item(console, sentence)


def _show_verdict(console: Console, overview: dict[str, Any]) -> None:
    if overview["verdict"] == "complete":
        console.print(
            f"Capture [bold green]complete[/bold green]: {number(overview['checks_passed'], 'check')} passed."
        )
    else:
        console.print("Capture [bold red]incomplete[/bold red]:")
        for reason in overview["reasons"]:
            show_item(console, reason, "  - ")
    for warning in overview["warnings"]:
        console.print(f"[yellow]Note:[/yellow] {escape(warning)}")
