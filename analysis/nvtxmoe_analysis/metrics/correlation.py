"""What the counts say beside what the GPU took: the rows of moe_layer_correlation."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from nvtxmoe_analysis.attribution.layer_sums import PHASE_COLUMNS, TIMED_KINDS
from nvtxmoe_analysis.attribution.step_sums import STEP_PHASES
from nvtxmoe_analysis.core.parallel import ordered_map
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.facts.layer_rows import KEY
from nvtxmoe_analysis.metrics.beside import beside
from nvtxmoe_analysis.metrics.expert_tiles import block_sizes, count_tiles
from nvtxmoe_analysis.metrics.local_load import COLUMNS as LOCAL
from nvtxmoe_analysis.metrics.local_load import local_load
from nvtxmoe_analysis.run.data_parallel import Sharing

#: Columns that the first version had, features of routing, and those that came later.
FEATURES = ("total_activations", "active_experts", "max_count", "mean_count", "std_dev", "max_mean_ratio")
TILES = ("block_m", "expert_tiles")
MORE_FEATURES = ("cv", "entropy_bits", "gini", "block_m_source")
#: Columns of a step's work outside layers: those of the classes, and what could not be placed.
STEP_COLUMNS = (*(f"{name}_ns" for name in STEP_PHASES), "step_unplaced_ns")


def correlate(reports: Sequence[CaptureFacts], sharing: Sharing | None) -> list[pl.DataFrame]:
    """Of each report one row for every row of its layers, in their order; see ``outputs.layer_correlation.build``.

    Parameters:
        sharing: the data-parallel ranks that share experts.
    """
    # The threads are of use to one report alone too, within it.
    side_by_side = map if len(reports) == 1 else ordered_map
    return list(side_by_side(lambda report: _report_rows(report, sharing), reports))


def _report_rows(report: CaptureFacts, sharing: Sharing | None) -> pl.DataFrame:
    layers = report.layers
    features = _features_of_rows(_features(report, sharing), layers)
    # Not joined but put beside: a join would copy all columns.
    tied = beside(layers, _collective_times(report), ["step_row", "layer"]).fill_null(0)
    of_step = beside(layers, _step_times(report), ["step_row"])
    joined = pl.concat([layers, features, tied, of_step], how="horizontal")
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


def _features_of_rows(features: pl.DataFrame, layers: pl.DataFrame) -> pl.DataFrame:
    """The features (KEY and others) of each row of ``layers``, without KEY; of rows with one key the first counts."""
    if features.select(KEY).equals(layers.select(KEY)):  # as a rule: nothing is copied
        return features.drop(KEY)
    return beside(layers, features.unique(list(KEY), keep="first", maintain_order=True), KEY, nulls_equal=True)


def _features(report: CaptureFacts, sharing: Sharing | None) -> pl.DataFrame:
    counts = report.counts
    shared = None if sharing is None else sharing.of(counts.cells, report.metas)
    cells = counts.cells
    if shared is not None:  # the kernels work on all ranks' tokens
        tokens = cells["num_tokens"].to_numpy().copy()
        tokens[shared[0].at] = shared[0].num_tokens
        cells = cells.with_columns(num_tokens=pl.Series(tokens))
    blocks = block_sizes(cells, report.metas)
    features = report.features.rename({"total": "total_activations"})
    return pl.concat(
        [
            counts.cells.select(*KEY, "top_k"),
            features.select(
                *FEATURES, cv=pl.when(pl.col("mean_count") > 0).then(pl.col("std_dev") / pl.col("mean_count"))
            ),
            blocks.select(
                "block_m",
                "block_m_source",
                expert_tiles=pl.Series(count_tiles(counts, blocks["rows_per_tile"].to_numpy())),
            ),
            features.select("entropy_bits", "gini"),
            local_load(counts, report.events.physical, report.metas, blocks["rows_per_tile"], shared),
        ],
        how="horizontal",
    )


def _collective_times(report: CaptureFacts) -> pl.DataFrame:
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
    )


def _step_times(report: CaptureFacts) -> pl.DataFrame:
    inside = [*STEP_PHASES, "step_unplaced", "layers"]
    return report.step_work.select(
        "step_row",
        pl.sum_horizontal(inside).alias("step_gpu_ns"),
        *(pl.col(column.removesuffix("_ns")).alias(column) for column in (*STEP_COLUMNS, "between_steps_ns")),
    )
