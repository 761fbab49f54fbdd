#!/usr/bin/env python3
"""Compare what `nvtxmoe place` predicted with what was measured after the experts had moved.

    python scripts/gpu/placement_compare.py after/moe_expert_tracking windows.json --predicted skewed=place.json -o out

RESULTS are those of scripts/gpu/placement_run.py with --predicted, WINDOWS the file that it wrote, and each PREDICTED
file is what `nvtxmoe place --json` wrote of a case's first capture. Writes OUT/layers.csv (a row per case, placement,
phase and layer), OUT/sums.csv and OUT/proof.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe_analysis.stats.student_t import quantile

TODAY = "today"
#: Steps at the start of a window of decode that do not count: the prefill of its prompts, the first decode steps.
COLD_STEPS = 3
KEYS = ["case", "placement", "phase"]


def step_times(results: Path, windows: list[dict[str, Any]]) -> pl.DataFrame:
    """Return the slowest rank's own kernel time of every (step, layer) with the window that the step belongs to.

    A step with any prefill token is prefill, as for ``nvtxmoe place``. A window's first decode steps do not count.
    """
    timings = pl.read_csv(results / "moe_layer_timings.csv").select(
        "step", "layer_idx", "prefill_tokens", "decode_tokens", "num_tokens"
    )
    steps = timings.group_by("step", "layer_idx").agg(pl.all().first())
    own_times = pl.read_csv(results / "moe_straggler.csv").select(
        "step", "layer_idx", own_ns=pl.col("max_own_ns"), mean_ns=pl.col("mean_own_ns")
    )
    placed = pl.DataFrame(
        [
            {"step": step, "case": window["case"], "placement": window["placement"], "block": window["block"], "at": at}
            for window in windows
            for at, step in enumerate(range(window["steps"][0], window["steps"][1] + 1))
        ]
    )
    phase = pl.when(pl.col("prefill_tokens") == 0).then(pl.lit("decode")).otherwise(pl.lit("prefill"))
    rows = own_times.join(steps, on=["step", "layer_idx"]).join(placed, on="step").with_columns(phase=phase)
    return rows.filter(
        pl.col("phase").is_not_null()
        & pl.col("own_ns").is_not_null()
        & ((pl.col("phase") == "prefill") | (pl.col("at") >= COLD_STEPS))
    )


def measured(times: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """Return the change of the time against today's placement: the mean over blocks, and its standard error.

    Parameters:
        times: of ``step_times``, one row per unit of ``by`` and step.
        by: the unit: ["layer_idx"], or [] for the sum over layers.
    """
    unit = times.group_by(*KEYS, "block", "step", *by).agg(pl.col("own_ns").sum())
    blocks = unit.group_by(*KEYS, "block", *by).agg(pl.col("own_ns").mean())
    today = blocks.filter(pl.col("placement") == TODAY).drop("placement").rename({"own_ns": "today_ns"})
    pairs = blocks.filter(pl.col("placement") != TODAY).join(today, on=["case", "phase", "block", *by])
    change = pl.col("own_ns") - pl.col("today_ns")
    return (
        pairs.group_by(*KEYS, *by)
        .agg(
            today_ns=pl.col("today_ns").mean(),
            measured_ns=change.mean(),
            error_ns=change.std() / pl.len().sqrt(),
            blocks=pl.len(),
        )
        .with_columns(
            half_ns=pl.col("error_ns") * (pl.col("blocks") - 1).map_batches(_student, return_dtype=pl.Float64)
        )
        .with_columns(
            low_ns=pl.col("measured_ns") - pl.col("half_ns"), high_ns=pl.col("measured_ns") + pl.col("half_ns")
        )
        .sort(*KEYS, *by)
    )


def _student(df: pl.Series) -> pl.Series:
    """Return the quantile of Student's t for an interval of 95 %, by degrees of freedom."""
    return pl.Series(quantile(0.95, np.maximum(df.to_numpy(), 1)))


def predicted(document: dict[str, Any], case: str) -> pl.DataFrame:
    """Return the predicted change of every placement, phase and layer; the layer is null for their sum."""
    rows: list[dict[str, Any]] = []
    fitted = document["options"]["fit_layers"]
    for placement in document["placements"]:
        name = placement["name"]
        if name == TODAY or not placement["layers"]:
            continue
        for phase in document["phases"]:
            for layer, prediction in [(None, placement.get(phase))] + [
                (layer["layer_idx"], layer[phase]) for layer in placement["layers"]
            ]:
                if prediction is None:
                    continue
                rows.append(
                    {
                        "case": case,
                        "placement": name,
                        "phase": phase,
                        "layer_idx": layer,
                        "predicted_ns": -prediction["saved_ns"],
                        "predicted_low_ns": -prediction["saved_high_ns"],
                        "predicted_high_ns": -prediction["saved_low_ns"],
                        "in_fit": fitted is None or layer in fitted,
                        "tokens_max_mean": placement["tokens_max_mean"],
                    }
                )
    return pl.DataFrame(rows, schema_overrides={"layer_idx": pl.Int64})


def main() -> None:
    """Write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("windows", type=Path)
    parser.add_argument("--predicted", nargs="+", required=True, metavar="CASE=FILE")
    parser.add_argument("-o", "--out", type=Path, default=Path())
    options = parser.parse_args()
    documents = {
        case: json.loads(Path(file).read_text(encoding="utf-8"))
        for case, file in (argument.split("=", 1) for argument in options.predicted)
    }
    predictions = pl.concat([predicted(document, case) for case, document in documents.items()])
    times = step_times(options.results, json.loads(options.windows.read_text(encoding="utf-8")))
    layers = measured(times, ["layer_idx"]).join(predictions, on=[*KEYS, "layer_idx"], how="left")
    sums = measured(times, []).join(predictions.filter(pl.col("layer_idx").is_null()), on=KEYS, how="left")
    options.out.mkdir(parents=True, exist_ok=True)
    layers.write_csv(options.out / "layers.csv")
    sums.drop("layer_idx", "in_fit").write_csv(options.out / "sums.csv")
    text = table(layers, sums, documents)
    (options.out / "proof.md").write_text(text, encoding="utf-8")
    print(text)


def table(layers: pl.DataFrame, sums: pl.DataFrame, documents: dict[str, dict[str, Any]]) -> str:
    """Return the comparison as Markdown: times in us per step, all MoE layers together."""
    lines = [
        "| case | placement | phase | today | predicted change (95 %) | measured change (95 %) "
        "| median error per layer, not in the fit | tokens max/mean: today, new |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sums.iter_rows(named=True):
        covered_layers = layers.filter(
            (pl.col("case") == row["case"])
            & (pl.col("placement") == row["placement"])
            & (pl.col("phase") == row["phase"])
            & ~pl.col("in_fit").fill_null(True)
        )
        error = covered_layers.select(
            ((pl.col("predicted_ns") - pl.col("measured_ns")).abs() / pl.col("measured_ns").abs()).median()
        )
        share = error.item() if len(covered_layers) else None
        balance = {
            placement["name"]: placement["tokens_max_mean"] for placement in documents[row["case"]]["placements"]
        }
        lines.append(
            f"| {row['case']} | {row['placement']} | {row['phase']} | {_us(row['today_ns'])} "
            f"| {_interval(row['predicted_ns'], row['predicted_low_ns'], row['predicted_high_ns'])} "
            f"| {_interval(row['measured_ns'], row['low_ns'], row['high_ns'])} "
            f"| {'' if share is None else f'{100 * share:.1f} % of {len(covered_layers)}'} "
            f"| {balance.get(TODAY)}, {balance.get(row['placement'])} |"
        )
    verdicts = [f"- {case}: {document['verdict']['sentence']}" for case, document in documents.items()]
    return "\n".join([*lines, "", "Verdicts:", "", *verdicts, ""])


def _us(value: float | None) -> str:
    return "" if value is None else f"{value / 1000:,.1f}"


def _interval(mean: float | None, low: float | None, high: float | None) -> str:
    return "" if mean is None or low is None or high is None else f"{_us(mean)} ({_us(low)} to {_us(high)})"


if __name__ == "__main__":
    main()
