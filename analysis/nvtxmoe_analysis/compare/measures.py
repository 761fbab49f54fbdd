"""What is compared: each metric's figures in both runs, their difference, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from nvtxmoe_analysis.compare import tables
from nvtxmoe_analysis.compare.matched_means import Means, like_means, token_means
from nvtxmoe_analysis.compare.plan import Kind
from nvtxmoe_analysis.compare.runs import KEY, Run
from nvtxmoe_analysis.compare.step_moves import Uncertainty, drift_reason, in_time_order, uncertainty
from nvtxmoe_analysis.compare.tables import ALL, finished
from nvtxmoe_analysis.core.arrays import Floats

Cells = Callable[[Run], "pl.DataFrame | None"]

#: The place of all layers together among the layers.
ALL_LAYERS = 0


@dataclass(frozen=True)
class Metric:
    """A figure of a step.

    Attributes:
        name: as --fail-if and the files have it.
        unit: of its values.
        says: what it is, for people.
        cells: of a run ``rank``, ``step``, ``step_kind``, ``num_tokens``, ``layer_idx`` and ``y``; None where the run
            has none.
        whole: how a step's layers make the figure of all: ``sum`` or ``mean``; None where layers have none of their
            own.
        per_token: of the sum over steps a token, not of a step.
    """

    name: str
    unit: str
    says: str
    cells: Cells
    whole: str | None
    per_token: bool = False


def _time(column: str) -> Cells:
    def cells(side: Run) -> pl.DataFrame | None:
        return None if side.times is None else side.times.select(*_CELL, pl.col(column).alias("y")).drop_nulls("y")

    return cells


def _step_time(side: Run) -> pl.DataFrame | None:
    if side.times is None:
        return None
    steps = side.times.unique(KEY, keep="first", maintain_order=True)
    return steps.select(*_CELL, pl.col("step_gpu_ns").alias("y")).drop_nulls("y")


def _imbalance(side: Run) -> pl.DataFrame:
    """Maximum over mean of the counts of each cell, over all experts."""
    return side.counts.select(*_CELL, (pl.col("counts").list.max() / pl.col("counts").list.mean()).alias("y"))


_CELL = (*KEY, "step_kind", "num_tokens", "layer_idx")

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("kernel_time", "ns", "kernel time of MoE layers a step on a rank", _time("kernel_time_ns"), "sum"),
        Metric("kernel_time_per_token", "ns", "the same over tokens", _time("kernel_time_ns"), "sum", per_token=True),
        Metric("own_time", "ns", "kernel time of MoE layers without collective kernels", _time("own_ns"), "sum"),
        Metric("step_time", "ns", "GPU time of whole steps on a rank", _step_time, None),
        Metric("imbalance", "ratio", "max/mean of a step's counts over experts", _imbalance, "mean"),
    )
}


def measure(
    metric: Metric, runs: tuple[Run, Run], kinds: Sequence[Kind], layers: Sequence[int], confidence: float
) -> pl.DataFrame:
    """One metric of all layers together and of each, over all kinds of step and of each: ``tables.METRICS``.

    Differences are B's less A's. ``p_adjusted`` is Holm's over the layers of a kind; that of all layers is their own.
    Where a run has nothing of the metric in a kind of step that both have, no row.
    """
    cells = [metric.cells(side) for side in runs]
    a, b = cells
    if a is None or b is None or a.is_empty() or b.is_empty():
        return pl.DataFrame(schema=tables.METRICS)
    numbers = {layer: i for i, layer in enumerate(layers, start=1)} if metric.whole else {}
    prepared = [_prepared(metric, frame, numbers) for frame in (a, b)]
    means = token_means if metric.per_token else like_means
    by_kind: dict[str, Means] = {}
    for kind in kinds:
        of_kind = (prepared[0].filter(step_kind=kind.name), prepared[1].filter(step_kind=kind.name))
        if not of_kind[0].is_empty() and not of_kind[1].is_empty():
            by_kind[kind.name] = means(kind, of_kind, len(numbers) + 1)
    if not by_kind:
        return pl.DataFrame(schema=tables.METRICS)
    sure = [name for name, means in by_kind.items() if means.kind.silent is None]
    estimates = {name: _estimates([means], confidence) for name, means in by_kind.items()}
    kinds_of_mean = [by_kind[name] for name in sure or by_kind]
    # Of one kind, all steps are those of this kind.
    of_all = estimates[kinds_of_mean[0].kind.name] if len(kinds_of_mean) == 1 else _estimates(kinds_of_mean, confidence)
    out = [_rows(metric, ALL, kinds_of_mean, of_all, numbers, confidence)]
    out += [_rows(metric, name, [means], estimates[name], numbers, confidence) for name, means in by_kind.items()]
    return pl.concat(out)


def _prepared(metric: Metric, cells: pl.DataFrame, numbers: Mapping[int, int]) -> pl.DataFrame:
    """With ``layer``: the place of each layer, and rows of all layers together."""
    y = pl.col("y").cast(pl.Float64)
    if metric.whole is None:
        return cells.with_columns(y, layer=pl.lit(ALL_LAYERS, pl.Int64))
    of_step = y.sum() if metric.whole == "sum" else y.mean()
    all_layers = cells.group_by(*KEY, "step_kind", maintain_order=True).agg(pl.col("num_tokens").max(), of_step)
    names = ("step", "step_kind", "num_tokens", "layer", "y")
    each = cells.with_columns(y, layer=pl.col("layer_idx").replace_strict(dict(numbers), return_dtype=pl.Int64))
    return pl.concat([all_layers.with_columns(layer=pl.lit(ALL_LAYERS, pl.Int64)).select(names), each.select(names)])


@dataclass(frozen=True)
class _Figures:
    """Numbers by column of the table, float64 [1 + layers], and how sure they are; None where nothing tells."""

    columns: Mapping[str, Floats]
    relative: Uncertainty | None


def _estimates(kinds: Sequence[Means], confidence: float) -> _Figures:
    """Of the steps of these kinds together."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mass: Floats = np.sum([means.mass for means in kinds], axis=0)
        a, b = (np.sum([means.value[run] for means in kinds], axis=0) / mass for run in (0, 1))
        ratio = np.log(b / a)
    ratio = np.where(np.isfinite(ratio), ratio, np.nan)
    columns: dict[str, Floats] = {"value_a": a, "value_b": b, "difference": b - a}
    columns["change_pct"] = 100.0 * np.expm1(ratio)
    if not kinds or any(means.kind.silent is not None for means in kinds):
        return _Figures(columns, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        absolute = uncertainty(_moves(kinds, (1.0 / mass, 1.0 / mass)))
        relative = uncertainty(_moves(kinds, (1.0 / (mass * a), 1.0 / (mass * b))))
    undecided = relative.undecided
    half, half_log = (
        np.where(undecided, np.nan, uncertainty.half_width(confidence)) for uncertainty in (absolute, relative)
    )
    columns |= {
        "ci_low": b - a - half,
        "ci_high": b - a + half,
        "change_pct_ci_low": 100.0 * np.expm1(ratio - half_log),
        "change_pct_ci_high": 100.0 * np.expm1(ratio + half_log),
        "p_value": np.where(undecided, np.nan, relative.p_value(ratio)),
    }
    return _Figures(columns, relative)


def _rows(
    metric: Metric,
    name: str,
    kinds: Sequence[Means],
    estimates: _Figures,
    numbers: Mapping[int, int],
    confidence: float,
) -> pl.DataFrame:
    """A row of all layers together and one of each; where a number is missing, with the reason."""
    difference, relative = estimates.columns["difference"], estimates.relative
    reasons: list[str | None] = [None] * len(difference)
    if relative is not None:
        steps = (sum(means.kind.steps[0] for means in kinds), sum(means.kind.steps[1] for means in kinds))
        for i in np.flatnonzero(relative.undecided):
            reasons[i] = drift_reason(metric.name, name, steps, (relative.drift[0][i], relative.drift[1][i]))
    silent = next((means.kind.silent for means in kinds if means.kind.silent is not None), None)
    nothing = f"no {' or '.join(means.kind.name for means in kinds)} steps with like numbers of tokens in both runs"
    reasons = [silent or (nothing if gone else why) for gone, why in zip(np.isnan(difference), reasons, strict=True)]
    same = {"metric": metric.name, "unit": metric.unit, "step_kind": name}
    return finished(estimates.columns, tables.METRICS, list(numbers), reasons, 1.0 - confidence, **same)


def _moves(kinds: Sequence[Means], scale: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """How much each step of each run moves the scaled difference over all these kinds, in the order of the steps."""
    clean = (np.where(np.isfinite(scale[0]), scale[0], 0.0), np.where(np.isfinite(scale[1]), scale[1], 0.0))
    by_kind = [means.moves(clean) for means in kinds]
    a, b = (
        in_time_order([means.kind.numbers[run] for means in kinds], [moves[run] for moves in by_kind]) for run in (0, 1)
    )
    return a, b
