"""Finding: what explains a layer's time, in the words of moe_layer_model."""

from __future__ import annotations

from typing import Any

import polars as pl

from nvtxmoe_analysis.report.finding import COST, WEAK, Finding
from nvtxmoe_analysis.report.ledger import Ledger, rows_where
from nvtxmoe_analysis.report.numbers import Sentence, Where, difference, durations, sentence
from nvtxmoe_analysis.report.own_time import costliest_layer, own_column

ORDER = 20

MODEL = "layer_model"
COLUMNS = (
    *("layer_idx", "step_kind", "feature", "role", "status", "rows", "steps", "slope_ns_per_unit", "slope_ci_low"),
    *("slope_ci_high", "r2", "cv_error_ns", "cv_error_constant_ns", "reason", "sentence"),
)
#: The first feature's slope in a model with a second feature.
BESIDE = ("best_slope_ns_per_unit", "best_slope_ci_low", "best_slope_ci_high")
EXPLAINS, REFUSED = "explains", "refused"


def find(ledger: Ledger) -> list[Finding]:
    """Return why the costliest layer takes its time, per kind of step: explained kinds first, then fitted ones, by own
    time."""
    model = ledger.source.frame(MODEL, COLUMNS)
    rows = ledger.source.frame("layer_correlation", ["step_kind"])
    if model is None or rows is None:
        return []
    best = model.filter(pl.col("role") == "best").unique(["layer_idx", "step_kind"], keep="first", maintain_order=True)
    layer = costliest_layer(rows)
    layer_rows = rows.filter(pl.col("layer_idx") == layer)
    time = dict(layer_rows.group_by("step_kind").agg(pl.col(own_column(rows)).sum()).iter_rows())
    ranked = sorted(
        best.filter(pl.col("layer_idx") == layer).iter_rows(named=True),
        key=lambda row: (row["status"] != EXPLAINS, row["status"] == REFUSED, -(time.get(row["step_kind"]) or 0)),
    )
    if not ranked:
        return []
    first, *others = ranked
    details = [*_waiting(ledger, rows, layer)]
    details += [*(sentence("{}", sentence_of(row)) for row in others), *_elsewhere(ledger, best, first["step_kind"])]
    kind = COST if first["status"] == EXPLAINS else WEAK
    headline = sentence("{}", sentence_of(first))
    topic = f"Why layer {layer} takes its time"
    return [Finding(topic, headline, details, _sure(ledger, first), kind, "time_and_feature")]


def _waiting(ledger: Ledger, rows: pl.DataFrame, layer: int) -> list[Sentence]:
    """Return the share of collectives, which the model is not about, if it is more than half of the layer's time."""
    where: Where = {"layer_idx": layer}
    if own_column(rows) != "own_ns":
        return []
    kernels, own = (ledger.take("layer_correlation", name, "sum", where=where) for name in ("kernel_time_ns", "own_ns"))
    collectives = difference(kernels, own)
    if collectives.value <= own.value:
        return []
    text = "Most of layer {}'s kernel time, {} of {}, is collectives, which wait for other ranks: no feature of the {}"
    return [
        sentence(text + " speaks of that, and what follows is of its own time.", layer, collectives, kernels, "layer")
    ]


def sentence_of(row: dict[str, Any]) -> str:
    """Return a model's sentence with a capital and a full stop."""
    text = (row["sentence"] or f"layer {row['layer_idx']}, {row['step_kind']}: no words were written").strip()
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _elsewhere(ledger: Ledger, best: pl.DataFrame, kind: str) -> list[Sentence]:
    """Return what explains this kind of step in the other layers, and in all of them together."""
    kind_models = best.filter(pl.col("step_kind") == kind)
    layers = kind_models.drop_nulls("layer_idx")
    sentences = []
    if len(layers) > 1:
        layers_by_feature = (
            layers.filter(pl.col("status") == EXPLAINS).group_by("feature").agg(pl.len().alias("layers"))
        )
        ranked = layers_by_feature.sort(["layers", "feature"], descending=[True, False])
        if ranked.is_empty():
            fitted = len(layers.filter(pl.col("status") != REFUSED))
            if fitted:
                text = "In {} steps no feature was found to explain the time of any of the {} layers that were fitted."
                sentences.append(sentence(text, kind, fitted))
            else:
                sentences.append(sentence("In {} steps no layer was fitted.", kind))
        else:
            where: Where = {"step_kind": kind, "role": "best", "status": EXPLAINS, "feature": ranked["feature"][0]}
            number = ledger.take(MODEL, "layer_idx", "distinct", where=where)
            text = "In {} steps {} explains the time best in {} of {} layers."
            sentences.append(sentence(text, kind, ranked["feature"][0], number, len(layers)))
    pooled = kind_models.filter(pl.col("layer_idx").is_null()).to_dicts()
    return [*sentences, *(sentence("{}", sentence_of(row)) for row in pooled)]


def _sure(ledger: Ledger, row: dict[str, Any]) -> Sentence | None:
    """Return confidence interval, fit, error and number of rows of a model; None for a refused model."""
    where: Where = {"layer_idx": row["layer_idx"], "step_kind": row["step_kind"], "role": "best"}
    sample_size = sentence(
        "{} rows of {} steps.", *(ledger.take(MODEL, column, where=where) for column in ("rows", "steps"))
    )
    if row["status"] == REFUSED:
        return None
    if row["status"] != EXPLAINS or row["slope_ci_low"] is None:
        reason = (row["reason"] or row["status"].replace("_", " ")).rstrip(".")
        return sentence("{}; {}", reason, sample_size)
    best_clause = sentence("{} by itself: {}; ", row["feature"], _slope(ledger, where, row, "slope"))
    clauses = [best_clause, *_fit(ledger, where, row), *_beside(ledger, row)]
    return sentence("{}" * len(clauses) + "{}", *clauses, sample_size)


def _slope(ledger: Ledger, where: Where, row: dict[str, Any], stem: str) -> Sentence:
    """Return a slope with its interval."""
    columns = (f"{stem}_ns_per_unit", f"{stem}_ci_low", f"{stem}_ci_high")
    texts = durations(*(row[column] for column in columns))
    values = (ledger.take(MODEL, column, where=where, text=text) for column, text in zip(columns, texts, strict=True))
    return sentence("{} a unit, 95 % CI {} to {}", *values)


def _fit(ledger: Ledger, where: Where, row: dict[str, Any]) -> list[Sentence]:
    """Return R2 and the cross-validated error."""
    clauses = []
    if row["r2"] is not None:
        clauses.append(sentence("R2 {}; ", ledger.take(MODEL, "r2", where=where, text=f"{row['r2']:.2f}")))
    if row["cv_error_ns"] is not None and row["cv_error_constant_ns"] is not None:
        error, constant = (ledger.take(MODEL, c, where=where) for c in ("cv_error_ns", "cv_error_constant_ns"))
        clauses.append(sentence("cross-validated error {}, against {} of a constant; ", error, constant))
    return clauses


def _beside(ledger: Ledger, row: dict[str, Any]) -> list[Sentence]:
    """Return the second feature that lowers the error most beside the first, if one explains anything."""
    model = ledger.source.frame(MODEL, [*COLUMNS, *BESIDE])
    if model is None:
        return []
    where: Where = {"layer_idx": row["layer_idx"], "step_kind": row["step_kind"], "role": "added", "status": EXPLAINS}
    added = rows_where(model, where).drop_nulls(["slope_ci_low", "cv_error_ns", *BESIDE]).sort("cv_error_ns", "feature")
    if added.is_empty():
        return []
    second = added.row(0, named=True)
    second_row: Where = {**where, "feature": second["feature"]}
    error = ledger.take(MODEL, "cv_error_ns", where=second_row)
    first_slope, second_slope = (_slope(ledger, second_row, second, stem) for stem in ("best_slope", "slope"))
    return [sentence("beside {} ({}): {}, error {}; ", second["feature"], second_slope, first_slope, error)]
