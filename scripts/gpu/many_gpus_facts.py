"""Facts of a finished stage of ``scripts/gpu/many_gpus.py``, read from the files that the stage left.

Each function returns a dictionary for summary.json: ``passed``, ``line`` (for people) and figures.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import polars as pl

from scripts.gpu.golden_captures import MOST_BYTES

Facts = dict[str, Any]
#: Checks that cannot pass without a GPU.
GPU_CHECKS = frozenset({"cuda_tracing"})
#: A data-parallel rank without requests makes a dummy batch, which is in no step: its collectives have no counterpart.
EXPLAINED = "rank_not_in_step"
#: Checks on which the counts of several ranks rest.
COUNT_CHECKS = ("ranks_present", "steps_have_counts", "counts_sum", "tokens_agree", "tensor_parallel_copies")


def capture(results: Path, ranks: int, *, data_parallel: bool, gpu: bool) -> Facts:
    """Return whether a capture is complete on every rank, its sums of counts, and its collectives.

    Parameters:
        results: the folder of tables.
        ranks: how many there have to be.
        data_parallel: each rank has tokens of its own, so totals are sums over ranks. Otherwise ranks have copies.
        gpu: GPU time has to be there. Without it checks and collectives that need it count as passed.
    """
    document = json.loads((results / "moe_capture_validation.json").read_text())
    checks = {check["name"]: check for check in document["checks"]}
    failed = sorted(name for name, check in checks.items() if check["status"] == "fail")
    present = checks["ranks_present"]["figures"].get("present", [])
    sums = count_sums(results, data_parallel=data_parallel)
    split = collectives(results)
    complete = document["verdict"] == "complete" if gpu else set(failed) <= GPU_CHECKS
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in split["reasons"].items())
    passed = (
        complete
        and present == list(range(ranks))
        and not sums["wrong_cells"]
        and not sums["wrong_experts"]
        and (not gpu or (split["collectives"] > 0 and set(split["reasons"]) <= {EXPLAINED}))
    )
    return {
        "passed": bool(passed),
        "line": f"{document['verdict']}{'' if gpu else ' (there is no GPU time)'}, "
        f"{len(present)} of {ranks} ranks; {sums['cells']:,} (rank, step, layer), "
        f"{sums['wrong_cells']} with counts other than tokens x top-k, {sums['wrong_experts']} experts with another "
        f"total; {split['collectives']:,} collectives, {split['without_split']} without waiting and transfer"
        + (f" ({reasons})" if reasons else ""),
        "verdict": document["verdict"],
        "failed_checks": failed,
        "count_checks": {name: checks[name]["status"] for name in COUNT_CHECKS if name in checks},
        "ranks": present,
        "counts": sums,
        "collectives": split,
    }


def count_sums(results: Path, *, data_parallel: bool) -> Facts:
    """Return how many cells and totals of experts contradict the tokens, from each rank's counts per step."""
    summary = json.loads((results / "moe_summary.json").read_text())
    top_k = {int(name.removeprefix("layer_")): layer["top_k"] for name, layer in summary.items()}
    cells = pl.read_parquet(results / "moe_step_activations.parquet").with_columns(
        expected=pl.col("num_tokens") * pl.col("layer_idx").replace_strict(top_k, return_dtype=pl.Int64),
        summed=pl.col("counts").list.sum().cast(pl.Int64),
    )
    per_rank = cells.group_by("rank").agg(
        cells=pl.len(), tokens_x_layers=pl.col("num_tokens").sum(), activations=pl.col("summed").sum()
    )
    counted = cells if data_parallel else cells.filter(pl.col("rank") == cells["rank"].min())
    totals = (
        counted.select("layer_idx", "counts", expert_id=pl.int_ranges(pl.col("counts").list.len()))
        .explode("counts", "expert_id")
        .group_by("layer_idx", "expert_id")
        .agg(total=pl.col("counts").sum().cast(pl.Int64))
        .filter(pl.col("total") > 0)
    )
    table = pl.read_csv(results / "moe_expert_activations.csv").filter(pl.col("activation_count") > 0)
    both = totals.join(table, on=["layer_idx", "expert_id"], how="full", coalesce=True)
    wrong = both.filter(~pl.col("total").eq_missing(pl.col("activation_count")))
    return {
        "cells": len(cells),
        "wrong_cells": len(cells.filter(pl.col("expected") != pl.col("summed"))),
        "experts": len(both),
        "wrong_experts": len(wrong),
        "per_rank": per_rank.sort("rank").to_dicts(),
    }


def collectives(results: Path) -> Facts:
    """Return the number of a rank's collectives, and of those without waiting and transfer by reason."""
    table = pl.read_csv(results / "moe_collectives.csv", schema_overrides={"reason": pl.String}, infer_schema=False)
    missing = table.filter(pl.col("wait_ns").is_null() | pl.col("transfer_ns").is_null())
    reasons = missing.group_by("reason").agg(count=pl.len())
    return {
        "collectives": len(table),
        "without_split": len(missing),
        "reasons": {row["reason"] or "none given": row["count"] for row in reasons.iter_rows(named=True)},
    }


def exact(out: Path) -> Facts:
    """Return how many cases of ``scripts/gpu/check_all.py`` are exact on every rank."""
    cases = json.loads((out / "results.json").read_text())["cases"]
    right = [case for case in cases if case["status"] == "exact"]
    bad = [f"{case['name']}: {case['status']}, {case.get('why') or ''}" for case in cases if case not in right]
    processes = [process for case in right for process in case["processes"]]
    cells = sum(process["oracle_cells"] for process in processes)
    return {
        "passed": bool(cases) and not bad,
        "line": "; ".join(
            [f"{len(right)} of {len(cases)} cases exact, {len(processes)} ranks, {cells:,} (step, layer)", *bad]
        ),
        "cases": cases,
    }


def placement(out: Path) -> Facts:
    """Return changes that ``scripts/gpu/placement_proof.sh`` predicted and measured.

    Changes with redundant experts are predicted only.
    """
    sums = pl.read_csv(out / "sums.csv")
    inside = sums.filter((pl.col("predicted_ns") >= pl.col("low_ns")) & (pl.col("predicted_ns") <= pl.col("high_ns")))
    redundant = {}
    for file in sorted(out.glob("*-redundant/moe_placement/placement.json")):
        placements = json.loads(file.read_text())["placements"]
        for item in placements:
            if item["name"] == "redundant":
                redundant[file.parents[1].name] = {key: value for key, value in item.items() if key != "layers"}
    return {
        "passed": len(sums) > 0,
        "line": f"{len(sums)} sums of a placement measured, {len(inside)} predictions in the measured interval; "
        f"{len(redundant)} cases predicted with redundant experts, which have no slots to be measured in",
        "sums": sums.to_dicts(),
        "redundant_predicted_only": redundant,
    }


def windows(file: Path) -> Facts:
    """Return the windows that ``scripts/gpu/placement_run.py`` ran, where there is no GPU time to predict from."""
    all_windows = json.loads(file.read_text())
    return {
        "passed": len(all_windows) > 0,
        "line": f"{len(all_windows)} windows ran; nothing is predicted, because `nvtxmoe place` needs GPU time",
        "windows": all_windows,
    }


def throughput(file: Path) -> Facts:
    """Return the change of tokens per second by recording."""
    document = json.loads(file.read_text())
    failed = [run for run in document["runs"] if "tokens_per_s" not in run]
    change, interval = document["change_pct"], document["change_pct_ci95"]
    return {
        "passed": change is not None and not failed,
        "line": f"{change} % (interval of 95 %: {interval}) in {document['pairs']} pairs, {len(failed)} runs failed",
        "document": document,
    }


def reports(folder: Path, ranks: int) -> Facts:
    """Return the exports that ranks under an nsys each left."""
    exports = sorted(folder.glob("*.nvtxmoe.sqlite"))
    return {
        "passed": len(exports) == ranks,
        "line": f"{len(exports)} exports of {ranks} ranks",
        "bytes": {export.name: export.stat().st_size for export in exports},
    }


def scaling(file: Path) -> Facts:
    """Return the times of ``scripts/bench/many_reports.py``."""
    document = json.loads(file.read_text())
    times = ", ".join(f"{way['name']} {way['median_wall_s']:.1f} s" for way in document["ways"])
    repeats = len(document["ways"][0]["runs"])
    line = f"{document['reports']} reports. {document['equal']} Median of {repeats}: {times}"
    return {"passed": True, "line": line, "document": document}


def golden(trimmed: Path) -> Facts:
    """Pack a trimmed capture and return its size."""
    packed = Path(f"{trimmed}.xz")
    packed.write_bytes(lzma.compress(trimmed.read_bytes(), preset=6))
    size = packed.stat().st_size
    return {
        "passed": size <= MOST_BYTES,
        "line": f"{packed.name}: {size:,} bytes, at most {MOST_BYTES:,} go with the tests",
        "bytes": size,
    }
