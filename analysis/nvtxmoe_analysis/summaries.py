"""The first things people want to know of an analysis, as plain values."""

from __future__ import annotations

from typing import Any

import polars as pl

from nvtxmoe_analysis.cells import TIMED_KINDS
from nvtxmoe_analysis.checks.model import FAIL, PASS, WARN
from nvtxmoe_analysis.pipeline import Analysis

TOP_KERNELS = 5
TOP_OUTSIDE = 3


def overview(analysis: Analysis) -> dict[str, Any]:
    """Verdict, layers, longest operations and files; JSON-ready. Times are ns.

    ``kernel_time_ns`` is the sum over ranks and steps of kernel durations; ``kernel_time_ns_per_step`` its mean over
    (rank, step). ``max_mean`` is the mean over steps of the largest over the mean expert count.
    """
    results = analysis.results
    cover = analysis.validation["coverage"]
    groups = results.routing.counts.cells.select("rank", "step", "num_tokens").unique(["rank", "step"])
    return {
        "verdict": analysis.validation["verdict"],
        "reasons": analysis.validation["reasons"],
        "warnings": [check.message for check in analysis.checks if check.status == WARN],
        "checks_passed": sum(check.status == PASS for check in analysis.checks),
        "checks_failed": sum(check.status == FAIL for check in analysis.checks),
        "ranks": results.layers["rank"].n_unique(),
        "steps_kept": _distinct_steps(analysis, kept=True),
        "steps_captured": _distinct_steps(analysis, kept=False),
        "tokens": int(groups["num_tokens"].sum()),
        "in_layer_ns": sum(int(results.layers[f"{kind}_time_ns"].sum()) for kind in TIMED_KINDS),
        "in_layer_pct": None if results.selection.active else cover["in_layer_pct_of_step_time"],
        "layers": _layers(analysis),
        "kernels": _kernels(analysis),
        "outside": [] if results.selection.active else _outside(cover),
        "folder": str(analysis.folder),
        "files": [file.name for file in analysis.files],
    }


def _distinct_steps(analysis: Analysis, *, kept: bool) -> int:
    """Steps, each once however many tensor-parallel ranks ran it."""
    number = 0
    for report in analysis.results.reports:
        groups = {pid: meta.tp_group for pid, meta in report.metas.items()}
        steps = report.steps.filter("kept") if kept else report.steps
        group = pl.col("pid").replace_strict(groups, default=-pl.col("pid"), return_dtype=pl.Int64)
        number += steps.select(group, "step").n_unique()
    return number


def _layers(analysis: Analysis) -> list[dict[str, Any]]:
    results = analysis.results
    timed = results.layers.group_by("layer").agg(
        pl.col("kernel_time_ns").sum(), pl.col("kernel_time_ns").mean().alias("per_step")
    )
    time = {layer: (total, mean) for layer, total, mean in timed.rows()}
    loads = (
        pl.concat([results.routing.counts.cells.select("layer", "top_k"), results.features], how="horizontal")
        .group_by("layer")
        .agg(pl.col("max_mean_ratio").mean(), pl.col("top_k").last())
    )
    load = {layer: (ratio, top_k) for layer, ratio, top_k in loads.rows()}
    out = []
    for layer in sorted({*time, *load}):
        total = results.totals.get(layer)
        assigned = 0 if total is None else int(total.sum())
        hottest = None if total is None or not assigned else int(total.argmax())
        out.append(
            {
                "layer": layer,
                "num_experts": None if total is None else len(total),
                "top_k": load.get(layer, (None, None))[1],
                "used": None if total is None else int((total > 0).sum()),
                "hottest": hottest,
                "hottest_pct": None if total is None or hottest is None else 100.0 * int(total[hottest]) / assigned,
                "max_mean": load.get(layer, (None, None))[0],
                "kernel_time_ns": time.get(layer, (0, None))[0],
                "kernel_time_ns_per_step": time.get(layer, (0, None))[1],
            }
        )
    return out


def _kernels(analysis: Analysis) -> list[dict[str, Any]]:
    kernels = analysis.results.kernels
    total = int(kernels["total_ns"].sum())
    top = (
        kernels.group_by("phase", "kernel_name")
        .agg(pl.col("count").sum(), pl.col("total_ns").sum())
        .sort(["total_ns", "kernel_name", "phase"], descending=[True, False, False])
        .head(TOP_KERNELS)
    )
    return [{**row, "pct": 100.0 * row["total_ns"] / total if total else 0.0} for row in top.iter_rows(named=True)]


def _outside(cover: dict[str, Any]) -> list[dict[str, Any]]:
    """Longest work of steps outside layers, of the whole capture; ``pct`` of all such work."""
    total = cover["classes"]["in_step"]["time_ns"]
    return [
        {
            "phase": "",
            "kernel_name": one["name"],
            "count": one["operations"],
            "total_ns": one["time_ns"],
            "pct": 100.0 * one["time_ns"] / total,
        }
        for one in cover["in_step_outside_layers_names"][:TOP_OUTSIDE]
    ]
