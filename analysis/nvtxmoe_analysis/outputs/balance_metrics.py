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
        Column("layer_idx", INTEGER, "null: all layers"),
        Column("metric", TEXT),
        Column("project", TEXT, "whose definition it is"),
        Column("over", TEXT, "experts, slots or ranks: what is compared"),
        Column(
            "window",
            TEXT,
            "steps: each step's value, averaged, or the largest of a metric named max; last_10, last_100, "
            "last_1000: of the last steps; total: the value of the sum over steps",
        ),
        Column("value", FLOAT),
        Column("step_min", FLOAT),
        Column("step_max", FLOAT, "of single steps; null for totals"),
        Column("samples", INTEGER, "values that went in"),
        Column("units", INTEGER, "how many experts, slots or ranks; null where layers differ"),
        Column("placement", TEXT, "how it is known which rank holds which expert"),
        Column("reason", TEXT, "why the value is null"),
    ),
    note="[each definition with its source](../explanation/metrics.md)",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per (layer, metric, window), then those of all layers together (``layer_idx`` null)."""
    from nvtxmoe_analysis.metrics.balance_definitions import rows  # noqa: PLC0415  see registry

    return pl.DataFrame(rows(results), schema=TABLE.types, orient="row")
