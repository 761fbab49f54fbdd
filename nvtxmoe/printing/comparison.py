"""Print a comparison of two results: ``compare``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from nvtxmoe.printing.table import Cell, Column, show_table
from nvtxmoe_analysis.compare.tables import without_repeats
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.report.number_text import SCALE, unit_for

#: Most layers and experts listed in the terminal; the files have all.
MOST_MOVERS = 5
#: Where all figures are that had no room.
ELSEWHERE = "see -o DIR or --json"
#: What the values of a table are of.
MEANS = (
    "Times and imbalance are means of steps and ranks, at equal numbers of tokens: another mean than the report's. js "
    "is how far the experts' shares are apart (bits), noise how far by chance."
)
TIMES = ("kernel_time", "own_time", "step_time", "kernel_time_per_token")


def show_comparison(console: Console, document: dict[str, Any]) -> None:
    """Print a comparison (see ``nvtxmoe_analysis.compare.compare.document``)."""
    for name in ("a", "b"):
        side = document[name]
        console.print(
            f"{name.upper()} [bold]{escape(side['folder'])}[/bold]: {number(side['steps'], 'step')}, "
            f"{number(side['ranks'], 'rank')}, {number(side['layers'], 'MoE layer')}",
            soft_wrap=True,
        )
    summary = document["summary"]
    console.print(f"[bold]Does B differ? {summary['answer']}[/bold]")
    console.print(f"  {escape(summary['sentence'])}")
    _show_all_layers(console, document)
    for name in ("kernel_time", "imbalance"):
        _show_layers(console, name, document["layers"][name])
    _show_routing(console, document["layers"]["js"])
    _show_experts(console, document["experts"])
    for gate in document["gates"]:
        show_gate(console, gate)
    for note in document["notes"]:
        console.print(f"[yellow]Note:[/yellow] {escape(note)}")
    console.print("Significance is against steps within these runs, not against other runs of the same thing.")
    if document["files"]:
        console.print("Written:")
    for file in document["files"]:
        console.print(f"  {escape(file)}", soft_wrap=True)


def _all_layers_columns(confidence: float) -> tuple[Column, ...]:
    return (
        Column("", right=False),
        Column("steps", right=False),
        Column("A", drop=3),
        Column("B", drop=2),
        Column("change"),
        Column(interval_title(confidence), drop=1),
        Column("p", drop=4),
        Column("differs", right=False),
    )


def interval_title(confidence: float) -> str:
    """Return ``95 % interval``."""
    return f"{100 * confidence:g} % interval"


def _show_all_layers(console: Console, document: dict[str, Any]) -> None:
    """Print the table of all layers together. If only one kind of step is compared, its row replaces "all"."""
    rows: list[tuple[Cell, ...]] = []
    metrics = without_repeats(document["metrics"], ("metric",), "value_b")
    unit = time_unit(metrics)
    for row in metrics:
        rows.append(
            (
                row["metric"],
                row["step_kind"],
                value_text(row["metric"], row["value_a"], unit),
                value_text(row["metric"], row["value_b"], unit),
                percent_text(row["change_pct"]),
                interval_text(row["change_pct_ci_low"], row["change_pct_ci_high"], "+.2f", " %"),
                p_text(row["p_value"]),
                verdict_cell(row),
            )
        )
    for row in without_repeats(document["activations"], (), "js_bits"):
        noise = "" if row["noise_bits"] is None else f"noise {row['noise_bits']:.4f}"
        rows.append(
            (
                "js", row["step_kind"], noise, f"{row['js_bits']:.4f}", bits_text(row["excess_bits"]),
                interval_text(row["ci_low"], row["ci_high"], ".4f", ""), p_text(row["p_value"]), verdict_cell(row),
            )
        )  # fmt: skip
    show_table(console, _all_layers_columns(document["options"]["confidence"]), rows, elsewhere=ELSEWHERE)
    console.print(MEANS)


def _show_layers(console: Console, name: str, rows: list[dict[str, Any]]) -> None:
    moved = [row for row in rows if row["significant"]][:MOST_MOVERS]
    if not moved:
        if rows and rows[0]["p_value"] is not None:
            most = f" (most: layer {rows[0]['layer_idx']}, {percent_text(rows[0]['change_pct'])})"
            console.print(
                f"Over all steps, no layer differs significantly in {name}{most if rows[0]['difference'] else ''}."
            )
        return
    console.print(f"Layers that moved most in {name} (p for {len(rows)} layers):")
    columns = (
        Column("layer"), Column("A", drop=3), Column("B", drop=2), Column("change"), Column("interval"),
        Column("p", drop=1),
    )  # fmt: skip
    unit = time_unit([{**row, "metric": name} for row in moved])
    shown = [
        (
            str(row["layer_idx"]),
            value_text(name, row["value_a"], unit),
            value_text(name, row["value_b"], unit),
            percent_text(row["change_pct"]),
            interval_text(row["change_pct_ci_low"], row["change_pct_ci_high"], "+.2f", " %"),
            p_text(row["p_adjusted"]),
        )
        for row in moved
    ]
    show_table(console, columns, shown, elsewhere=ELSEWHERE)


def _show_routing(console: Console, rows: list[dict[str, Any]]) -> None:
    moved = [row for row in rows if row["significant"]][:MOST_MOVERS]
    if not moved:
        if rows and rows[0]["p_value"] is not None:
            console.print("Over all steps, no layer's shares of experts differ significantly.")
        return
    console.print(f"Layers whose shares of experts moved most (bits, p for {len(rows)} layers):")
    columns = (
        Column("layer"), Column("js", drop=3), Column("noise", drop=2), Column("above noise"), Column("interval"),
        Column("p", drop=1),
    )  # fmt: skip
    shown = [
        (
            str(row["layer_idx"]),
            f"{row['js_bits']:.4f}",
            f"{row['noise_bits']:.4f}",
            f"{row['excess_bits']:.4f}",
            interval_text(row["ci_low"], row["ci_high"], ".4f", ""),
            p_text(row["p_adjusted"]),
        )
        for row in moved
    ]
    show_table(console, columns, shown, elsewhere=ELSEWHERE)


def _show_experts(console: Console, rows: list[dict[str, Any]]) -> None:
    moved = [row for row in rows if row["significant"]][:MOST_MOVERS]
    if not moved:
        return
    console.print("Experts that moved most (share of the layer's activations, in points; p for all experts):")
    columns = (
        Column("layer"), Column("expert"), Column("A", drop=3), Column("B", drop=2), Column("change"),
        Column("interval"), Column("p", drop=1),
    )  # fmt: skip
    shown = [
        (
            str(row["layer_idx"]),
            str(row["expert_id"]),
            f"{row['share_a_pct']:.2f} %",
            f"{row['share_b_pct']:.2f} %",
            f"{row['difference_pct']:+.2f}",
            interval_text(row["ci_low"], row["ci_high"], "+.2f", ""),
            p_text(row["p_adjusted"]),
        )
        for row in moved
    ]
    show_table(console, columns, shown, elsewhere=ELSEWHERE)


def show_gate(console: Console, gate: dict[str, Any], whose: str = "") -> None:
    """Print what became of a condition.

    Parameters:
        whose: result that it is about, before the line.
    """
    style = {"passed": "bold green", "failed": "bold red", "undecided": "bold yellow"}[gate["verdict"]]
    line = f"{escape(whose + gate['expression'])}: [{style}]{gate['verdict']}[/]"
    if gate["verdict"] == "undecided":
        line += f", {escape(gate['reason'])}"
    else:
        scale, unit = (1.0, " %") if gate["percent"] else _unit(gate["metric"])
        line += f", {gate['value'] / scale:+.4g}{unit}"
        if gate["low"] is not None:
            ends = interval_text(gate["low"] / scale, gate["high"] / scale, "+.4g", "")
            line += f" ({ends}), p {p_text(gate['p_value'])}"
        if gate["layer"] is not None:
            line += f", layer {gate['layer']}"
        if len(gate["layers_failed"]) > 1:
            line += f" and {len(gate['layers_failed']) - 1} more"
    console.print(line, soft_wrap=True)


def _unit(metric: str, time: str = "us") -> tuple[float, str]:
    return (SCALE[time], f" {time}") if metric in TIMES else (1.0, " bits" if metric == "js" else "")


def time_unit(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the one unit of a table's times, by the longest."""
    ends = [row[side] for row in rows for side in ("value_a", "value_b") if row["metric"] in TIMES]
    return unit_for(max((value for value in ends if value is not None), default=0.0))


def value_text(metric: str, value: float, time: str = "us") -> str:
    """Return a metric's value with its unit.

    Parameters:
        time: unit of times, see ``time_unit``.
    """
    scale, unit = _unit(metric, time)
    return f"{value / scale:,.{2 if unit != ' ms' else 3}f}{unit}"


def percent_text(value: float | None) -> str:
    """Return a change in percent, ``-`` for none."""
    return "-" if value is None else f"{value:+.2f} %"


def bits_text(value: float | None) -> str:
    """Return a divergence, ``-`` for none."""
    return "-" if value is None else f"{value:+.4f} bits"


def interval_text(low: float | None, high: float | None, form: str, unit: str) -> str:
    """Return the two ends of an interval, ``-`` for none."""
    return "-" if low is None or high is None else f"{low:{form}} to {high:{form}}{unit}"


def p_text(value: float | None) -> str:
    """Return a p-value, ``-`` for none."""
    return "-" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def verdict_cell(row: dict[str, Any]) -> Cell:
    """Return ``yes``, ``not seen`` or ``can't tell``."""
    if row["significant"] is None:
        return "can't tell"
    return Text("yes", "bold") if row["significant"] else "not seen"
