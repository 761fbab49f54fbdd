"""moe_capture_validation: checks, coverage, versions, options and inputs as one JSON value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from nvtxmoe_analysis.activity import KINDS
from nvtxmoe_analysis.attribution import CLASSES, REASONS
from nvtxmoe_analysis.checks import run_checks, verdict
from nvtxmoe_analysis.checks.model import FAIL, Check
from nvtxmoe_analysis.facts import ReportFacts
from nvtxmoe_analysis.results import Results

#: Names of work in steps outside layers that are listed.
TOP_OUTSIDE = 20


def validate(results: Results) -> tuple[list[Check], dict[str, Any]]:
    """Run the checks; their outcomes, and the document for moe_capture_validation.json."""
    checks = run_checks(results)
    return checks, {
        "verdict": verdict(checks),
        "reasons": [check.message for check in checks if check.status == FAIL],
        "checks": [
            {"name": c.name, "status": c.status, "message": c.message, "figures": dict(c.figures)} for c in checks
        ],
        "coverage": coverage(results.reports),
        "selection": {
            **results.selection.describe(),
            "steps_kept": len(results.steps),
            "steps_captured": sum(len(report.steps) for report in results.reports),
        },
        "clock": {
            "unit": "ns",
            "gpu_start_ns": "each report's own time",
            "reports_aligned": results.aligned,
            "origin_ns": results.origin_ns,
        },
        "options": results.options,
        "inputs": [_input(report) for report in results.reports],
    }


def coverage(reports: Sequence[ReportFacts]) -> dict[str, Any]:
    """Operations and GPU time by class, with reasons and kinds; shares are of the GPU time inside steps."""
    total = (
        pl.concat([report.coverage for report in reports])
        .group_by("class", "reason", "kind")
        .agg(pl.col("operations").sum(), pl.col("time_ns").sum())
        .sort("class", "reason", "kind")
    )
    classes: dict[str, Any] = {}
    for code, name in enumerate(CLASSES):
        mine = total.filter(pl.col("class") == code)
        classes[name] = {
            **_sums(mine),
            "kinds": {KINDS[k]: _sums(mine.filter(pl.col("kind") == k)) for k in mine["kind"].unique().sort()},
        }
        reasons = [r for r in mine["reason"].unique().sort() if REASONS[r]]
        if reasons or name == "unplaced":
            classes[name]["reasons"] = {REASONS[r]: _sums(mine.filter(pl.col("reason") == r)) for r in reasons}
    in_steps = sum(classes[name]["time_ns"] for name in ("in_layer", "in_step", "unplaced"))
    placed = classes["in_layer"]["time_ns"] + classes["in_step"]["time_ns"]
    outside = (
        pl.concat([report.outside_layers for report in reports])
        .group_by("name")
        .agg(pl.col("operations").sum(), pl.col("time_ns").sum())
        .sort(["time_ns", "name"], descending=[True, False])
    )
    return {
        "classes": classes,
        "in_layer_pct_of_step_time": 100.0 * classes["in_layer"]["time_ns"] / in_steps if in_steps else None,
        "placed_pct_of_step_time": 100.0 * placed / in_steps if in_steps else None,
        "in_step_outside_layers_names": outside.head(TOP_OUTSIDE).to_dicts(),
    }


def _sums(frame: pl.DataFrame) -> dict[str, int]:
    return {"operations": int(frame["operations"].sum()), "time_ns": int(frame["time_ns"].sum())}


def _input(report: ReportFacts) -> dict[str, Any]:
    said = ("rank", "world_size", "tp_rank", "tp_size", "ep_rank", "ep_size", "dp_rank", "dp_size")
    versions = ("schema", "nvtxmoe", "vllm", "torch", "device", "recording", "eplb", "overhead", "sample_every")
    return {
        "path": str(report.source),
        "kind": report.kind,
        "size_bytes": report.size_bytes,
        "nsys": report.export_info.get("EXPORT_PRODUCT_VERSION"),
        "export_schema": report.export_info.get("EXPORT_SCHEMA_VERSION"),
        "gpus": list(report.gpus),
        "payload_encoding": report.events.encoding,
        "runtime_calls": report.runtime_calls,
        "gpu_operations": report.operations,
        "steps": len(report.steps),
        "processes": [
            {
                "pid": pid,
                **{k: meta.raw[k] for k in (*said, *versions) if k in meta.raw},
                "layers": len(meta.layers),
            }
            for pid, meta in sorted(report.metas.items(), key=lambda item: item[1].rank)
        ],
    }
