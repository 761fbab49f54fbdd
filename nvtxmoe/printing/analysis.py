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
        console.print(f"Expert ids: {ways_text(overview['recording'])}")
    if timed and overview["in_layer_ns"] is None:
        console.print("GPU time is unknown: the capture has no GPU operation.")
    _show_layers(console, overview["layers"], timed)
    if len(overview["layers"]) > MOST_LAYERS:
        ranked_by = "most kernel time" if timed else "highest max/mean"
        console.print(
            f"The {MOST_LAYERS} layers with the {ranked_by} of {len(overview['layers'])}; the files have all."
        )
    if timed:
        _show_operations(console, "Most GPU time in MoE layers:", overview["kernels"])
        _show_operations(console, "Most GPU time of steps outside MoE layers:", overview["outside"])
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
_TIMED = (
    Column("kernels", drop=1),
    Column("copies", drop=6),
    Column("kernels per step", drop=2),
    Column("own per step"),
)


def _show_layers(console: Console, layers: list[dict[str, Any]], timed: bool) -> None:
    rows = []
    shown = sorted(layers, key=lambda layer: -((layer["kernel_time_ns"] if timed else layer["max_mean"]) or 0))
    for layer in sorted(shown[:MOST_LAYERS], key=lambda layer: layer["layer"]):
        rows.append(
            (
                str(layer["layer"]),
                *("-" if layer[key] is None else str(layer[key]) for key in ("num_experts", "top_k", "used")),
                "-" if layer["hottest"] is None else f"{layer['hottest']} ({layer['hottest_pct']:.1f} %)",
                "-" if layer["max_mean"] is None else f"{layer['max_mean']:.2f}",
                *(_times(layer) if timed else ()),
            )
        )
    where = "moe_summary.json, moe_layer_timings" if timed else "moe_summary.json"
    show_table(console, [*_ROUTED, *(_TIMED if timed else ())], rows, elsewhere=f"see {where}")


def _times(layer: dict[str, Any]) -> tuple[str, ...]:
    names = ("kernel_time_ns", "copy_time_ns", "kernel_time_ns_per_step", "own_ns_per_step")
    return tuple("-" if layer[name] is None else _duration(layer[name]) for name in names)


def _show_operations(console: Console, title: str, operations: list[dict[str, Any]]) -> None:
    if not operations:
        return
    console.print(title)
    rows = [
        (
            f"  {_duration(operation['total_ns'])}",
            f"{operation['pct']:.1f} %",
            operation["phase"],
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


def _duration(nanoseconds: float) -> str:
    if nanoseconds >= 1e9:
        return f"{nanoseconds / 1e9:,.2f} s"
    if nanoseconds >= 1e7:
        return f"{nanoseconds / 1e6:,.1f} ms"
    return f"{nanoseconds / 1e3:,.1f} us"
