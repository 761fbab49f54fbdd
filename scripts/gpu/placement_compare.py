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
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nvtxmoe_analysis.placement.valuing import CONFIDENCE
from nvtxmoe_analysis.placement.verdict import CANNOT_TELL, NOT_WORTH, WORTH
from scripts.gpu.placement_measured import ALL, KEYS, TODAY, block_means, changes, in_windows, layer_times, over_phases

Documents = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """Predicted and measured changes of time per step.

    Attributes:
        layers: a row per case, placement, phase and layer: the columns of ``placement_measured.changes`` with
            predicted_ns, predicted_low_ns, predicted_high_ns and in_fit (whether the fit saw the layer).
        sums: the layers added up, and the phase "all"; with elapsed_ns, elapsed_low_ns and elapsed_high_ns, the
            change of the time from the first MoE layer's start to the last one's end.
        verdicts: a row per case: answer (predicted) and measured_answer.
    """

    layers: pl.DataFrame
    sums: pl.DataFrame
    verdicts: pl.DataFrame


def compare(times: pl.DataFrame, windows: Sequence[Mapping[str, Any]], documents: Documents) -> Comparison:
    """Return predicted beside measured changes.

    Parameters:
        times: of ``placement_measured.layer_times``.
        windows: what scripts/gpu/placement_run.py wrote.
        documents: by case, what `nvtxmoe place --json` wrote.
    """
    rows = in_windows(times, windows)
    predictions = pl.concat([predicted(document, case) for case, document in documents.items()])
    shares = _phase_shares(documents)
    own, elapsed = (
        pl.concat([means, over_phases(means, shares).select(means.columns)])
        for means in (block_means(rows, "own_ns"), block_means(rows, "elapsed_ns"))
    )
    elapsed_changes = changes(elapsed).select(
        *KEYS, elapsed_ns="change_ns", elapsed_low_ns="low_ns", elapsed_high_ns="high_ns"
    )
    whole = predictions.filter(pl.col("layer_idx").is_null()).drop("layer_idx", "in_fit")
    sums = changes(own).join(elapsed_changes, on=KEYS, how="left").join(whole, on=KEYS, how="left")
    layers = changes(block_means(rows, "own_ns", ["layer_idx"]), ["layer_idx"])
    layers = layers.join(predictions, on=[*KEYS, "layer_idx"], how="left")
    order = pl.col("case").replace_strict({case: at for at, case in enumerate(documents)}, default=len(documents))
    return Comparison(layers.sort(order, *KEYS, "layer_idx"), sums.sort(order, *KEYS), _verdicts(own, documents))


def predicted(document: Mapping[str, Any], case: str) -> pl.DataFrame:
    """Return the predicted change of every placement, phase and layer; the layer is null for their sum."""
    rows: list[dict[str, Any]] = []
    fitted = document["options"]["fit_layers"]
    for placement in document["placements"]:
        if placement["name"] == TODAY or not placement["layers"]:
            continue
        for phase in (*document["phases"], ALL):
            layers = [] if phase == ALL else [(layer["layer_idx"], layer[phase]) for layer in placement["layers"]]
            for layer, prediction in [(None, placement.get(phase)), *layers]:
                if prediction is None:
                    continue
                rows.append(
                    {
                        "case": case,
                        "placement": placement["name"],
                        "phase": phase,
                        "layer_idx": layer,
                        "predicted_ns": -prediction["saved_ns"],
                        "predicted_low_ns": -prediction["saved_high_ns"],
                        "predicted_high_ns": -prediction["saved_low_ns"],
                        "in_fit": fitted is None or layer in fitted,
                    }
                )
    return pl.DataFrame(rows, schema_overrides={"layer_idx": pl.Int64})


def _phase_shares(documents: Documents) -> pl.DataFrame:
    """Return the share of each phase in a case's steps, as ``nvtxmoe place`` weighs them: case, phase, share."""
    rows = []
    for case, document in documents.items():
        steps = {name: phase["steps"] for name, phase in document["phases"].items() if phase["reason"] is None}
        rows += [{"case": case, "phase": name, "share": many / sum(steps.values())} for name, many in steps.items()]
    return pl.DataFrame(rows, schema={"case": pl.String, "phase": pl.String, "share": pl.Float64})


def least_gain_ns(document: Mapping[str, Any]) -> float:
    """Return the least saving per step that is worth it."""
    return float(document["options"]["least_gain_pct"]) / 100 * float(document["verdict"]["step_gpu_ns"])


def _verdicts(means: pl.DataFrame, documents: Documents) -> pl.DataFrame:
    """Return predicted and measured answers; measured intervals too are widened for the number of placements."""
    rows = []
    for case, document in documents.items():
        of_case = means.filter((pl.col("case") == case) & (pl.col("phase") == ALL))
        placements = of_case.filter(pl.col("placement") != TODAY)["placement"].n_unique()
        measured = changes(of_case, confidence=1 - (1 - CONFIDENCE) / max(placements, 1))
        lows, highs = -measured["high_ns"], -measured["low_ns"]  # of what is saved
        least = least_gain_ns(document)
        answer = CANNOT_TELL
        if (lows >= least).any():
            answer = WORTH
        elif len(highs) and (highs < least).all():
            answer = NOT_WORTH
        rows.append({"case": case, "answer": document["verdict"]["answer"], "measured_answer": answer})
    return pl.DataFrame(rows)


def changes_table(comparison: Comparison) -> str:
    """Return the changes of each phase as Markdown, with the errors of the layers that were not in the fit."""
    lines = [
        "| case | placement | phase | today us | predicted change us (95 %) | measured change us (95 %) "
        "| elapsed change us (95 %) | median error per layer | half the measured interval per layer us |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in comparison.sums.filter(pl.col("phase") != ALL).iter_rows(named=True):
        error = layer_errors(comparison.layers, row["case"], row["placement"], row["phase"])
        cells = [
            *(row["case"], row["placement"], row["phase"], _us(row["today_ns"])),
            _interval(row["predicted_ns"], row["predicted_low_ns"], row["predicted_high_ns"]),
            _interval(row["change_ns"], row["low_ns"], row["high_ns"]),
            _interval(row["elapsed_ns"], row["elapsed_low_ns"], row["elapsed_high_ns"]),
            "" if error is None else f"{error.error_us:.1f} us, {error.error_pct:.1f} %",
            "" if error is None else f"{error.half_interval_us:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts_table(comparison: Comparison, documents: Documents) -> str:
    """Return what is saved over all steps as Markdown, with both verdicts."""
    lines = [
        "| case | placement | tokens max/mean | predicted saving us (95 %) | measured saving us (95 %) | least gain us "
        "| predicted verdict | measured verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in comparison.sums.filter(pl.col("phase") == ALL).iter_rows(named=True):
        document = documents[row["case"]]
        verdict = comparison.verdicts.row(by_predicate=pl.col("case") == row["case"], named=True)
        balance = {placement["name"]: placement["tokens_max_mean"] for placement in document["placements"]}
        cells = [
            *(row["case"], row["placement"], f"{balance[TODAY]:.3f} to {balance[row['placement']]:.3f}"),
            _interval(-row["predicted_ns"], -row["predicted_high_ns"], -row["predicted_low_ns"]),
            _interval(-row["change_ns"], -row["high_ns"], -row["low_ns"]),
            *(_us(least_gain_ns(document)), verdict["answer"], verdict["measured_answer"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class LayerErrors:
    """Medians over layers: of the prediction's error, in us and in percent of the measured change, and of half the
    measured change's interval."""

    error_us: float
    error_pct: float
    half_interval_us: float


def layer_errors(layers: pl.DataFrame, case: str, placement: str, phase: str) -> LayerErrors | None:
    """Return the errors of the layers that were not in the fit; None without such layers or a prediction.

    Parameters:
        layers: of ``Comparison``.
    """
    held_out = layers.filter(
        (pl.col("case") == case)
        & (pl.col("placement") == placement)
        & (pl.col("phase") == phase)
        & ~pl.col("in_fit").fill_null(True)
    )
    if held_out.is_empty():
        return None
    error = (pl.col("predicted_ns") - pl.col("change_ns")).abs()
    us, share, half = held_out.select(
        error.median() / 1000,
        (error / pl.col("change_ns").abs()).median().alias("share"),
        ((pl.col("high_ns") - pl.col("low_ns")) / 2000).median().alias("half"),
    ).row(0)
    return LayerErrors(us, 100 * share, half)


def _us(value: float | None) -> str:
    return "" if value is None else f"{value / 1000:,.1f}"


def _interval(mean: float | None, low: float | None, high: float | None) -> str:
    return "" if mean is None or low is None or high is None else f"{_us(mean)} ({_us(low)} to {_us(high)})"


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
    windows = json.loads(options.windows.read_text(encoding="utf-8"))
    comparison = compare(layer_times(options.results), windows, documents)
    options.out.mkdir(parents=True, exist_ok=True)
    comparison.layers.write_csv(options.out / "layers.csv")
    comparison.sums.write_csv(options.out / "sums.csv")
    sentences = "\n".join(f"- {case}: {document['verdict']['sentence']}" for case, document in documents.items())
    tables = f"{changes_table(comparison)}\n\n{verdicts_table(comparison, documents)}"
    text = f"Times per step, all MoE layers together.\n\n{tables}\n\nPredicted verdicts:\n\n{sentences}\n"
    (options.out / "proof.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
