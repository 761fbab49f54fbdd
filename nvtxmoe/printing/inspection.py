"""What ``inspect`` prints for people."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.inspection.inspect import Contents, Inspected, Inspection, LayerInfo


def show_inspection(console: Console, found: Inspection) -> None:
    """Print each input and the verdict so far."""
    for one in found.inputs:
        console.print(f"[bold]{escape(one.path)}[/bold]", soft_wrap=True)
        console.print(_overview(one))
        if one.contents is not None:
            console.print(_processes(one.contents))
        console.print()
    _verdict(console, found)


def _overview(one: Inspected) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(one):
        table.add_row(f"  {name}", escape(value))
    return table


def _rows(one: Inspected) -> list[tuple[str, str]]:
    if one.journals is not None and one.contents is not None:
        files = f"{one.journals:,} journal{'' if one.journals == 1 else 's'}"
        return [("session", f"{files}, {_size(one.size_bytes)}"), *_content_rows(one.contents)]
    kind = "SQLite export" if one.kind == "sqlite" else "folder of Parquet files"
    nsys = f"{one.nsys_product or 'nsys'} {one.nsys_version or '(version unknown)'}"
    rows = [
        ("file", f"{kind}, {_size(one.size_bytes)}"),
        ("profiler", f"{nsys}, export schema {one.export_schema or 'unknown'}"),
    ]
    if one.gpus:
        rows.append(("GPUs", ", ".join(f"{len(list(same))} x {name}" for name, same in groupby(sorted(one.gpus)))))
    if one.contents is not None:
        rows += _content_rows(one.contents)
    operations = ", ".join(f"{count:,} {kind}" for kind, count in one.gpu_operations.items() if count) or "none"
    rows.append(("GPU operations", f"{operations}; {one.runtime_calls:,} CUDA calls"))
    rows.append(("graph tracing", one.graph_tracing))
    return rows


def _content_rows(contents: Contents) -> list[tuple[str, str]]:
    versions = ", ".join(f"{key} {' and '.join(values)}" for key, values in contents.versions.items())
    payloads = f"{contents.counts:,} counts, {contents.samples:,} samples of {contents.sampled_tokens:,} tokens"
    encoding = f"encoding {contents.encoding}"
    if contents.encoding in {"binary", "none"}:
        encoding += f", blobs {contents.blobs}"
    return [
        ("versions", versions or "unknown"),
        ("layers", _layers(contents.layers) or "unknown"),
        ("payloads", f"{payloads}; {encoding}"),
        ("time span", f"{contents.span_ns / 1e9:,.3f} s"),
    ]


def _layers(layers: list[LayerInfo]) -> str:
    """``0-3, 5: 32 experts, top-4``, of layers that are alike together."""
    from nvtxmoe_analysis.core.text import spans  # noqa: PLC0415  only when needed

    alike: dict[tuple[int, int], list[int]] = {}
    for one in layers:
        alike.setdefault((one.num_experts, one.top_k), []).append(one.layer)
    return "; ".join(f"{spans(numbers)}: {experts} experts, top-{k}" for (experts, k), numbers in alike.items())


def _processes(contents: Contents) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("  rank", "pid", "tp", "ep", "dp", "steps", "first..last", "prefill tokens", "decode tokens"):
        table.add_column(name, justify="right")
    for one in contents.processes:
        table.add_row(
            _known(one.rank),
            str(one.pid),
            _of(one.tp_rank, one.tp_size),
            _of(one.ep_rank, one.ep_size),
            _of(one.dp_rank, one.dp_size),
            f"{one.steps:,}",
            f"{one.first_step}..{one.last_step}" if one.first_step is not None else "",
            f"{one.prefill_tokens:,}",
            f"{one.decode_tokens:,}",
        )
    return table


def _of(rank: int | None, size: int | None) -> str:
    return "" if rank is None and size is None else f"{_known(rank)} of {_known(size)}"


def _known(number: int | None) -> str:
    return "?" if number is None else str(number)


def _verdict(console: Console, found: Inspection) -> None:
    if found.missing:
        console.print("[bold red]Something is missing:[/bold red]")
        for reason in found.missing:
            console.print(f"  - {escape(reason)}", soft_wrap=True)
    else:
        direct = all(one.journals is not None for one in found.inputs)
        more = "`nvtxmoe merge` checks every count." if direct else "`nvtxmoe analyze` checks every launch."
        console.print(f"[bold green]So far nothing is missing[/bold green]; {more}")
    for warning in found.warnings:
        console.print(f"[yellow]Note:[/yellow] {escape(warning)}", soft_wrap=True)


def _size(size_bytes: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1000:.1f} kB"
