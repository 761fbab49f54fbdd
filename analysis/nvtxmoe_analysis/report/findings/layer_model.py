"""Finding: what explains the layers' time, in the words of moe_layer_model. What could not be fitted is a limit."""

from __future__ import annotations

from typing import Any

import polars as pl

from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.models import EXPLAINS, MODEL, best_models, sentence_of
from nvtxmoe_analysis.report.numbers import Where
from nvtxmoe_analysis.report.sentences import Sentence, sentence

ID = "layer-model"
ORDER = 43
MEANING = "Which feature of the routing explains the layers' own time in steady steps, and what a unit of it costs."


def find(ledger: Ledger) -> list[Finding]:
    """Return the model of all layers together for steady steps, or else of the costliest layer, if it explains."""
    steady = ledger.steady
    if steady is None:
        return []
    explained = [row for row in best_models(ledger) if (row["step_kind"], row["status"]) == (steady.kind, EXPLAINS)]
    if not explained:
        return []
    row = explained[0]
    topic = (
        "What the layers' time follows" if row["layer_idx"] is None else f"Why layer {row['layer_idx']} takes its time"
    )
    headline = sentence("{}", sentence_of(row))
    details = [*_all_layers(ledger, row), *_elsewhere(ledger, steady.kind)]
    return [Finding(topic, headline, details, _sure(ledger, row), chart="time_and_feature")]


def _all_layers(ledger: Ledger, row: dict[str, Any]) -> list[Sentence]:
    """Return what the model of all layers together is, if a single layer's is in the headline."""
    if row["layer_idx"] is None:
        return []
    pooled = ledger.source.loaded.frame(MODEL).filter(
        pl.col("layer_idx").is_null() & (pl.col("step_kind") == row["step_kind"]) & (pl.col("role") == "best")
    )
    return [sentence("{}", sentence_of(pooled.row(0, named=True)))] if len(pooled) else []


def _elsewhere(ledger: Ledger, kind: str) -> list[Sentence]:
    """Return the feature that explains most layers' time by itself."""
    where: Where = {"step_kind": kind, "role": "best", "status": EXPLAINS}
    rows = ledger.source.loaded.frame(MODEL).drop_nulls("layer_idx")
    layers = rows.filter((pl.col("step_kind") == kind) & (pl.col("role") == "best"))
    by_feature = layers.filter(pl.col("status") == EXPLAINS).group_by("feature").agg(pl.len().alias("layers"))
    if len(layers) < 2 or by_feature.is_empty():
        return []
    feature = by_feature.sort(["layers", "feature"], descending=[True, False])["feature"][0]
    number = ledger.take(MODEL, "layer_idx", "distinct", where={**where, "feature": feature})
    many = layers["layer_idx"].n_unique()
    return [sentence("{} explains the time best in {} of {} layers by themselves.", feature, number, many)]


def _sure(ledger: Ledger, row: dict[str, Any]) -> Sentence:
    """Return the fit's R2, error and number of rows."""
    where: Where = {"layer_idx": row["layer_idx"], "step_kind": row["step_kind"], "role": "best"}
    clauses = []
    if row["r2"] is not None:
        clauses.append(sentence("R2 {}; ", ledger.take(MODEL, "r2", where=where, text=f"{row['r2']:.2f}")))
    if row["cv_error_ns"] is not None and row["cv_error_constant_ns"] is not None:
        error, constant = (ledger.take(MODEL, c, where=where) for c in ("cv_error_ns", "cv_error_constant_ns"))
        clauses.append(sentence("cross-validated error {}, against {} of a constant; ", error, constant))
    rows, steps = (ledger.take(MODEL, column, where=where) for column in ("rows", "steps"))
    return sentence("{}" * len(clauses) + "{} rows of {} steps.", *clauses, rows, steps)
