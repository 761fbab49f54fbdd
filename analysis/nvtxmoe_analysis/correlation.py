"""What the counts say beside what the GPU took: the rows of moe_layer_correlation."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from nvtxmoe_analysis.cells import PHASE_COLUMNS, TIMED_KINDS
from nvtxmoe_analysis.data_parallel import Sharing
from nvtxmoe_analysis.facts import ReportFacts
from nvtxmoe_analysis.features import unevenness
from nvtxmoe_analysis.local_load import COLUMNS as LOCAL
from nvtxmoe_analysis.local_load import local_load
from nvtxmoe_analysis.routing import cell_features
from nvtxmoe_analysis.tiles import block_sizes, count_tiles
from nvtxmoe_analysis.work import STEP_PHASES

KEY = ("rank", "step", "layer")

#: Columns that the first version had, features of routing, and those that came later.
FEATURES = ("total_activations", "active_experts", "max_count", "mean_count", "std_dev", "max_mean_ratio")
TILES = ("block_m", "expert_tiles")
MORE_FEATURES = ("cv", "entropy_bits", "gini", "block_m_source")
#: Columns of a step's work outside layers: those of the classes, and what could not be placed.
STEP_COLUMNS = (*(f"{name}_ns" for name in STEP_PHASES), "step_unplaced_ns")


def correlate(reports: Sequence[ReportFacts], layers: pl.DataFrame, sharing: Sharing | None) -> pl.DataFrame:
    """One row for every row of ``Results.layers``, in their order; see ``outputs.layer_correlation.build``.

    Parameters:
        sharing: the data-parallel ranks that share experts.
    """
    features = _of_rows(pl.concat([_features(report, sharing) for report in reports]), layers)
    by_cell = pl.concat([_collective_times(report, i) for i, report in enumerate(reports)])
    by_step = pl.concat([_step_times(report, i) for i, report in enumerate(reports)])
    cell = ["report", "step_row", "layer"]
    joined = (
        pl.concat([layers, features], how="horizontal")
        .join(by_cell, on=cell, how="left", maintain_order="left")
        .join(by_step, on=cell[:2], how="left", maintain_order="left")
        .with_columns(pl.col("collective_inferred_ns", "own_collective_ns").fill_null(0))
    )
    times = [pl.col(f"{kind}_time_ns") for kind in TIMED_KINDS]
    return joined.select(
        "rank",
        "step",
        pl.col("layer").alias("layer_idx"),
        *("num_tokens", "prefill_tokens", "decode_tokens", "top_k"),
        *FEATURES,
        *TILES,
        *("kernel_count", "kernel_time_ns", "busy_ns", "launched_by"),
        step_kind(),
        *MORE_FEATURES,
        *LOCAL,
        *PHASE_COLUMNS,
        "collective_inferred_ns",
        # Where the GPU did nothing for a layer its work was lost: it did not take 0.
        pl.when(pl.col("launched_by") != "none")
        .then(pl.col("kernel_time_ns") - pl.col("collective_ns") - pl.col("own_collective_ns"))
        .alias("own_ns"),
        "step_gpu_ns",
        *STEP_COLUMNS,
        "between_steps_ns",
        (100.0 * pl.sum_horizontal(times) / pl.when(pl.col("step_gpu_ns") > 0).then("step_gpu_ns")).alias(
            "step_share_pct"
        ),
    )


def step_kind() -> pl.Expr:
    """``step_kind`` of ``prefill_tokens`` and ``decode_tokens``: prefill, decode, mixed, none (no tokens); null where
    they are not known."""
    prefill, decode = pl.col("prefill_tokens") > 0, pl.col("decode_tokens") > 0
    return (
        pl.when(prefill & decode)
        .then(pl.lit("mixed"))
        .when(prefill)
        .then(pl.lit("prefill"))
        .when(decode)
        .then(pl.lit("decode"))
        .when((prefill | decode).is_not_null())
        .then(pl.lit("none"))
        .alias("step_kind")
    )


def _of_rows(features: pl.DataFrame, layers: pl.DataFrame) -> pl.DataFrame:
    """The features (KEY and others) of each row of ``layers``, without KEY; of rows with one key the first counts."""
    first = features.select(*KEY, pl.int_range(pl.len()).alias("at")).unique(list(KEY), keep="first")
    at = layers.select(KEY).join(first, on=KEY, how="left", nulls_equal=True, maintain_order="left")["at"]
    return features.drop(KEY).select(pl.all().gather(at))


def _features(report: ReportFacts, sharing: Sharing | None) -> pl.DataFrame:
    counts = report.counts
    shared = None if sharing is None else sharing.of(counts.cells, report.metas)
    cells = counts.cells
    if shared is not None:  # the kernels work on all ranks' tokens
        tokens = cells["num_tokens"].to_numpy().copy()
        tokens[shared[0].at] = shared[0].num_tokens
        cells = cells.with_columns(num_tokens=pl.Series(tokens))
    blocks = block_sizes(cells, report.metas)
    features = cell_features(counts).rename({"total": "total_activations"})
    return pl.concat(
        [
            counts.cells.select(*KEY, "top_k"),
            features.select(
                *FEATURES, cv=pl.when(pl.col("mean_count") > 0).then(pl.col("std_dev") / pl.col("mean_count"))
            ),
            blocks.with_columns(expert_tiles=pl.Series(count_tiles(counts, blocks["block_m"].to_numpy()))),
            unevenness(counts),
            local_load(counts, report.events.physical, report.metas, blocks["block_m"], shared),
        ],
        how="horizontal",
    )


def _collective_times(report: ReportFacts, index: int) -> pl.DataFrame:
    """Of cells that have collectives: ``own_collective_ns`` (in the layer's own ranges; all that lies in
    ``moe.collective`` is one, whatever its name) and ``collective_inferred_ns``."""
    time = pl.col("end") - pl.col("start")
    return (
        report.collectives.filter("kept")
        .drop_nulls("layer")
        .group_by("step_row", "layer")
        .agg(
            time.filter("inferred").sum().alias("collective_inferred_ns"),
            time.filter(~pl.col("inferred") & (pl.col("phase") != "collective")).sum().alias("own_collective_ns"),
        )
        .with_columns(report=pl.lit(index, pl.Int64))
    )


def _step_times(report: ReportFacts, index: int) -> pl.DataFrame:
    inside = [*STEP_PHASES, "step_unplaced", "layers"]
    return report.step_work.select(
        pl.lit(index, pl.Int64).alias("report"),
        "step_row",
        pl.sum_horizontal(inside).alias("step_gpu_ns"),
        *(pl.col(column.removesuffix("_ns")).alias(column) for column in (*STEP_COLUMNS, "between_steps_ns")),
    )
