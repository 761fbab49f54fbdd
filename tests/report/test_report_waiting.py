"""Collectives inside layers, filters, outliers and damage in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.report import report
from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.result import Report
from tests.support.report_results import Made, write


def by_topic(made: Report) -> dict[str, Finding]:
    return {finding.topic: finding for finding in made.findings}


def with_collectives(layer: int, ns: int) -> dict[str, pl.DataFrame]:
    """A collective in each row of a layer, on top of its own time."""
    tables = Made().tables()
    rows = tables["moe_layer_correlation"]
    more = pl.when(pl.col("layer_idx") == layer).then(ns).otherwise(0)
    tables["moe_layer_correlation"] = rows.with_columns(kernel_time_ns=pl.col("own_ns") + more)
    return tables


def test_waiting_in_a_layer_does_not_make_it_the_costliest(tmp_path: Path) -> None:
    found = by_topic(report(write(tmp_path, with_collectives(0, 1_000_000), Made().documents())))
    assert str(found["The layer that costs most"].headline).startswith("Layer 3 costs most")
    assert str(found["Time of MoE layers"].headline).startswith("MoE layers take 213.5 us of ")


def test_filtered_layers_have_no_share_of_steps(tmp_path: Path) -> None:
    documents = Made().documents()
    documents["moe_capture_validation"]["selection"]["layers"] = [0, 3]
    found = by_topic(report(write(tmp_path, Made().tables(), documents)))["Time of MoE layers"]
    assert str(found.headline).startswith("Kernels of the layers kept take ")
    assert "%" not in str(found.headline)


def test_warm_up_of_a_layer_is_not_what_it_costs(tmp_path: Path) -> None:
    """Layer 0 takes 200 times longer in four cells: layer 3 still costs most, and all four are told."""
    tables = Made().tables()
    rows = tables["moe_layer_correlation"]
    first = rows["step"].unique().sort()[:4].to_list()
    cells = (pl.col("layer_idx") == 0) & pl.col("step").is_in(first) & (pl.col("rank") == 0)
    slow = [
        pl.when(cells).then(200 * pl.col(name)).otherwise(name).alias(name) for name in ("own_ns", "kernel_time_ns")
    ]
    tables["moe_layer_correlation"] = rows.with_columns(slow)
    found = by_topic(report(write(tmp_path, tables, Made().documents())))
    cost = found["The layer that costs most"]
    assert str(cost.headline).startswith("Outliers aside, layer 3 costs most: ")
    outliers = [str(detail) for detail in cost.details if str(detail).startswith("Outlier: layer 0 took ")]
    assert sorted(int(text.split(" in step ")[1].split()[0]) for text in outliers) == first
    assert "Why layer 3 takes its time" in found


@pytest.mark.parametrize(("busy", "said"), [(0.5, True), (1.0, False)])
def test_work_on_two_streams_is_said_to_overlap(tmp_path: Path, busy: float, said: bool) -> None:
    """Sums are twice the time that passed."""
    tables = Made().tables()
    rows = tables["moe_layer_correlation"]
    union = (pl.col("kernel_time_ns") * busy).cast(pl.Int64)
    tables["moe_layer_correlation"] = rows.with_columns(busy_ns=union)
    details = by_topic(report(write(tmp_path, tables, Made().documents())))["Time of MoE layers"].details
    assert any(str(detail).startswith("Kernels overlap: ") for detail in details) == said


def test_a_large_batch_is_no_outlier(tmp_path: Path) -> None:
    tables = Made().tables()
    rows = tables["moe_layer_correlation"]
    slow = pl.when(pl.col("step") == rows["step"].min()).then(50).otherwise(1)
    tables["moe_layer_correlation"] = rows.with_columns(pl.col("own_ns", "kernel_time_ns") * slow)
    found = by_topic(report(write(tmp_path, tables, Made().documents())))
    assert str(found["The layer that costs most"].headline).startswith("Layer 3 costs most")


@pytest.mark.parametrize(
    ("stem", "odd"),
    [
        ("moe_straggler", {"straggler": {"cells": 5}}),
        ("moe_straggler", {"collectives": {"split": 1, "wait_pct": 3}}),
        ("moe_capture_validation", {"checks": 7, "inputs": "x"}),
        ("moe_summary", {"layer_0": 3}),
    ],
)
def test_json_of_another_shape_is_listed(tmp_path: Path, stem: str, odd: dict[str, Any]) -> None:
    made = report(write(tmp_path, Made().tables(), {**Made().documents(), stem: odd}))
    assert any(f"{stem}.json" in said and "another shape" in said for said in made.as_dict()["absent"])


def test_a_cut_table_is_listed(tmp_path: Path) -> None:
    folder = write(tmp_path, Made().tables(), Made().documents())
    file = folder / FOLDER / "moe_capacity.csv"
    file.write_bytes(file.read_bytes()[:-1])
    assert any("moe_capacity.csv" in said and "cut" in said for said in report(folder).absent)


def test_activations_that_lack_rows_are_listed(tmp_path: Path) -> None:
    folder = write(tmp_path, Made().tables(), Made().documents())
    total = Made().counts.sum(axis=(1, 2))
    summary = {f"layer_{n}": {"num_experts": 16, "top_k": 4, "total_activations": int(t)} for n, t in enumerate(total)}
    (folder / FOLDER / "moe_summary.json").write_text(json.dumps(summary))
    assert not any("moe_expert_activations" in said for said in report(folder).absent)
    file = folder / FOLDER / "moe_expert_activations.csv"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-5]))
    assert any("moe_expert_activations" in said and "it counts" in said for said in report(folder).absent)
