"""The models of moe_layer_model that findings speak of: of all layers together, and of the costliest one."""

from __future__ import annotations

from typing import Any

import polars as pl

from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.own_time import costliest_layer
from nvtxmoe_analysis.report.steady import CORRELATION, KINDS

MODEL = "layer_model"
COLUMNS = (
    *("layer_idx", "step_kind", "feature", "role", "status", "rows", "steps", "slope_ns_per_unit", "slope_ci_low"),
    *("slope_ci_high", "r2", "cv_error_ns", "cv_error_constant_ns", "reason", "sentence"),
)
EXPLAINS = "explains"


def best_models(ledger: Ledger) -> list[dict[str, Any]]:
    """Return one row per kind of step, decode first: of all layers together, of the costliest layer if these were not
    fitted or explain nothing and it does."""
    model, rows = ledger.source.frame(MODEL, COLUMNS), ledger.source.frame(CORRELATION, ["step_kind"])
    if model is None or rows is None:
        return []
    best = model.filter(pl.col("role") == "best").unique(["layer_idx", "step_kind"], keep="first", maintain_order=True)
    layer = costliest_layer(rows)
    models = []
    for kind in KINDS:
        of_kind = best.filter(
            (pl.col("step_kind") == kind) & (pl.col("layer_idx").is_null() | (pl.col("layer_idx") == layer))
        )
        ranked = sorted(
            of_kind.iter_rows(named=True), key=lambda row: (row["status"] != EXPLAINS, row["layer_idx"] is not None)
        )
        models += ranked[:1]
    return models


def sentence_of(row: dict[str, Any]) -> str:
    """Return a model's sentence with a capital and a full stop."""
    text = (row["sentence"] or f"layer {row['layer_idx']}, {row['step_kind']}: no words were written").strip()
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
