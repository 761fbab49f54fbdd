"""Layer and phase ranges that an eager step lacks: work launched where one should be open counts elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from nvtxmoe.formats import schema
from nvtxmoe_analysis.attribution.range_kinds import LAYER, PHASE
from nvtxmoe_analysis.events.decode import Events
from nvtxmoe_analysis.events.nvtx import pid_of
from nvtxmoe_analysis.facts.expected_cells import counted

#: Phases that every run of a layer has as often as every other. Reductions and shared experts may depend on the batch.
STEADY = tuple(f"{schema.PHASE_PREFIX}{phase}" for phase in ("route", "dispatch", "experts", "combine"))


@dataclass(frozen=True)
class RangeGaps:
    """What is missing.

    Attributes:
        layers: ranges that layers of a step lack, since others of its layers have more.
        phases: phase ranges that a layer of a step lacks, since other runs of that layer have more.
        seen: layer and phase ranges.
        bare_phases: phase ranges outside a range of their layer, on their thread.
        layers_seen: (pid, layer) that have ranges, in steps or outside.
    """

    seen: int = 0
    layers: int = 0
    phases: int = 0
    bare_phases: int = 0
    layers_seen: frozenset[tuple[int, int]] = frozenset()


def range_gaps(classified: pl.DataFrame, events: Events) -> RangeGaps:
    """Compare the layer and phase ranges of each step.

    Only layers that must have counts are compared: a draft model's run several times per step. Replayed steps have no
    such ranges, and those of warm-up and graph capture, outside steps, are not compared.

    Parameters:
        classified: see ``ranges.classify``.
    """
    closed = classified.filter(pl.col("end").is_not_null() & pl.col("kind").is_in([LAYER, PHASE]))
    layers = closed.filter(kind=LAYER)
    phases = closed.filter(pl.col("name").is_in(STEADY), pl.col("layer") >= 0)
    bare = _bare(phases, layers)
    spans = classified.filter(pl.col("step_row") >= 0, pl.col("end").is_not_null())
    in_steps = _in_steps(pl.concat([layers, phases]), spans)
    runs = in_steps.filter(kind=LAYER).group_by("pid", "span", "layer").agg(runs=pl.len())
    return RangeGaps(
        seen=len(closed),
        layers=_layers_missing(runs, events),
        phases=_phases_missing(in_steps.filter(kind=PHASE), runs),
        bare_phases=bare,
        layers_seen=_layers_seen(events),
    )


def _layers_seen(events: Events) -> frozenset[tuple[int, int]]:
    number = pl.col("name").str.strip_prefix(schema.LAYER_PREFIX).str.to_integer(strict=False)
    named = events.ranges.filter(pl.col("name").str.starts_with(schema.LAYER_PREFIX)).select("pid", layer=number)
    return frozenset((int(pid), int(layer)) for pid, layer in named.drop_nulls().unique().iter_rows())


def _bare(phases: pl.DataFrame, layers: pl.DataFrame) -> int:
    around = layers.select("globalTid", "start", of=pl.col("layer"), until=pl.col("end")).sort("start")
    enclosing = phases.sort("start").join_asof(
        around, on="start", by="globalTid", strategy="backward", check_sortedness=False
    )
    # One that ends later crosses the layer: ``Segments.crossings`` counts it.
    inside = (pl.col("of") == pl.col("layer")) & (pl.col("start") < pl.col("until"))
    return len(enclosing.filter(~inside.fill_null(False)))


def _in_steps(ranges: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """The ranges that begin in a step, with ``pid`` and ``span`` (the step's row)."""
    around = spans.select("globalTid", "start", span=pl.col("step_row"), until=pl.col("end")).sort("start")
    pid = pid_of("globalTid")
    around = around.with_columns(pid=pid)
    return (
        ranges.with_columns(pid=pid)
        .sort("start")
        .join_asof(around.drop("globalTid"), on="start", by="pid", strategy="backward", check_sortedness=False)
        .filter(pl.col("start") < pl.col("until"))
    )


def _layers_missing(runs: pl.DataFrame, events: Events) -> int:
    """Layer ranges that the step's other layers have and one has not."""
    counted_layers = pl.DataFrame(sorted(counted(events)), schema={"pid": pl.Int64, "layer": pl.Int64}, orient="row")
    runs_of_pids = runs.join(counted_layers, on=["pid", "layer"], how="semi")
    # A layer without any may be replayed in this step; one whose work is nowhere is found by its lack of GPU work.
    return int(runs_of_pids.select((pl.col("runs").max().over("pid", "span") - pl.col("runs")).sum()).item())


def _phases_missing(phases: pl.DataFrame, runs: pl.DataFrame) -> int:
    """Phase ranges that other runs of the layer have and one has not."""
    kinds = phases.select("pid", "layer", "name").unique()
    seen = phases.group_by("pid", "span", "layer", "name").agg(seen=pl.len())
    rows = runs.join(kinds, on=["pid", "layer"], how="inner").join(
        seen, on=["pid", "span", "layer", "name"], how="left"
    )
    rows = rows.with_columns(pl.col("seen").fill_null(0))
    per_run = (pl.col("seen") / pl.col("runs")).max().over("pid", "layer", "name")
    return int(rows.with_columns(most=per_run * pl.col("runs")).select((pl.col("most") - pl.col("seen")).sum()).item())
