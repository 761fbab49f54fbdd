"""What ``analyze``, ``demo`` and ``merge`` print for people."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

#: Layers listed on the terminal; the files have all.
MOST_LAYERS = 16


def show_analysis(console: Console, found: dict[str, Any]) -> None:
    """Print an overview (see nvtxmoe_analysis.overview); of sessions of direct mode nothing of the GPU is in it."""
    timed = "in_layer_ns" in found
    if found["verdict"] != "complete":
        console.print("Capture [bold red]incomplete[/bold red], see below: the numbers lack what is missing.")
    console.print(
        f"{_many(found['ranks'], 'rank')}, {_many(found['steps_kept'], 'step')}"
        + (f" of {found['steps_captured']:,}" if found["steps_kept"] != found["steps_captured"] else "")
        + f", {_many(len(found['layers']), 'MoE layer')}, {_many(found['tokens'], 'token')}"
    )
    if timed and found["in_layer_ns"] is None:
        console.print("GPU time is unknown: the capture has no GPU operation.")
    elif timed:
        console.print(
            f"{_us(found['in_layer_ns'])} of kernels and copies in MoE layers, summed over ranks"
            + (f": {found['in_layer_pct']:.1f} % of all in steps" if found["in_layer_pct"] is not None else "")
        )
    console.print(_layer_table(found["layers"], timed))
    if len(found["layers"]) > MOST_LAYERS:
        most = "most kernel time" if timed else "highest max/mean"
        console.print(f"The {MOST_LAYERS} layers with the {most} of {len(found['layers'])}; the files have all.")
    if timed:
        _show_operations(console, "Most GPU time in MoE layers:", found["kernels"])
        _show_operations(console, "Most GPU time of steps outside MoE layers:", found["outside"])
        _show_explained(console, found["explained"])
    _show_verdict(console, found)
    console.print(f"Results in [bold]{escape(found['folder'])}[/bold]:", soft_wrap=True)
    for file in found["files"]:
        console.print(f"  {escape(file)}", soft_wrap=True)


def _layer_table(layers: list[dict[str, Any]], timed: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    times = ("kernels", "copies", "kernels a step", "of it own") if timed else ()
    for name in ("layer", "experts", "top-k", "used", "hottest expert", "max/mean", *times):
        table.add_column(name, justify="right")
    shown = sorted(layers, key=lambda one: -((one["kernel_time_ns"] if timed else one["max_mean"]) or 0))[:MOST_LAYERS]
    for one in sorted(shown, key=lambda each: each["layer"]):
        table.add_row(
            str(one["layer"]),
            *("-" if one[key] is None else str(one[key]) for key in ("num_experts", "top_k", "used")),
            "-" if one["hottest"] is None else f"{one['hottest']} ({one['hottest_pct']:.1f} %)",
            "-" if one["max_mean"] is None else f"{one['max_mean']:.2f}",
            *(_times(one) if timed else ()),
        )
    return table


def _times(one: dict[str, Any]) -> tuple[str, ...]:
    a_step = (one["kernel_time_ns_per_step"], one["own_ns_per_step"])
    times = (one["kernel_time_ns"], one["copy_time_ns"], *a_step)
    return tuple("-" if time is None else _us(time) for time in times)


def _show_operations(console: Console, title: str, operations: list[dict[str, Any]]) -> None:
    if not operations:
        return
    console.print(title)
    table = Table(box=None, pad_edge=False, show_header=False)
    for justify in ("right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True, overflow="fold")
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for one in operations:
        table.add_row(
            f"  {_us(one['total_ns'])}", f"{one['pct']:.1f} %", one["phase"], escape(_short(one["kernel_name"]))
        )
    console.print(table)


def _show_explained(console: Console, sentences: list[str]) -> None:
    if sentences:
        console.print("What explains the layers' time (docs/models.md):")
    for one in sentences:
        console.print(f"  {escape(one)}", soft_wrap=True)


def _short(kernel_name: str) -> str:
    """A C++ kernel's name without its template arguments and parameters."""
    name = kernel_name.removeprefix("void ")
    return name if name.startswith("[") else re.split(r"[<(]", name, maxsplit=1)[0] or kernel_name


def _show_verdict(console: Console, found: dict[str, Any]) -> None:
    if found["verdict"] == "complete":
        console.print(f"Capture [bold green]complete[/bold green]: {found['checks_passed']} checks passed.")
    else:
        console.print("Capture [bold red]incomplete[/bold red]:")
        for reason in found["reasons"]:
            console.print(f"  - {escape(reason)}", soft_wrap=True)
    for warning in found["warnings"]:
        console.print(f"[yellow]Note:[/yellow] {escape(warning)}", soft_wrap=True)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _us(nanoseconds: float) -> str:
    if nanoseconds >= 1e9:
        return f"{nanoseconds / 1e9:,.2f} s"
    if nanoseconds >= 1e7:
        return f"{nanoseconds / 1e6:,.1f} ms"
    return f"{nanoseconds / 1e3:,.1f} us"
