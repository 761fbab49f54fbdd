"""Evidence of findings: agents can compute each number again from the rows that it names."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nvtxmoe.mcp_server.answers import Condition
from nvtxmoe.mcp_server.bounds import MOST_ROWS
from nvtxmoe.mcp_server.folders import Folders
from nvtxmoe.mcp_server.rows import select_rows
from nvtxmoe_analysis.outputs.read import load
from nvtxmoe_analysis.report.advice import advise
from nvtxmoe_analysis.report.results import Source
from tests.support.cli import analyze
from tests.support.mcp_client import refusal, value

#: How cells become the number of a finding.
REDUCED: Mapping[str, Callable[[list[float]], float]] = {
    "cell": lambda cells: cells[0],
    "mean": statistics.mean,
    "median": statistics.median,
    "rows": len,
    "sum": sum,
    "max": max,
    "min": min,
}


def test_the_rows_of_evidence_give_its_number(made: Path) -> None:
    """Each number of a table is computed again from the rows that its own arguments give."""
    assert {"cell", "per_step", "wins", "median"} <= recomputed(made)


def test_times_of_steady_steps_of_a_real_capture_can_be_computed_again(golden_2gpu: Path, tmp_path: Path) -> None:
    analyze(golden_2gpu, tmp_path)
    assert {"per_step", "first_of_step", "wins"} <= recomputed(tmp_path)
    evidence = value([tmp_path], "finding_evidence", result=str(tmp_path), id="layers-time")["evidence"]
    of_steady = [number for number in evidence if number["how"] == "per_step"]
    sets = {next(c["value"] for c in one["rows"]["where"] if c["op"] == "in_steps") for one in of_steady}
    assert sets == {"steady", "steady prefill", "steady mixed"}  # decode, which the headline is of, and the other kinds


def test_steps_are_chosen_by_name_only(made: Path) -> None:
    table = {"result": str(made), "table": "layer_correlation"}
    steady = advise(Source(load(made))).steady
    assert steady is not None
    where = [{"column": "step", "op": "in_steps", "value": "steady"}]
    assert value([made], "table_rows", where=where, **table)["total"] == len(
        load(made).layer_correlation.filter(pl.col("step").is_in(steady.numbers))
    )
    for wrong in ({"value": "late"}, {"value": None}, {"column": "rank"}):
        refusal([made], "table_rows", where=[{**where[0], **wrong}], **table)


def recomputed(folder: Path) -> set[str]:
    """Compute every number of every finding again from table_rows; the ways in which they were computed."""
    ways = set()
    for finding in value([folder], "findings", result=str(folder))["findings"]:
        evidence = value([folder], "finding_evidence", result=str(folder), id=finding["id"])["evidence"]
        for number in evidence:
            if number["rows"] is None or number["how"] in ("lift", "predicted", "distinct", "known", "idle"):
                continue
            rows = all_rows(folder, number["rows"])
            assert computed(number, rows) == pytest.approx(number["value"]), number
            ways.add(number["how"])
    return ways


def all_rows(folder: Path, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of all pages. The file itself has them too: many pages take long."""
    first = value([folder], "table_rows", result=str(folder), **arguments)
    if first["total"] <= 4 * MOST_ROWS:
        rows = first["rows"]
        while len(rows) < first["total"]:
            rows += value([folder], "table_rows", result=str(folder), offset=len(rows), **arguments)["rows"]
        return list(rows)
    opened = Folders([folder]).open(str(folder))
    conditions = [Condition(**condition) for condition in arguments["where"]]
    frame = opened.results.frame(arguments["table"])
    chosen = select_rows(
        frame, arguments["table"], arguments["columns"], conditions, None, False, lambda: opened.step_sets
    )
    assert len(chosen) == first["total"] and chosen.head(len(first["rows"])).to_dicts() == first["rows"]
    return chosen.to_dicts()


def computed(number: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    """A number from its rows, as the description of ``how`` says."""
    column, how = number["rows"]["columns"][-1], number["how"]
    if how == "wins":
        return wins(number, rows, column)
    if how == "first_of_step":
        first: dict[Any, int] = {}
        for row in rows:
            step = row["rank"], row["step"]
            first[step] = min(first.get(step, row["start_ns"]), row["start_ns"])
        rows = [row for row in rows if row["start_ns"] == first[row["rank"], row["step"]]]
    distinct = {tuple(row[name] for name in number["once"]) or i: row for i, row in reversed(list(enumerate(rows)))}
    cells = [row[column] for row in distinct.values() if row[column] is not None]
    if how in ("per_step", "first_of_step"):
        return float(sum(cells) / number["over"])
    return REDUCED[how](cells)


def wins(number: dict[str, Any], rows: list[dict[str, Any]], column: str) -> int:
    """The groups of equal ``once`` in which the number's row is the largest, without ties."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in number["once"]), []).append(row)
    won = 0
    for group in groups.values():
        largest = [row for row in group if row[column] == max(other[column] for other in group)]
        won += len(group) > 1 and len(largest) == 1 and all(largest[0][n] == v for n, v in number["winner"].items())
    return won
