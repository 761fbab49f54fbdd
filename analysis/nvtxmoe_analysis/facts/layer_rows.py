"""The rows of moe_layer_timings: of one report, and of all reports in one order."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from nvtxmoe_analysis.attribution.layer_sums import PHASE_COLUMNS, TIMED_KINDS, TIMING_COLUMNS
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.facts.selection import Selection

KEY = ("rank", "step", "layer")

COLUMNS = {
    **dict.fromkeys(KEY, pl.Int64),
    "pid": pl.Int64,
    "step_row": pl.Int32,
    **dict.fromkeys(("num_tokens", "prefill_tokens", "decode_tokens"), pl.Int64),
    **{name: dtype for name, dtype in TIMING_COLUMNS.items() if name != "launched_by"},
    **dict.fromkeys(PHASE_COLUMNS, pl.Int64),
    "launched_by": pl.String,
}
#: Sums, which are 0 where the GPU did nothing.
_SUMS = [name for name in TIMING_COLUMNS if name.startswith(TIMED_KINDS) or name == "busy_ns"] + list(PHASE_COLUMNS)
#: Rows of one key, which only steps without a number can have, in an order that every run has.
_ORDER = [*KEY, "gpu_start_ns", "step_row", "num_tokens", "prefill_tokens", "decode_tokens"]


def layer_rows(
    steps: pl.DataFrame,
    cells: pl.DataFrame,
    timings: pl.DataFrame,
    step_work: pl.DataFrame,
    metas: Mapping[int, Meta],
    selection: Selection,
) -> pl.DataFrame:
    """One row for every (rank, step, layer) captured: what steps promise, what counts say, what the GPU did.

    Parameters:
        steps: ``CaptureFacts.steps``; cells: those of ``CaptureFacts.counts``; step_work: ``CaptureFacts.step_work``.
        timings: ``pid``, ``rank``, ``step``, ``layer``, ``step_row`` and the columns of ``cells.cell_timings``,
            narrowed to the selection.

    Returns:
        COLUMNS, sorted by KEY and ``gpu_start_ns`` (nulls first). ``pid`` is null where the GPU did nothing,
        ``step_row`` (of ``step_work``) where the step has no range.
    """
    unnumbered_step = pl.when(pl.col("step").is_null()).then("step_row").cast(pl.Int32).alias("apart")
    of_step = ["rank", "step", "apart"]
    key = [*KEY, "apart"]  # steps without a number are told apart by their range
    steps = steps.with_row_index("step_row").with_columns(unnumbered_step).filter("kept")
    timings = timings.with_columns(unnumbered_step)
    counted = cells.select(*KEY, pl.lit(None, pl.Int32).alias("apart"), "num_tokens")
    promised = steps.join(_layers_by_pid(cells, metas, selection), on="pid", how="inner")
    keys = pl.concat([promised.select(key), counted.select(key), timings.select(key)]).unique()
    work_rows = step_work.select("rank", "step", unnumbered_step, "step_row").unique(of_step, keep="first")
    per_step = (
        steps.unique(of_step, keep="first")
        .drop("step_row")
        .join(work_rows, on=of_step, how="left", nulls_equal=True)
        .select(*of_step, "step_row", "prefill_tokens", "decode_tokens", pl.col("num_tokens").alias("step_tokens"))
    )
    return (
        keys.join(counted.unique(key, keep="first"), on=key, how="left", nulls_equal=True)
        .join(per_step, on=of_step, how="left", nulls_equal=True)
        .join(timings.drop("step_row"), on=key, how="left", nulls_equal=True)
        .with_columns(
            pl.coalesce("num_tokens", "step_tokens").alias("num_tokens"),
            pl.col(_SUMS).fill_null(0),
            pl.col("launched_by").fill_null("none"),
        )
        .select(*COLUMNS)
        .sort(_ORDER)
        .rechunk()
    )


def _layers_by_pid(cells: pl.DataFrame, metas: Mapping[int, Meta], selection: Selection) -> pl.DataFrame:
    declared = [(pid, layer) for pid, meta in metas.items() for layer in meta.layers]
    counted = cells.select("pid", "layer").unique().rows()
    pairs = sorted(set(declared) | {(int(p), int(n)) for p, n in counted})
    if selection.layers is not None:
        pairs = [(pid, layer) for pid, layer in pairs if layer in selection.layers]
    return pl.DataFrame(pairs, schema={"pid": pl.Int64, "layer": pl.Int64}, orient="row")
