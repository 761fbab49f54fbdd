"""moe_balance_metrics: how even the load is, by our numbers and by those that other projects quote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from nvtxmoe_analysis.outputs.spec import FLOAT, INTEGER, TEXT, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="balance_metrics",
    stem="moe_balance_metrics",
    order=60,
    meaning="balance by several definitions",
    recipe="moe_expert_sum",
    columns=(
        Column("layer_idx", INTEGER, "MoE layer; null: all layers"),
        Column("metric", TEXT, "name in the project that defines it"),
        Column("project", TEXT, "project whose definition it is"),
        Column("over", TEXT, "what is compared: experts, slots or ranks"),
        Column(
            "window",
            TEXT,
            "steps: mean of each step's value (the largest if the metric's name has max); last_10, "
            "last_100, last_1000: of the last steps; total: value of the sum over steps",
        ),
        Column("value", FLOAT, "value of the metric"),
        Column("step_min", FLOAT, "smallest value of a single step; null for totals"),
        Column("step_max", FLOAT, "largest value of a single step; null for totals"),
        Column("samples", INTEGER, "number of values in it"),
        Column("units", INTEGER, "number of experts, slots or ranks; null if layers differ"),
        Column("placement", TEXT, "how it is known which rank holds which expert"),
        Column("reason", TEXT, "why the value is null"),
    ),
    whole=("metric", "project", "over", "window", "samples"),
    key=("layer_idx", "metric", "project", "over", "window"),
    note="see [metrics of balance](../explanation/metrics.md) for each definition and its source",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per (layer, metric, window), then those of all layers together (``layer_idx`` null)."""
    from nvtxmoe_analysis.metrics.balance_definitions import rows  # noqa: PLC0415  see registry

    return pl.DataFrame(rows(results), schema=TABLE.types, orient="row")
