"""Print the overview of an analysis: ``analyze``, ``demo``, ``merge``, ``profile``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nvtxmoe.printing.first_lines import show_first_lines

#: Most layers listed in the terminal; the files have all.
MOST_LAYERS = 16


def show_analysis(console: Console, overview: dict[str, Any]) -> None:
    """Print an overview (see ``nvtxmoe_analysis.overview``). The overview of a session has no GPU time."""
    timed = "in_layer_ns" in overview
    show_first_lines(console, overview["answers"])
    console.print(
        f"{_counted(overview['ranks'], 'rank')}, {_counted(overview['steps_kept'], 'step')}"
        + (f" of {overview['steps_captured']:,}" if overview["steps_kept"] != overview["steps_captured"] else "")
        + f", {_counted(len(overview['layers']), 'MoE layer')}, {_counted(overview['tokens'], 'token')}"
    )
    if overview["recording"]:
        console.print(f"Expert ids: {ways_text(overview['recording'])}")
    if timed and overview["in_layer_ns"] is None:
        console.print("GPU time is unknown: the capture has no GPU operation.")
    console.print(_layer_table(overview["layers"], timed))
    if len(overview["layers"]) > MOST_LAYERS:
        most = "most kernel time" if timed else "highest max/mean"
        console.print(f"The {MOST_LAYERS} layers with the {most} of {len(overview['layers'])}; the files have all.")
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


def _layer_table(layers: list[dict[str, Any]], timed: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    times = ("kernels", "copies", "kernels a step", "of it own") if timed else ()
    for name in ("layer", "experts", "top-k", "used", "hottest expert", "max/mean", *times):
        table.add_column(name, justify="right")
    shown = sorted(layers, key=lambda layer: -((layer["kernel_time_ns"] if timed else layer["max_mean"]) or 0))
    for layer in sorted(shown[:MOST_LAYERS], key=lambda layer: layer["layer"]):
        table.add_row(
            str(layer["layer"]),
            *("-" if layer[key] is None else str(layer[key]) for key in ("num_experts", "top_k", "used")),
            "-" if layer["hottest"] is None else f"{layer['hottest']} ({layer['hottest_pct']:.1f} %)",
            "-" if layer["max_mean"] is None else f"{layer['max_mean']:.2f}",
            *(_times(layer) if timed else ()),
        )
    return table


def _times(layer: dict[str, Any]) -> tuple[str, ...]:
    names = ("kernel_time_ns", "copy_time_ns", "kernel_time_ns_per_step", "own_ns_per_step")
    return tuple("-" if layer[name] is None else _duration(layer[name]) for name in names)


def _show_operations(console: Console, title: str, operations: list[dict[str, Any]]) -> None:
    if not operations:
        return
    console.print(title)
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True, overflow="fold")
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for operation in operations:
        table.add_row(
            f"  {_duration(operation['total_ns'])}",
            f"{operation['pct']:.1f} %",
            operation["phase"],
            escape(_short(operation["kernel_name"])),
        )
    console.print(table)


def _show_explained(console: Console, sentences: list[str]) -> None:
    if sentences:
        console.print("What explains the layers' time (docs/explanation/models.md):")
    for sentence in sentences:
        console.print(f"  {escape(sentence)}", soft_wrap=True)


def _short(kernel_name: str) -> str:
    """Return a C++ kernel's name without its template arguments and parameters."""
    name = kernel_name.removeprefix("void ")
    return name if name.startswith("[") else re.split(r"[<(]", name, maxsplit=1)[0] or kernel_name


def _show_verdict(console: Console, overview: dict[str, Any]) -> None:
    if overview["verdict"] == "complete":
        console.print(f"Capture [bold green]complete[/bold green]: {overview['checks_passed']} checks passed.")
    else:
        console.print("Capture [bold red]incomplete[/bold red]:")
        for reason in overview["reasons"]:
            console.print(f"  - {escape(reason)}", soft_wrap=True)
    for warning in overview["warnings"]:
        console.print(f"[yellow]Note:[/yellow] {escape(warning)}", soft_wrap=True)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _duration(nanoseconds: float) -> str:
    if nanoseconds >= 1e9:
        return f"{nanoseconds / 1e9:,.2f} s"
    if nanoseconds >= 1e7:
        return f"{nanoseconds / 1e6:,.1f} ms"
    return f"{nanoseconds / 1e3:,.1f} us"
