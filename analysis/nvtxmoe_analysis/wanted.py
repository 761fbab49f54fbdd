"""The cells and steps that a whole capture has."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.facts import ReportFacts


def wanted_cells(report: ReportFacts) -> pl.DataFrame:
    """``pid``, ``rank``, ``step``, ``layer``: each layer of its process for each numbered step that has tokens.

    A step whose payload is lost is taken to have some. Layers are those that moe.meta names or any counts have.
    """
    told = {(pid, layer) for pid, meta in report.metas.items() for layer in meta.layers}
    seen = {(int(pid), int(layer)) for pid, layer in report.events.counts.cells.select("pid", "layer").unique().rows()}
    layers = pl.DataFrame(sorted(told | seen), schema={"pid": pl.Int64, "layer": pl.Int64}, orient="row")
    steps = with_tokens(report.steps).filter(pl.col("step").is_not_null())
    return steps.select("pid", "rank", "step").unique().join(layers, on="pid", how="inner")


def with_tokens(steps: pl.DataFrame) -> pl.DataFrame:
    """The steps that scheduled tokens, or may have: their payload is lost."""
    return steps.filter(pl.col("num_tokens").fill_null(1) > 0)


def first_cells(cells: pl.DataFrame, number: int = 3) -> list[str]:
    """The first few of some cells, for people."""
    frame = cells.select("rank", "step", "layer").sort("rank", "step", "layer").head(number)
    return [f"rank {rank} step {step} layer {layer}" for rank, step, layer in frame.rows()]
