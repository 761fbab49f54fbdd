"""The first things people want to know of an analysis, as plain values."""

from __future__ import annotations

from typing import Any

import polars as pl

from nvtxmoe_analysis.analyze import Analysis
from nvtxmoe_analysis.attribution.kernel_classes import CLASSES, classify_names
from nvtxmoe_analysis.attribution.layer_sums import TIMED_KINDS
from nvtxmoe_analysis.attribution.step_sums import STEP_PHASES
from nvtxmoe_analysis.checks.check import FAIL, PASS, WARN
from nvtxmoe_analysis.events.recording import recording_of
from nvtxmoe_analysis.metrics.layer_model.choice import REFUSED
from nvtxmoe_analysis.metrics.layer_model.sentences import sentence
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.report.steady import Steady

TOP_KERNELS = 5
TOP_OUTSIDE = 3


def overview(analysis: Analysis) -> dict[str, Any]:
    """Verdict, layers, longest operations and files; JSON-ready. Times are ns. Of sessions of direct mode nothing of
    the GPU is there.

    ``kernel_time_ns`` is the sum over ranks and steps of kernel durations, ``copy_time_ns`` that of copies and
    memsets. ``kernel_time_ns_per_step`` is kernel time per steady step, as in the report, and ``own_ns_per_step`` the
    same without collectives, in which ranks wait for one another; ``times_per_step_of`` names these steps. ``max_mean``
    is the hottest expert's share of all the layer's activations over the mean expert's. Times are null without GPU
    operations.
    ``recording`` is how expert ids were taken, layers by way (``{"recomputed": "0-3"}``).
    """
    results = analysis.results
    steps, tokens = _steps_and_tokens(analysis, only_kept=True)
    return {
        "verdict": analysis.validation["verdict"],
        "reasons": analysis.validation["reasons"],
        "failed_inputs": analysis.validation["failed_inputs"],
        "warnings": [check.message for check in analysis.checks if check.status == WARN],
        "checks_passed": sum(check.status == PASS for check in analysis.checks),
        "checks_failed": sum(check.status == FAIL for check in analysis.checks),
        "ranks": sum(report.steps.filter("kept")["pid"].n_unique() for report in results.reports),
        "steps_kept": steps,
        "steps_captured": _steps_and_tokens(analysis, only_kept=False)[0],
        "tokens": tokens,
        **({} if results.direct else _gpu(analysis)),
        "answers": [answer.as_dict() for answer in analysis.advice.answers],
        "findings": [finding.as_dict() for finding in analysis.advice.findings],
        "recording": recording_of(meta for report in results.reports for meta in report.metas.values()),
        "layers": _layers(analysis),
        "folder": str(analysis.folder),
        "files": [file.name if file.parent == analysis.folder else str(file) for file in analysis.files],
    }


def _gpu(analysis: Analysis) -> dict[str, Any]:
    run, cover = analysis.results, analysis.validation["coverage"]
    known = any(report.operations for report in run.reports)
    in_layer_ns = sum(int(run.layers[f"{kind}_time_ns"].sum()) for kind in TIMED_KINDS)
    share = cover["in_layer_pct_of_step_time"]
    if run.selection.active:
        in_steps_ns = _in_steps_ns(run)
        share = 100.0 * in_layer_ns / in_steps_ns if in_steps_ns else None
    return {
        "in_layer_ns": in_layer_ns if known else None,
        "in_layer_pct": share,
        "kernels": _kernels(analysis),
        "outside": _outside(run),
        "explained": _explained(analysis.results),
        "times_per_step_of": None if analysis.advice.steady is None else analysis.advice.steady.basis,
    }


def _explained(results: RunMetrics) -> list[str]:
    """Sentences of moe_layer_model on all layers together, and where these can't be fitted, why not."""
    pooled = [choice for choice in results.models if choice.sample.layer is None]
    fitted = [choice for choice in pooled if choice.best.status != REFUSED]
    return [sentence(choice) for choice in fitted or pooled]


def _steps_and_tokens(analysis: Analysis, *, only_kept: bool) -> tuple[int, int]:
    """Steps and their tokens, each once however many tensor- or pipeline-parallel ranks ran it.

    Of pipeline stages the ones with the model's first layer stand for all. Ranks that have it and share tokens are one;
    data-parallel ones are added.
    """
    first = _first_layer(analysis.results)
    number = tokens = 0
    for report in analysis.results.reports:
        groups = {pid: meta.tp_group for pid, meta in report.metas.items() if first is None or first in meta.layers}
        silent = [pid for pid in report.steps["pid"].unique().to_list() if pid not in report.metas]
        groups |= {pid: -1 - index for index, pid in enumerate(silent)}
        steps = report.steps.filter("kept") if only_kept else report.steps
        own_steps = steps.filter(pl.col("pid").is_in(list(groups))).with_columns(
            group=pl.col("pid").replace_strict(groups, default=None, return_dtype=pl.Int64),
            number=pl.coalesce("step", -1 - pl.col("row")),  # without a number a range stands for itself
        )
        once = own_steps.unique(["group", "number"], keep="first")
        number += len(once)
        tokens += int(once["num_tokens"].sum())
    return number, tokens


def _first_layer(results: RunMetrics) -> int | None:
    """The lowest layer that a process announces and that is the model's: a draft's may have a negative number, and is
    on some of the ranks only. None where no process announces one."""
    announced = {layer for report in results.reports for meta in report.metas.values() for layer in meta.layers}
    seen = (_layer_numbers(results) & announced) or announced
    return min((layer for layer in seen if layer >= 0), default=min(seen, default=None))


def _layer_numbers(results: RunMetrics) -> set[int]:
    """Layers captured: in direct mode, those with counts."""
    counted = results.routing.counts.cells["layer"].unique().to_list()
    return {*counted, *([] if results.direct else results.layers["layer"].unique().to_list())}


def _layers(analysis: Analysis) -> list[dict[str, Any]]:
    results = analysis.results
    time = {} if results.direct else _layer_times(results, analysis.advice.steady)
    top_k = dict(results.routing.counts.cells.group_by("layer").agg(pl.col("top_k").last()).rows())
    out = []
    for layer in sorted(_layer_numbers(results)):
        total = results.totals.get(layer)
        assigned = 0 if total is None else int(total.sum())
        hottest = None if total is None or not assigned else int(total.argmax())
        out.append(
            {
                "layer": layer,
                "num_experts": None if total is None else len(total),
                "top_k": top_k.get(layer),
                "used": None if total is None else int((total > 0).sum()),
                "hottest": hottest,
                "hottest_pct": None if total is None or hottest is None else 100.0 * int(total[hottest]) / assigned,
                "max_mean": None if total is None or not assigned else int(total.max()) * len(total) / assigned,
                **time.get(layer, {}),
            }
        )
    return out


def _layer_times(results: RunMetrics, steady: Steady | None) -> dict[int, dict[str, Any]]:
    """Return times by layer; those per step are of steady steps, and null without them."""
    timed = results.layers.group_by("layer").agg(
        pl.col("kernel_time_ns").sum(), (pl.col("memcpy_time_ns") + pl.col("memset_time_ns")).sum().alias("copies")
    )
    names = ("kernel_time_ns", "copy_time_ns", "kernel_time_ns_per_step", "own_ns_per_step")
    if not any(report.operations for report in results.reports):
        return {layer: dict.fromkeys(names) for layer in timed["layer"].to_list()}
    numbers, over = (frozenset[int](), 1) if steady is None else (steady.numbers, steady.rank_steps)
    per_step = (
        results.correlation.filter(pl.col("step").is_in(numbers))
        .group_by(layer="layer_idx")
        .agg(pl.when(pl.col(name).count() > 0).then(pl.col(name).sum() / over) for name in ("kernel_time_ns", "own_ns"))
    )
    rows = timed.join(per_step, on="layer", how="left", suffix="_per_step").select(
        "layer", "kernel_time_ns", "copies", "kernel_time_ns_per_step", "own_ns"
    )
    return {layer: dict(zip(names, times, strict=True)) for layer, *times in rows.iter_rows()}


def _kernels(analysis: Analysis) -> list[dict[str, Any]]:
    kernels = analysis.results.kernels.drop_nulls("layer_idx")
    total = int(kernels["total_ns"].sum())
    top = (
        kernels.group_by("phase", "kernel_name")
        .agg(pl.col("count").sum(), pl.col("total_ns").sum())
        .sort(["total_ns", "kernel_name", "phase"], descending=[True, False, False])
        .head(TOP_KERNELS)
    )
    collective = [CLASSES[code] == "collective" for code in classify_names(top["kernel_name"])]
    return [
        {**row, "pct": 100.0 * row["total_ns"] / total if total else 0.0, "collective": is_collective}
        for row, is_collective in zip(top.iter_rows(named=True), collective, strict=True)
    ]


def _in_steps_ns(run: RunMetrics) -> int:
    """Return the GPU time of the kept steps, in all their layers and outside layers, in ns."""
    total = 0
    for report in run.reports:
        kept_rows = report.steps.with_row_index("step_row").filter("kept")["step_row"]
        work = report.step_work.filter(pl.col("step_row").is_in(kept_rows.implode()))
        total += sum(int(work[slot].sum()) for slot in (*STEP_PHASES, "step_unplaced", "layers"))
    return total


def _outside(run: RunMetrics) -> list[dict[str, Any]]:
    """Return the longest work of the kept steps outside layers; ``pct`` is the share of all such work."""
    named = (
        pl.concat([report.outside_kept for report in run.reports])
        .group_by("name")
        .agg(pl.col("operations").sum(), pl.col("time_ns").sum())
        .sort(["time_ns", "name"], descending=[True, False])
    )
    total = int(named["time_ns"].sum())
    return [
        {
            "phase": "",
            "kernel_name": row["name"],
            "count": row["operations"],
            "total_ns": row["time_ns"],
            "pct": 100.0 * row["time_ns"] / total if total else 0.0,
        }
        for row in named.head(TOP_OUTSIDE).iter_rows(named=True)
    ]
