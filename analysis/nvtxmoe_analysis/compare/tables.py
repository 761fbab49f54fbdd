"""The tables of a comparison: columns, types, and what their rows have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.stats.multiple_testing import holm

Schema = Mapping[str, type[pl.DataType]]

#: Name of all kinds of step together.
ALL = "all"

_HEAD: Schema = {"layer_idx": pl.Int64, "step_kind": pl.String}
_TAIL: Schema = {
    **dict.fromkeys(("p_value", "p_adjusted"), pl.Float64),
    "significant": pl.Boolean,
    "reason": pl.String,
}

#: Figures of both runs: one row a metric, layer (null: all together) and kind of step.
METRICS: Schema = {
    "metric": pl.String,
    **_HEAD,
    "unit": pl.String,
    **dict.fromkeys(("value_a", "value_b", "difference", "ci_low", "ci_high"), pl.Float64),
    **dict.fromkeys(("change_pct", "change_pct_ci_low", "change_pct_ci_high"), pl.Float64),
    **_TAIL,
}
#: Divergence of the distributions over experts: one row a layer (null: the mean of all) and kind of step.
ACTIVATIONS: Schema = {
    **_HEAD,
    **dict.fromkeys(("js_bits", "noise_bits", "excess_bits", "ci_low", "ci_high"), pl.Float64),
    **_TAIL,
}
#: One row an expert of a layer, over all kinds of step.
EXPERTS: Schema = {
    **dict.fromkeys(("layer_idx", "expert_id"), pl.Int64),
    **dict.fromkeys(("share_a_pct", "share_b_pct", "difference_pct", "ci_low", "ci_high"), pl.Float64),
    **dict.fromkeys(("js_bits", "p_value", "p_adjusted"), pl.Float64),
    "significant": pl.Boolean,
}


def finished(
    columns: Mapping[str, Floats],
    schema: Schema,
    layers: Sequence[int],
    reasons: Sequence[str | None],
    alpha: float,
    **same: str,
) -> pl.DataFrame:
    """Rows of a schema: all layers together, then each.

    Parameters:
        columns: float64 [1 + layers] by name; what is not finite, or not given, becomes null. p-values are adjusted
            over the layers; that of all layers together is its own.
        same: texts that are the same in every row.
    """
    none = np.full(len(layers) + 1, np.nan)
    floats = {name: columns.get(name, none) for name, dtype in schema.items() if dtype == pl.Float64}
    floats["p_adjusted"] = np.concatenate([floats["p_value"][:1], holm(floats["p_value"][None, 1:])[0]])
    known = {name: np.where(np.isfinite(values), values, np.nan) for name, values in floats.items()}
    p_adjusted = known["p_adjusted"].tolist()
    cells = {
        **known,
        "layer_idx": [None, *layers],
        "significant": [None if np.isnan(p) else p < alpha for p in p_adjusted],
        "reason": list(reasons),
        **{name: [text] * len(none) for name, text in same.items()},
    }
    return pl.DataFrame({name: cells[name] for name in schema}, schema=schema, nan_to_null=True)


def without_repeats(rows: list[dict[str, Any]], key: tuple[str, ...], value: str) -> list[dict[str, Any]]:
    """Return rows with a value, without the row of all kinds of step if one kind has the same value."""
    known = [row for row in rows if row[value] is not None]
    kinds = {(*(row[name] for name in key), row[value]) for row in known if row["step_kind"] != ALL}
    return [row for row in known if row["step_kind"] != ALL or (*(row[name] for name in key), row[value]) not in kinds]
