"""Divide the time of the experts' matrix products per step: ideal, further active experts, tile padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.metrics.waterfall.matmul_model import PER_EXPERT, PER_ROW, MatmulModel, fit

#: Experts of one size: the layers that are fitted together.
SHAPE = ("expert_bytes", "weights", "local_experts", "top_k")
STEP = ("group", "step")
#: Bars that the model divides the products' time into.
BARS = ("ideal", "further_experts", "padding")
#: What stands for a model of all kinds of steps.
ALL_KINDS = "all kinds of steps"
NO_COUNTS = "what the rank's experts got is unknown"
NO_PRODUCT = "no kernel of the phase experts is known to multiply by experts' weights"
NO_TILES = "the rows of a tile are unknown"
TOGETHER = "rows of tiles and active experts rise together in these steps, so time per row counts as time per expert"


@dataclass(frozen=True)
class MatmulBars:
    """Bars of the matrix products.

    Attributes:
        frame: a row per (group, step) that a model covers: ``ideal_ns``, ``further_experts_ns``, ``padding_ns`` (null
            where the rows of a tile are unknown), each with ``_low_ns`` and ``_high_ns``, of Float64.
        reasons: why a bar is unknown or uncertain, by bar and kind of step.
        models: by kind of step and number of the shape.
    """

    frame: pl.DataFrame
    reasons: Mapping[tuple[str, str | None], str]
    models: Mapping[tuple[str | None, int], MatmulModel | str]


def matmul_bars(cells: pl.DataFrame) -> MatmulBars:
    """Fit the models and divide.

    Parameters:
        cells: STEP, ``step_kind``, SHAPE, ``matmul_ns``, ``routed_rows``, ``local_active_experts``, ``kernel_tokens``,
            ``tile_rows``.
    """
    reasons: dict[tuple[str, str | None], str] = {}
    models: dict[tuple[str | None, int], MatmulModel | str] = {}
    known = cells.filter(
        pl.col("matmul_ns").is_not_null() & pl.col("routed_rows").is_not_null() & (pl.col("kernel_tokens") > 0)
    ).with_columns(shape=pl.struct(SHAPE).rank("dense").cast(pl.Int64))
    for kind in cells["step_kind"].unique().sort(nulls_last=True):
        of_kind = cells.filter(pl.col("step_kind").eq_missing(kind))
        for bar in BARS:
            if of_kind["matmul_ns"].null_count() == len(of_kind):
                reasons[bar, kind] = NO_PRODUCT
            elif of_kind["routed_rows"].null_count() == len(of_kind):
                reasons[bar, kind] = NO_COUNTS
    parts = [
        _divided(part, kind, shape, known, models, reasons)
        for (kind, shape), part in known.group_by("step_kind", "shape", maintain_order=True)
    ]
    fitted = [part for part in parts if part is not None]
    columns = [f"{bar}{end}_ns" for bar in BARS for end in ("", "_low", "_high")]
    empty = pl.DataFrame(schema=dict.fromkeys(STEP, pl.Int64) | dict.fromkeys(columns, pl.Float64))
    frame = pl.concat([empty, *fitted]).group_by(STEP).agg(_added(column) for column in columns).sort(STEP)
    return MatmulBars(frame, reasons, models)


def _added(column: str) -> pl.Expr:
    """Return the sum of what is known; null where nothing is."""
    return pl.when(pl.col(column).count() > 0).then(pl.col(column).sum()).alias(column)


def _divided(
    part: pl.DataFrame,
    kind: str | None,
    shape: int,
    known: pl.DataFrame,
    models: dict[tuple[str | None, int], MatmulModel | str],
    reasons: dict[tuple[str, str | None], str],
) -> pl.DataFrame | None:
    """Return the bars of cells of one kind of step and shape; None where no model was fitted."""
    model = models[kind, shape] = _fitted(part)
    if isinstance(model, str):
        refused = f"not fitted to {kind} steps: {model}"
        if (ALL_KINDS, shape) not in models:
            models[ALL_KINDS, shape] = _fitted(known.filter(pl.col("shape") == shape))
        model = models[ALL_KINDS, shape]
        for bar in BARS:
            reasons[bar, kind] = refused if isinstance(model, str) else f"{refused}; fitted to all kinds together"
    if isinstance(model, str):
        return None
    tiles_known = part["tile_rows"].null_count() == 0
    if not tiles_known:
        reasons["padding", kind] = NO_TILES
    elif not model.told_apart:
        for bar in BARS:
            reasons[bar, kind] = TOGETHER
    return _bars(part, model, tiles_known=tiles_known)


def _fitted(part: pl.DataFrame) -> MatmulModel | str:
    tiles = part["tile_rows"]
    return fit(
        part["matmul_ns"].to_numpy(),
        part["local_active_experts"].to_numpy(),
        None if tiles.null_count() else tiles.to_numpy(),
        part["step"].to_numpy(),
    )


def _bars(part: pl.DataFrame, model: MatmulModel, *, tiles_known: bool) -> pl.DataFrame:
    """Return the bars by step.

    Each bar is linear in sums over the step's cells. Where rows of tiles are not told apart from experts, the
    interval also holds what the bar is if all that grows with the experts grew with the rows.
    """
    experts, rows = pl.col("local_active_experts"), pl.col("routed_rows")
    fewest = pl.min_horizontal((rows + pl.col("kernel_tokens") - 1) // pl.col("kernel_tokens"), experts)
    tile_rows = pl.col("tile_rows").fill_null(rows) if tiles_known else rows
    sums = (
        part.group_by(STEP, maintain_order=True)
        .agg(
            cells=pl.len().cast(pl.Int64),
            fewest=fewest.sum(),
            experts=experts.sum(),
            rows=rows.sum(),
            tile_rows=tile_rows.sum(),
        )
        .sort(STEP)
    )
    cells, least, used, routed, routed_tile_rows = (
        sums[name].to_numpy().astype(np.float64) for name in ("cells", "fewest", "experts", "rows", "tile_rows")
    )
    zero = np.zeros(len(sums))
    weights = {
        "ideal": np.column_stack([cells, least, routed]),
        "further_experts": np.column_stack([zero, used - least, zero]),
        "padding": np.column_stack([zero, zero, routed_tile_rows - routed]),
    }
    by_row = model.values.copy()
    ambiguous = tiles_known and not model.told_apart and routed_tile_rows.sum() > 0
    if ambiguous:
        by_row[PER_ROW] += by_row[PER_EXPERT] * used.sum() / routed_tile_rows.sum()
        by_row[PER_EXPERT] = 0.0
    columns: dict[str, Floats | pl.Series] = {}
    for bar, weight in weights.items():
        value, half = weight @ model.values, model.half_width(weight)
        other = weight @ by_row if ambiguous else value
        if bar == "padding" and not tiles_known:
            columns |= {
                f"{bar}{end}_ns": pl.repeat(None, len(sums), dtype=pl.Float64, eager=True)
                for end in ("", "_low", "_high")
            }
            continue
        columns[f"{bar}_ns"] = value
        columns[f"{bar}_low_ns"] = np.maximum(np.minimum(value - half, other), 0.0)
        columns[f"{bar}_high_ns"] = np.maximum(value + half, other)
    return sums.select(*STEP).with_columns(**{name: pl.Series(value) for name, value in columns.items()})
