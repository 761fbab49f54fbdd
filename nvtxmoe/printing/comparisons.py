"""Print several results compared with one baseline: ``compare`` with more than two results."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from rich.console import Console
from rich.markup import escape

from nvtxmoe.printing.comparison import (
    ELSEWHERE,
    bits_text,
    interval_text,
    interval_title,
    p_text,
    percent_text,
    show_gate,
    time_unit,
    value_text,
    verdict_cell,
)
from nvtxmoe.printing.table import Column, Row, show_table
from nvtxmoe_analysis.core.text import listed, number

#: Kind of step of the rows that are printed: all kinds, each compared with its like.
ALL = "all"


def show_comparisons(console: Console, document: dict[str, Any]) -> None:
    """Print comparisons (see ``nvtxmoe_analysis.compare.many.document``)."""
    baseline, results = document["baseline"], document["results"]
    for side in (baseline, *({"name": result["name"], **result["b"]} for result in results)):
        line = f"[bold]{escape(side['name'])}[/bold]{' (baseline)' if side is baseline else ''}: "
        line += f"{number(side['steps'], 'step')}, {number(side['ranks'], 'rank')}, "
        console.print(f"{line}{number(side['layers'], 'MoE layer')}, {escape(side['folder'])}", soft_wrap=True)
    confidence = document["options"]["confidence"]
    columns = (
        Column("", right=False),
        Column("baseline", drop=3),
        Column("result", drop=2),
        Column("change"),
        Column(interval_title(confidence), drop=1),
        Column("p", drop=4),
        Column("differs", right=False),
    )
    show_table(console, columns, _rows(results), elsewhere=ELSEWHERE)
    for line in document["not_in_all"]:
        console.print(escape(line))
    console.print(
        f"Steps of all kinds, each compared with its like. What differs is adjusted for {len(results)} results, "
        "intervals are not. Kinds of step, layers and experts: -o DIR, --json or --html FILE."
    )
    for result in results:
        for gate in result["gates"]:
            show_gate(console, gate, f"{result['name']}: ")
    notes = _notes(results)
    for note, names in notes.items():
        whose = "" if len(names) == len(results) else f"{listed(names)}: "
        console.print(f"[yellow]Note:[/yellow] {escape(whose + note)}")
    if notes:
        console.print("In notes A is the baseline, B the other result.")
    console.print("Significance is against steps within these runs, not against other runs of the same thing.")
    if document["files"]:
        console.print("Written:")
    for file in document["files"]:
        console.print(f"  {escape(file)}", soft_wrap=True)


def _rows(results: list[dict[str, Any]]) -> list[Row]:
    """Return a heading per metric, and below it a row per result."""
    by_metric: dict[str, list[Row]] = defaultdict(list)
    unit = time_unit(row for result in results for row in result["metrics"] if row["step_kind"] == ALL)
    for result in results:
        for row in result["metrics"]:
            if row["step_kind"] == ALL and row["value_b"] is not None:
                name, low, high = row["metric"], row["change_pct_ci_low"], row["change_pct_ci_high"]
                by_metric[name].append(
                    (
                        f"  {result['name']}", value_text(name, row["value_a"], unit),
                        value_text(name, row["value_b"], unit),
                        percent_text(row["change_pct"]), interval_text(low, high, "+.2f", " %"),
                        p_text(row["p_adjusted"]), verdict_cell(row),
                    )
                )  # fmt: skip
        for row in result["activations"]:
            if row["step_kind"] == ALL and row["js_bits"] is not None:
                noise = "" if row["noise_bits"] is None else f"noise {row['noise_bits']:.4f}"
                by_metric["js"].append(
                    (
                        f"  {result['name']}", noise, f"{row['js_bits']:.4f}", bits_text(row["excess_bits"]),
                        interval_text(row["ci_low"], row["ci_high"], ".4f", ""), p_text(row["p_adjusted"]),
                        verdict_cell(row),
                    )
                )  # fmt: skip
    return [row for name, rows in by_metric.items() for row in (name, *rows)]


def _notes(results: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return each note once, with the names of the results that it is about."""
    results_by_note: dict[str, list[str]] = defaultdict(list)
    for result in results:
        for note in result["notes"]:
            results_by_note[note].append(result["name"])
    return results_by_note
