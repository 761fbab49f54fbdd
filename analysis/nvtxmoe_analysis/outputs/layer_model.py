"""moe_layer_model: which feature of the routing explains a layer's GPU time, by kind of step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import polars as pl

from nvtxmoe_analysis.outputs.spec import FLOAT, INTEGER, TEXT, Column, Document, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.layer_model.choice import Choice, Term
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="layer_model",
    stem="moe_layer_model",
    order=130,
    meaning="which feature explains each layer's time",
    recipe="moe_layer_corr",
    gpu=True,
    columns=(
        Column("layer_idx", INTEGER, "MoE layer; null: all layers"),
        Column("step_kind", TEXT, "prefill, decode, mixed"),
        Column("target", TEXT, "what was fitted: own_ns"),
        Column("feature", TEXT, "column of moe_layer_correlation; null if none explains or nothing was fitted"),
        Column(
            "role",
            TEXT,
            "best, one per layer and kind; alternative: another feature by itself; added: one beside the best",
        ),
        Column("status", TEXT, "explains, no_effect, cannot_tell_apart, refused"),
        Column("rows", INTEGER, "rows fitted"),
        Column("steps", INTEGER, "steps fitted"),
        Column("slope_ns_per_unit", FLOAT, "time per unit of the feature"),
        Column("slope_ci_low", FLOAT, "lower end of its 95 % interval"),
        Column("slope_ci_high", FLOAT, "upper end of its 95 % interval"),
        Column("intercept_ns", FLOAT, "time at 0 of the model's features, mean over rows"),
        Column("r2", FLOAT, "share of the variation within intercepts that the model explains"),
        Column("cv_error_ns", FLOAT, "mean absolute error of predicting steps left out"),
        Column("cv_error_constant_ns", FLOAT, "the same by the intercepts alone"),
        Column("reason", TEXT, "why nothing was fitted, or why it cannot be told"),
        Column("sentence", TEXT, "result in words"),
        Column("p_value", FLOAT, "two-sided, of a slope of 0, before the correction for many tests"),
        Column("correlation", FLOAT, "correlation with the best feature, within intercepts"),
        Column("best_slope_ns_per_unit", FLOAT, "slope of the best feature in the same model (role added)"),
        Column("best_slope_ci_low", FLOAT, "lower end of its 95 % interval"),
        Column("best_slope_ci_high", FLOAT, "upper end of its 95 % interval"),
    ),
    whole=("step_kind", "target", "role", "status", "rows", "steps"),
    key=("layer_idx", "step_kind", "role", "feature"),
    note="see [layer models](../explanation/models.md)",
)

DOCUMENT = Document(
    name="layer_model_document",
    stem="moe_layer_model",
    order=30,
    meaning="the models nested by layer and kind of step, with their options",
    recipe="moe_layer_corr",
    gpu=True,
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per feature in a role, of every layer and kind of step that has rows. See docs/explanation/models.md."""
    return table(results.models)


def document(results: RunMetrics) -> dict[str, Any]:
    """The same, nested: ``layers`` by "all" or "layer_N", then kind of step, with ``options`` of the method."""
    return nested(results.models)


def table(choices: Iterable[Choice]) -> pl.DataFrame:
    """The rows of moe_layer_model."""
    rows = [row for choice in choices for row in _rows(choice)]
    return pl.DataFrame(rows, schema=TABLE.types, orient="row")


def nested(choices: Iterable[Choice]) -> dict[str, Any]:
    """The document of moe_layer_model."""
    layers: dict[str, dict[str, Any]] = {}
    for choice in choices:
        layer = choice.sample.layer
        best, *others = _rows(choice)
        outer = dict.fromkeys(("layer_idx", "step_kind", "target", "rows", "steps", "sentence", "cv_error_constant_ns"))
        inner = [{name: row[name] for name in TABLE.types if name not in outer} for row in others]
        layers.setdefault("all" if layer is None else f"layer_{layer}", {})[choice.sample.kind] = {
            **{name: value for name, value in best.items() if name not in ("layer_idx", "step_kind", "role")},
            "alternatives": [row for row in inner if row["role"] == "alternative"],
            "added": [row for row in inner if row["role"] == "added"],
        }
    return {"options": options(), "layers": layers}


def options() -> dict[str, Any]:
    """How it was computed: docs/explanation/models.md explains each."""
    from nvtxmoe_analysis.metrics.layer_model import choose, estimates, samples  # noqa: PLC0415  see registry
    from nvtxmoe_analysis.stats import huber  # noqa: PLC0415  see registry

    return {
        "method": "Huber regression, an intercept and a trend in time per layer, rank and way of launch",
        "target": choose.TARGET,
        "features": list(samples.FEATURES),
        "huber_k": huber.HUBER_K,
        "confidence_pct": 100 * estimates.CONFIDENCE,
        "errors": "cluster-robust (CR2, Bell-McCaffrey degrees of freedom), clusters are blocks of consecutive steps",
        "memory": "noise with memory is filtered out of time and features (generalised least squares)",
        "all_layers": "mean of the layers' slopes",
        "cross_validation": "each block predicted from the others, mean absolute error",
        "blocks": {"least": samples.MIN_BLOCKS, "most": samples.MOST_BLOCKS, "steps_a_block": samples.STEPS_A_BLOCK},
        "most_rows": {"layer": samples.MOST_ROWS, "all_layers": samples.MOST_POOLED_ROWS},
        "minimum_rows": samples.MIN_ROWS,
        "minimum_steps": samples.MIN_STEPS,
        "minimum_df": estimates.MIN_DF,
        "false_claims_pct": 100 * choose.LEVEL,
        "multiplicity": "Benjamini-Bogomolov over layers and kinds, Holm over features",
    }


def _rows(choice: Choice) -> Iterator[dict[str, Any]]:
    from nvtxmoe_analysis.metrics.layer_model.sentences import sentence  # noqa: PLC0415  see registry

    for term in (choice.best, *choice.alternatives, *choice.added):
        yield _row(choice, term, sentence(choice) if term is choice.best else None)


def _row(choice: Choice, term: Term, words: str | None) -> dict[str, Any]:
    from nvtxmoe_analysis.metrics.layer_model.choose import TARGET  # noqa: PLC0415  see registry

    sample = choice.sample
    row = {
        "layer_idx": sample.layer,
        "step_kind": sample.kind,
        "target": TARGET,
        "feature": term.feature,
        "role": term.role,
        "status": term.status,
        "rows": sample.rows,
        "steps": sample.steps,
        "slope_ns_per_unit": term.slope,
        "slope_ci_low": term.low,
        "slope_ci_high": term.high,
        "intercept_ns": term.intercept,
        "r2": term.r2,
        "cv_error_ns": term.cv_error,
        "cv_error_constant_ns": choice.constant_error,
        "reason": term.reason,
        "sentence": words,
        "p_value": term.p_value,
        "correlation": term.correlation,
        "best_slope_ns_per_unit": term.best_slope,
        "best_slope_ci_low": term.best_low,
        "best_slope_ci_high": term.best_high,
    }
    return {name: _rounded(value) if isinstance(value, float) else value for name, value in row.items()}


def _rounded(value: float) -> float:
    """To six digits: further ones depend on the processor's order of summation, and no interval bears them out."""
    return float(f"{value:.6g}")
