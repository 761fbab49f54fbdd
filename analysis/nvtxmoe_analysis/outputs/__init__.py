"""The files that ``analyze`` writes: one module each, with a ``build`` from results to a table or a JSON value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.outputs import (
    activations,
    balance_metrics,
    capacity,
    collectives,
    coselection,
    cross_layer,
    cross_layer_paths,
    kernel_timings,
    layer_correlation,
    layer_model,
    layer_timings,
    load_imbalance,
    routing_weights,
    step_activations,
    straggler,
    summary,
)

#: Tables by file stem, in the order in which they are listed to people.
TABLES: Mapping[str, Callable[[RunMetrics], pl.DataFrame]] = {
    "moe_expert_activations": activations.build,
    "moe_expert_coselection": coselection.build,
    "moe_routing_weights_hist": routing_weights.build,
    "moe_load_imbalance": load_imbalance.build,
    "moe_step_activations": step_activations.build,
    "moe_balance_metrics": balance_metrics.build,
    "moe_capacity": capacity.build,
    "moe_cross_layer": cross_layer.build,
    "moe_cross_layer_paths": cross_layer_paths.build,
    "moe_layer_timings": layer_timings.build,
    "moe_kernel_timings": kernel_timings.build,
    "moe_layer_correlation": layer_correlation.build,
    "moe_layer_model": layer_model.build,
    "moe_straggler": straggler.build,
    "moe_collectives": collectives.build,
}

#: Those that need no GPU work, and so are written of a session of direct mode too.
STANDARD = (
    "moe_expert_activations",
    "moe_expert_coselection",
    "moe_routing_weights_hist",
    "moe_load_imbalance",
    "moe_step_activations",
    "moe_balance_metrics",
    "moe_capacity",
    "moe_cross_layer",
    "moe_cross_layer_paths",
)

#: Those with lists in their cells: Parquet whatever format the others have, and not in the database.
PARQUET_ONLY = ("moe_step_activations",)

#: JSON files by file stem. The validation file is written with them, by the caller who ran the checks.
DOCUMENTS: Mapping[str, Callable[[RunMetrics], Any]] = {
    "moe_summary": summary.build,
    "moe_layer_model": layer_model.document,
    "moe_straggler": straggler.document,
}
#: Those of them that need GPU work.
GPU_DOCUMENTS = ("moe_layer_model", "moe_straggler")
