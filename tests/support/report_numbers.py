"""Every figure of a report, found again in the result files with nothing but the csv and json modules."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvtxmoe_analysis.report.numbers import SourcedNumber
from tests.support.cli import run


def found_again(figure: SourcedNumber, folder: Path) -> float:
    """The figure's value, computed from the file that it names."""
    if figure.parts:
        if figure.how == "total":
            return sum(found_again(part, folder) for part in figure.parts)
        first, second = (found_again(part, folder) for part in figure.parts)
        return {"ratio": first / second, "percent": 100 * first / second, "difference": first - second}[figure.how]
    if figure.file.endswith(".json"):
        return _in_document(json.loads((folder / figure.file).read_text()), figure.column)
    if figure.how == "predicted":
        return _in_document(run("place", folder, "--json").json["verdict"], figure.column)
    with (folder / figure.file).open(newline="") as file:
        rows = list(csv.DictReader(file))
    if figure.how == "wins":
        return _wins([row for row in rows if figure.steps is None or int(row["step"]) in figure.steps], figure)
    if figure.how == "lift":
        return _lift(rows, figure, json.loads((folder / "moe_summary.json").read_text()))
    rows = [row for row in rows if all(_equal(row[name], value) for name, value in figure.where.items())]
    if figure.steps is not None:
        rows = [row for row in rows if row["step"] and int(row["step"]) in figure.steps]
    if figure.how == "idle":
        return _idle_ns(rows, folder) / figure.over
    return _reduced(rows, figure)


def _reduced(rows: list[dict[str, str]], figure: SourcedNumber) -> float:
    """The figure's column of these rows as one number."""
    if figure.how == "first_of_step":
        rows = _first_of_steps(rows)
    if figure.once:
        rows = list({tuple(row[name] for name in figure.once): row for row in reversed(rows)}.values())
    cells = [row[figure.column] for row in rows]
    if figure.how == "rows":
        return len(cells)
    if figure.how == "known":
        return len([cell for cell in cells if cell])
    if figure.how == "distinct":
        return len(set(cells) - {""})
    numbers = [float(cell) for cell in cells if cell]
    if figure.how in ("per_step", "first_of_step"):
        return sum(numbers) / figure.over
    if figure.how == "cell":
        assert len(numbers) == 1, (figure, len(numbers))
        return numbers[0]
    reduce: Mapping[str, Any] = {
        "sum": sum,
        "mean": statistics.mean,
        "median": statistics.median,
        "min": min,
        "max": max,
    }
    return float(reduce[figure.how](numbers))


def check_figure(figure: SourcedNumber, folder: Path) -> None:
    """The value is in the file, and the text is of that value."""
    again = found_again(figure, folder)
    assert math.isclose(again, figure.value, rel_tol=1e-6, abs_tol=1e-9), (figure, again)
    shown = float("".join(c for c in figure.text.partition(" ")[0] if c in "0123456789.-"))
    unit = figure.text.rpartition(" ")[2]
    in_us = figure.column.endswith(("_us", "_us_a_rank"))
    scale = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}.get(unit, 1.0) / (1e3 if in_us and unit != "%" else 1.0)
    if not figure.text.startswith("layer "):
        assert math.isclose(shown * scale, figure.value, rel_tol=0.06, abs_tol=0.05), figure


def _first_of_steps(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The collective that starts first in each (rank, step)."""
    first: dict[tuple[str, str], int] = {}
    for row in rows:
        step = row["rank"], row["step"]
        first[step] = min(first.get(step, int(row["start_ns"])), int(row["start_ns"]))
    return [row for row in rows if int(row["start_ns"]) == first[row["rank"], row["step"]]]


def _idle_ns(rows: list[dict[str, str]], folder: Path) -> int:
    """What passes from a step's first layer to its last beyond the step's GPU time."""
    with (folder / "moe_layer_correlation.csv").open(newline="") as file:
        work = {(row["rank"], row["step"]): int(row["step_gpu_ns"]) for row in csv.DictReader(file)}
    extents: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in rows:
        extents[row["rank"], row["step"]] += [int(row["gpu_start_ns"]), int(row["gpu_end_ns"])]
    return sum(max(0, max(times) - min(times) - work[step]) for step, times in extents.items())


def _in_document(value: Any, path: str) -> float:
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return float(value)


def _wins(rows: list[dict[str, str]], figure: SourcedNumber) -> float:
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in figure.once)].append(row)
    won = 0
    for group in groups.values():
        best = max(float(row[figure.column]) for row in group)
        winners = [row for row in group if float(row[figure.column]) == best]
        won += len(group) > 1 and len(winners) == 1 and all(_equal(winners[0][n], v) for n, v in figure.where.items())
    return won


def _equal(cell: str, value: int | float | str | None) -> bool:
    if value is None:
        return cell == ""
    if isinstance(value, str):
        return cell == value
    return cell != "" and float(cell) == value


def _lift(rows: list[dict[str, str]], figure: SourcedNumber, summary: Mapping[str, Any]) -> float:
    """Tokens that chose both, over those that chance would give: each expert's tokens as a share of all."""
    layer = [row for row in rows if float(row["layer_idx"]) == figure.where["layer_idx"]]
    tokens = float(layer[0]["tokens"])
    pairs = {(int(row["expert_id_1"]), int(row["expert_id_2"])): int(row["coselection_count"]) for row in layer}
    # Each expert of a token is in top_k - 1 of its pairs.
    others = summary[f"layer_{figure.where['layer_idx']}"]["top_k"] - 1
    a, b = (int(figure.where[name] or 0) for name in ("expert_id_1", "expert_id_2"))
    share = {e: sum(n for pair, n in pairs.items() if e in pair) / others / tokens for e in (a, b)}
    return float(pairs[a, b] / tokens / (share[a] * share[b]))
