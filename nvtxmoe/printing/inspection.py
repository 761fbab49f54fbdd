"""Print the contents of exports: ``inspect``."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from nvtxmoe.printing.analysis import ways_text
from nvtxmoe.printing.table import Column, show_item, show_table
from nvtxmoe_analysis.core.text import number, spans

if TYPE_CHECKING:
    from nvtxmoe_analysis.inspection.inspect import Contents, Inspected, Inspection, LayerInfo


#: Columns of a fact, and of a process; those with a number have no room in a narrow terminal, the largest first.
_FACT = (Column("name", right=False), Column("value", right=False, wraps=True))
_PROCESS = (
    Column("  rank"),
    Column("pid", drop=6),
    Column("tp", drop=3),
    Column("ep", drop=2),
    Column("dp", drop=4),
    Column("steps"),
    Column("first..last", drop=5),
    Column("prefill tokens"),
    Column("decode tokens"),
)


def show_inspection(console: Console, inspection: Inspection) -> None:
    """Print each input and the verdict so far."""
    for inspected in inspection.inputs:
        console.print(f"[bold]{escape(inspected.path)}[/bold]", soft_wrap=True)
        _show_overview(console, inspected)
        if inspected.contents is not None:
            _show_processes(console, inspected.contents)
        console.print()
    _verdict(console, inspection)


def _show_overview(console: Console, inspected: Inspected) -> None:
    rows = [(Text(f"  {name}", "dim"), value) for name, value in _rows(inspected)]
    show_table(console, _FACT, rows, elsewhere="see --json", header=False)


def _rows(inspected: Inspected) -> list[tuple[str, str]]:
    if inspected.journals is not None and inspected.contents is not None:
        files = number(inspected.journals, "journal")
        return [("session", f"{files}, {_size(inspected.size_bytes)}"), *_content_rows(inspected.contents)]
    kind = "SQLite export" if inspected.kind == "sqlite" else "folder of Parquet files"
    nsys = f"{inspected.nsys_product or 'nsys'} {inspected.nsys_version or '(version unknown)'}"
    rows = [
        ("file", f"{kind}, {_size(inspected.size_bytes)}"),
        ("profiler", f"{nsys}, export schema {inspected.export_schema or 'unknown'}"),
    ]
    if inspected.gpus:
        rows.append(
            ("GPUs", ", ".join(f"{len(list(names))} x {name}" for name, names in groupby(sorted(inspected.gpus))))
        )
    if inspected.contents is not None:
        rows += _content_rows(inspected.contents)
    operations = ", ".join(f"{count:,} {kind}" for kind, count in inspected.gpu_operations.items() if count) or "none"
    rows.append(("GPU operations", f"{operations}; {number(inspected.runtime_calls, 'CUDA call')}"))
    rows.append(("graph tracing", inspected.graph_tracing))
    return rows


def _content_rows(contents: Contents) -> list[tuple[str, str]]:
    versions = ", ".join(f"{key} {' and '.join(values)}" for key, values in contents.versions.items())
    samples = f"{number(contents.samples, 'sample')} of {number(contents.sampled_tokens, 'token')}"
    payloads = f"{number(contents.counts, 'count')}, {samples}"
    encoding = f"encoding {contents.encoding}"
    if contents.encoding in {"binary", "none"}:
        encoding += f", blobs {contents.blobs}"
    return [
        ("versions", versions or "unknown"),
        ("layers", _layers(contents.layers) or "unknown"),
        *([("expert ids", ways_text(contents.recording))] if contents.recording else []),
        ("payloads", f"{payloads}; {encoding}"),
        ("time span", f"{contents.span_ns / 1e9:,.3f} s"),
    ]


def _layers(layers: list[LayerInfo]) -> str:
    """Return ``0-3, 5: 32 experts, top-4``: numbers of layers grouped by their shape."""
    layers_by_shape: dict[tuple[int, int], list[int]] = {}
    for layer in layers:
        layers_by_shape.setdefault((layer.num_experts, layer.top_k), []).append(layer.layer)
    return "; ".join(
        f"{spans(numbers)}: {experts} experts, top-{k}" for (experts, k), numbers in layers_by_shape.items()
    )


def _show_processes(console: Console, contents: Contents) -> None:
    rows = [
        (
            _known(process.rank),
            str(process.pid),
            _rank_of_size(process.tp_rank, process.tp_size),
            _rank_of_size(process.ep_rank, process.ep_size),
            _rank_of_size(process.dp_rank, process.dp_size),
            f"{process.steps:,}",
            f"{process.first_step}..{process.last_step}" if process.first_step is not None else "",
            f"{process.prefill_tokens:,}",
            f"{process.decode_tokens:,}",
        )
        for process in contents.processes
    ]
    show_table(console, _PROCESS, rows, elsewhere="see --json")


def _rank_of_size(rank: int | None, size: int | None) -> str:
    return "" if rank is None and size is None else f"{_known(rank)} of {_known(size)}"


def _known(number: int | None) -> str:
    return "?" if number is None else str(number)


def _verdict(console: Console, inspection: Inspection) -> None:
    if inspection.missing:
        console.print("[bold red]Something is missing:[/bold red]")
        for reason in inspection.missing:
            show_item(console, reason, "  - ")
    else:
        direct = all(inspected.journals is not None for inspected in inspection.inputs)
        more = "`nvtxmoe merge` checks every count." if direct else "`nvtxmoe analyze` checks every launch."
        console.print(f"[bold green]So far nothing is missing[/bold green]; {more}")
    for warning in inspection.warnings:
        console.print(f"[yellow]Note:[/yellow] {escape(warning)}")


def _size(size_bytes: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1000:.1f} kB"
