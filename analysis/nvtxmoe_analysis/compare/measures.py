"""What is compared: each metric's figures in both runs, their difference, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from nvtxmoe_analysis.compare import tables
from nvtxmoe_analysis.compare.matched_means import Mean, like_means, token_means
from nvtxmoe_analysis.compare.plan import Kind, max_mean_ratio
from nvtxmoe_analysis.compare.runs import KEY, Run
from nvtxmoe_analysis.compare.tables import ALL, finished
from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.stats.block_bootstrap import Part, spread

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
    return side.counts.select(*_CELL, max_mean_ratio().alias("y"))


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
    metric: Metric, sides: tuple[Run, Run], kinds: Sequence[Kind], layers: Sequence[int], confidence: float
) -> pl.DataFrame:
    """One metric of all layers together and of each, over all kinds of step and of each: ``tables.METRICS``.

    Differences are B's less A's. ``p_adjusted`` is Holm's over the layers of a kind; that of all layers is their own.
    Where a run has nothing of the metric, no row.
    """
    cells = [metric.cells(side) for side in sides]
    a, b = cells
    if a is None or b is None or a.is_empty() or b.is_empty():
        return pl.DataFrame(schema=tables.METRICS)
    numbers = {layer: i for i, layer in enumerate(layers, start=1)} if metric.whole else {}
    prepared = [_prepared(metric, frame, numbers) for frame in (a, b)]
    means = token_means if metric.per_token else like_means
    by_kind: dict[str, tuple[Kind, Mean, Mean]] = {}
    for kind in kinds:
        mine = (prepared[0].filter(step_kind=kind.name), prepared[1].filter(step_kind=kind.name))
        if not mine[0].is_empty() and not mine[1].is_empty():
            by_kind[kind.name] = (kind, *means(kind, mine, len(numbers) + 1))
    sure = [name for name, (kind, *_) in by_kind.items() if kind.silent is None]
    out = [_rows(metric, ALL, [by_kind[name] for name in sure or by_kind], numbers, confidence)]
    out += [_rows(metric, name, [found], numbers, confidence) for name, found in by_kind.items()]
    return pl.concat(out)


def _prepared(metric: Metric, cells: pl.DataFrame, numbers: Mapping[int, int]) -> pl.DataFrame:
    """With ``layer``: the place of each layer, and rows of all layers together."""
    y = pl.col("y").cast(pl.Float64)
    if metric.whole is None:
        return cells.with_columns(y, layer=pl.lit(ALL_LAYERS, pl.Int64))
    of_step = y.sum() if metric.whole == "sum" else y.mean()
    whole = cells.group_by(*KEY, "step_kind").agg(pl.col("num_tokens").max(), of_step)
    names = ("step", "step_kind", "num_tokens", "layer", "y")
    each = cells.with_columns(y, layer=pl.col("layer_idx").replace_strict(dict(numbers), return_dtype=pl.Int64))
    return pl.concat([whole.with_columns(layer=pl.lit(ALL_LAYERS, pl.Int64)).select(names), each.select(names)])


def _rows(
    metric: Metric,
    name: str,
    kinds: Sequence[tuple[Kind, Mean, Mean]],
    numbers: Mapping[int, int],
    confidence: float,
) -> pl.DataFrame:
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (_over_kinds([whole for _, whole, _ in kinds], run) for run in (0, 1))
        drawn = [_over_kinds([again for *_, again in kinds], run) for run in (0, 1)]
        ratio, ratios = np.log(other / one), np.log(drawn[1] / drawn[0])
    ratio, ratios = np.where(np.isfinite(ratio), ratio, np.nan), np.where(np.isfinite(ratios), ratios, np.nan)
    reason = next((kind.silent for kind, *_ in kinds if kind.silent is not None), None)
    columns: dict[str, Floats] = {"value_a": one, "value_b": other, "difference": other - one}
    columns["change_pct"] = 100.0 * np.expm1(ratio)
    if reason is None and kinds:
        absolute = spread(drawn[1] - drawn[0], _parts(kinds, None)).half_width(confidence)
        relative = spread(ratios, _parts(kinds, (one, other)))
        half = relative.half_width(confidence)
        columns |= {
            "ci_low": other - one - absolute,
            "ci_high": other - one + absolute,
            "change_pct_ci_low": 100.0 * np.expm1(ratio - half),
            "change_pct_ci_high": 100.0 * np.expm1(ratio + half),
            "p_value": relative.p_value(ratio),
        }
    nothing = f"no {' or '.join(kind.name for kind, *_ in kinds)} steps with like numbers of tokens in both runs"
    said = [reason or (nothing if gone else None) for gone in np.isnan(other - one)]
    alpha = 1.0 - confidence
    same = {"metric": metric.name, "unit": metric.unit, "step_kind": name}
    return finished(columns, tables.METRICS, list(numbers), said, alpha, **same)


def _over_kinds(means: Sequence[Mean], run: int) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        total: Floats = np.sum([mean.value[run] for mean in means], axis=0)
        mass: Floats = np.sum([mean.mass for mean in means], axis=0)
        return total / mass


def _parts(kinds: Sequence[tuple[Kind, Mean, Mean]], levels: tuple[Floats, Floats] | None) -> list[Part]:
    """The parts of a difference, or with both runs' levels of a logarithm of a quotient, to first order."""
    mass: Floats = np.sum([again.mass for *_, again in kinds], axis=0)
    out = []
    for kind, _, again in kinds:
        for run in (0, 1):
            with np.errstate(divide="ignore", invalid="ignore"):
                moved = again.value[run] / mass
                out.append(Part(kind.blocks[run], kind.enlarged[run], moved if levels is None else moved / levels[run]))
    return out
