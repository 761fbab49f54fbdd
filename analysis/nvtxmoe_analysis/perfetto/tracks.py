"""What the tracks of one report show, but for single operations: ranges of the host, layers, phases, collectives.

Every function returns a frame as ``slices.Slices`` has it, with ``pid`` and times of the report's own clock.
"""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.attribution.range_kinds import IDLE, LAYER, PHASE, STEP
from nvtxmoe_analysis.attribution.ranges import PHASE_NAMES, classify
from nvtxmoe_analysis.core.text import short_name
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.perfetto.operations import PHASES, Placed

#: Category of what belongs to MoE layers.
MOE, HOST, COLLECTIVE = "moe", "host", "collective"

_TOKENS = ("num_tokens", "num_reqs", "prefill_tokens", "decode_tokens")


def host_ranges(report: CaptureFacts, selection: Selection) -> pl.DataFrame:
    """Steps, and the ranges of layers and phases that the host pushed in them: eager ones, since Python does not run
    when a graph is replayed. Also ``globalTid``.

    A range that was still open at the end of the capture ends with the last of its process, and says ``open``.
    """
    events = report.events
    steps = report.steps.with_columns(step_row=pl.int_range(pl.len(), dtype=pl.Int64))
    if events.ranges.is_empty():
        return pl.DataFrame()
    kept_steps = steps.filter("kept", pl.col("start").is_not_null())
    ranges = classify(events.ranges, report.steps)
    last = events.ranges.group_by("pid").agg(last=pl.max_horizontal(pl.col("start").max(), pl.col("end").max()))
    bounds = kept_steps.join(last, on="pid", how="left").select(
        "globalTid", "step", "start", pl.coalesce("end", "last").alias("step_end"), pl.col("start").alias("step_start")
    )
    inside = (
        ranges.filter(pl.col("kind").is_in([LAYER, PHASE]))
        .sort("start", "row")
        .join_asof(bounds.sort("start"), on="start", by="globalTid", strategy="backward", check_sortedness=False)
        .filter(pl.col("start") < pl.col("step_end"))
    )
    if selection.layers is not None:
        inside = inside.filter(pl.col("layer").is_in(list(selection.layers)))
    phase = pl.col("phase").replace_strict(dict(enumerate(PHASE_NAMES)), return_dtype=pl.String)
    layer = pl.when(pl.col("layer") >= 0).then("layer")
    shown = layer.cast(pl.String).fill_null("?")
    inside = inside.select(
        "pid", "globalTid", "start", "end", "kind",
        pl.when(pl.col("kind") == LAYER).then(pl.format("layer {}", shown)).otherwise(phase).alias("name"),
        "step", layer.alias("layer"), *(pl.lit(None, pl.Int64).alias(name) for name in _TOKENS),
    )  # fmt: skip
    step_ranges = kept_steps.select(
        "pid", "globalTid", "start", "end", pl.lit(STEP, pl.Int32).alias("kind"),
        pl.format("step {}", pl.col("step").cast(pl.String).fill_null("?")).alias("name"),
        "step", pl.lit(None, pl.Int64).alias("layer"), *_TOKENS,
    )  # fmt: skip
    shown_pids = report.steps.filter("kept")["pid"].unique() if selection.narrows_work else ranges["pid"].unique()
    idle = ranges.filter(
        pl.col("kind") == IDLE, pl.col("pid").is_in(shown_pids.to_list()), pl.lit(not selection.narrows_steps)
    ).select(
        "pid", "globalTid", "start", "end", "kind", pl.lit("idle").alias("name"),
        *(pl.lit(None, pl.Int64).alias(name) for name in ("step", "layer", *_TOKENS)),
    )  # fmt: skip
    return (
        pl.concat([part.cast({"kind": pl.Int32, "layer": pl.Int64}) for part in (step_ranges, idle, inside)])
        .join(last, on="pid", how="left", maintain_order="left")
        .with_columns(open=pl.when(pl.col("end").is_null()).then(True), end=pl.coalesce("end", "last"))
        .with_columns(category=pl.lit(HOST), end=pl.max_horizontal("start", "end"))
        .sort("kind", maintain_order=True)  # of equal times the outer one comes first
        .drop("kind", "last")
    )


def layers(report: CaptureFacts) -> pl.DataFrame:
    """The GPU's extent of every (step, layer): from the first of its operations to the last, with its load."""
    load = pl.concat(
        [
            report.counts.cells.select("pid", "step", "layer", "num_tokens"),
            report.features.select("active_experts", "max_count", "max_mean_ratio"),
        ],
        how="horizontal",
    ).unique(["pid", "step", "layer"], keep="first")
    worked = report.layers.filter(pl.col("gpu_start_ns").is_not_null()).drop("num_tokens")
    return worked.join(load, on=["pid", "step", "layer"], how="left", maintain_order="left").select(
        "pid",
        pl.col("gpu_start_ns").alias("start"),
        pl.col("gpu_end_ns").alias("end"),
        pl.format("layer {}", "layer").alias("name"),
        pl.lit(MOE).alias("category"),
        "step",
        "layer",
        "launched_by",
        "kernel_count",
        "kernel_time_ns",
        "busy_ns",
        "num_tokens",
        "active_experts",
        "max_count",
        "max_mean_ratio",
    )


def phases(report: CaptureFacts, placed: Placed) -> pl.DataFrame:
    """The GPU's extent of every phase of a (step, layer), and the sum of its operations' durations."""
    phases = (
        placed.frame.filter(pl.col("layer") >= 0)
        .group_by("pid", "step_row", "layer", "phase")
        .agg(
            pl.col("start").min(),
            pl.col("end").max(),
            pl.len().cast(pl.Int64).alias("operations"),
            (pl.col("end") - pl.col("start")).sum().alias("time_ns"),
        )
        .sort("start", "layer", "phase")
    )
    return phases.select(
        "pid",
        "start",
        "end",
        pl.col("phase").replace_strict(dict(enumerate(PHASES)), return_dtype=pl.String).alias("name"),
        pl.lit(MOE).alias("category"),
        report.steps["step"].gather(phases["step_row"]).alias("step"),
        pl.col("layer").cast(pl.Int64),
        "operations",
        "time_ns",
    )


def collectives(split: pl.DataFrame) -> pl.DataFrame:
    """Collective kernels in steps, each with its wait and its transfer in it, where they are known.

    Parameters:
        split: rows of ``Split.frame`` inside the selection, of one report.
    """
    texts = split["kernel_name"].unique().to_list()
    names = pl.col("kernel_name").replace_strict({text: short_name(text) for text in texts}, return_dtype=pl.String)
    slices_whole = split.select(
        "pid", "start", "end", names.alias("name"), pl.lit(COLLECTIVE).alias("category"),
        "step", "layer", "kernel_name", "inferred", "ordinal", "phase", "wait_ns", "transfer_ns", "last_rank",
        "group_kind", "group", "ranks", "reason",
    )  # fmt: skip
    middle = pl.col("start") + pl.col("wait_ns")
    known = split.filter(pl.col("wait_ns").is_not_null())
    wait = known.filter(pl.col("wait_ns") > 0).select(
        "pid", "start", middle.alias("end"), pl.lit("wait").alias("name"), pl.lit(COLLECTIVE).alias("category"), "step",
        "layer", "last_rank",
    )  # fmt: skip
    transfer = known.filter(pl.col("transfer_ns") > 0).select(
        "pid", middle.alias("start"), "end", pl.lit("transfer").alias("name"), pl.lit(COLLECTIVE).alias("category"),
        "step", "layer",
    )  # fmt: skip
    return pl.concat([slices_whole, wait, transfer], how="diagonal")
