"""From rows of moe_layer_correlation to what is fitted: one sample a layer and kind of step, and one of all layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from nvtxmoe_analysis.attribution.layer_sums import LAUNCHED_BY
from nvtxmoe_analysis.core import text
from nvtxmoe_analysis.core.arrays import Floats, Ints
from nvtxmoe_analysis.stats.huber import Strata
from nvtxmoe_analysis.stats.trend import trend_columns

KINDS = ("prefill", "decode", "mixed")

#: Features of a rank's own load, then those of how unevenly the cell's experts are loaded.
LOAD = ("local_activations", "local_active_experts", "local_expert_tiles", "local_max_count")
IMBALANCE = ("cv", "max_mean_ratio", "entropy_bits", "gini")
FEATURES = LOAD + IMBALANCE

#: Fewer are not fitted: simulated intervals are too narrow below (docs/explanation/models.md).
MIN_ROWS = 20
MIN_STEPS = 8
#: Steps are cut into so many blocks of neighbours: a block has ten steps at least where that leaves ten blocks.
MIN_BLOCKS, MOST_BLOCKS = 10, 20
STEPS_A_BLOCK = 10
#: More rows than these, of a layer and of all layers, are thinned; a stratum of all layers keeps ten on average.
MOST_ROWS, MOST_POOLED_ROWS, POOLED_IN_STRATUM = 1_000, 5_000, 10
#: Why a feature is refused.
NOT_KNOWN, NO_VARIATION, TWIN = "not known", "no variation", "moves exactly as"
WITH_TIME = "changes with time alone"
#: A stratum of one row says nothing of any slope.
MIN_IN_STRATUM = 2
#: Of the largest value: smaller differences are rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Sample:
    """The rows of one layer (None: of all) and one kind of step, sorted by stratum and step.

    A stratum is what has an intercept of its own: layer, rank and way of launch (eager, graph).

    Attributes:
        values: of FEATURES, [features, rows]; NaN where not known.
        y: the target, ns, [rows].
        steps: how many steps.
        reason: why nothing is fitted, None where it is.
        tokens: of each row's step, [rows], NaN where not known; None where no row tells.
        layers: of each row its layer, [rows], in the sample of all layers; else None.
    """

    layer: int | None
    kind: str
    values: Floats
    y: Floats
    strata: Strata
    steps: int
    reason: str | None
    tokens: Floats | None = None
    layers: Ints | None = None

    @property
    def rows(self) -> int:
        """How many."""
        return len(self.y)

    @cached_property
    def trend(self) -> Floats:
        """Orthonormal trend columns of the strata, [columns, rows]."""
        return trend_columns(self.strata)

    @cached_property
    def parts(self) -> list[Sample]:
        """The layers of a sample of all of them that have rows enough for a slope of their own, with its blocks."""
        if self.layers is None:
            return []
        starts = np.flatnonzero(np.append(True, self.layers[1:] != self.layers[:-1]))
        bounds = list(zip(starts.tolist(), [*starts[1:].tolist(), self.rows], strict=True))
        return [self._part(slice(*bound)) for bound in bounds if bound[1] - bound[0] >= MIN_STEPS]

    def _part(self, rows_of_layer: slice) -> Sample:
        assert self.layers is not None
        stratum = self.strata.stratum[rows_of_layer] - self.strata.stratum[rows_of_layer.start]
        strata = Strata(stratum, self.strata.block[rows_of_layer], int(stratum[-1]) + 1, self.strata.blocks)
        values, layer = np.ascontiguousarray(self.values[:, rows_of_layer]), int(self.layers[rows_of_layer.start])
        tokens = None if self.tokens is None else self.tokens[rows_of_layer]
        return Sample(layer, self.kind, values, self.y[rows_of_layer], strata, self.steps, None, tokens)


def samples(frame: pl.DataFrame, target: str) -> Iterator[Sample]:
    """The samples of each kind of step: of all layers, then layer by layer.

    Parameters:
        frame: ``rank``, ``step``, ``layer_idx``, ``step_kind``, ``launched_by``, the target and FEATURES;
            ``num_tokens`` where it is known. Rows in which the GPU did nothing are left out, and those of which no
            feature is known; a layer that has only such rows gives a sample without rows, with the reason.
    """
    timed = pl.all_horizontal(pl.col("rank", "step", "layer_idx", target).is_not_null())
    worked = (pl.col("launched_by") != "none") & timed
    known = pl.any_horizontal(pl.col(name).is_not_null() for name in FEATURES)
    for kind in KINDS:
        selected = worked & (pl.col("step_kind") == kind)
        samples_of_kind = list(
            _samples_of_kind(frame, frame.select(pl.arg_where(selected & known)).to_series(), kind, target)
        )
        have = {sample.layer for sample in samples_of_kind}
        layers = frame.select(pl.col("layer_idx").filter(selected))
        rows: dict[int | None, int] = {None: len(layers), **dict(layers.group_by("layer_idx").len().iter_rows())}
        samples_of_kind += [
            _unknown(layer, kind, count) for layer, count in rows.items() if count and layer not in have
        ]
        yield from sorted(samples_of_kind, key=lambda sample: -1 if sample.layer is None else sample.layer)


def _samples_of_kind(frame: pl.DataFrame, selected: pl.Series, kind: str, target: str) -> Iterator[Sample]:
    """Of all layers and of each, of the rows at these positions. Only what is fitted is taken out of the frame."""
    if selected.is_empty():
        return
    keys = frame[["layer_idx", "rank", "step", "launched_by"]][selected]
    columns = [*FEATURES, target, *(["num_tokens"] if "num_tokens" in frame.columns else [])]
    layer, rank, step = (keys[name].to_numpy() for name in ("layer_idx", "rank", "step"))
    launch = keys["launched_by"].cast(pl.Enum(LAUNCHED_BY)).to_physical().to_numpy()
    order = np.lexsort((step, launch, rank, layer))
    layer, step, at = layer[order], step[order], selected.to_numpy()[order]
    fresh = [np.append(False, key[1:] != key[:-1]) for key in (layer, rank[order], launch[order])]
    stratum = np.cumsum(np.any(fresh, axis=0))
    starts = np.flatnonzero(np.append(True, fresh[0][1:]))
    bounds = zip(starts, [*starts[1:], len(at)], strict=True)
    for number, part in [(None, slice(None)), *((int(layer[start]), slice(start, end)) for start, end in bounds)]:
        keep, lone = _rows_in_strata(stratum[part], step[part], number)
        rows = frame[columns][at[part][keep]].select(pl.all().cast(pl.Float64).fill_null(np.nan))
        values = np.array([rows[name].to_numpy() for name in FEATURES])
        tokens = rows["num_tokens"].to_numpy() if "num_tokens" in columns else None
        if tokens is not None and np.isnan(tokens).all():
            tokens = None
        layers = layer[part][keep] if number is None else None
        y, strata, steps = rows[target].to_numpy(), stratum[part][keep], step[part][keep]
        yield _sample(number, kind, values, y, strata, steps, lone, tokens, layers)


def _unknown(layer: int | None, kind: str, rows: int) -> Sample:
    """Of a layer whose routing is not known in any row."""
    none = np.zeros(0, dtype=np.int64)
    reason = f"the routing of none of its {text.number(rows, 'row')} is known"
    return Sample(layer, kind, np.zeros((len(FEATURES), 0)), np.zeros(0), Strata(none, none, 0, 0), 0, reason)


def make_sample(
    layer: int | None,
    kind: str,
    values: Floats,
    y: Floats,
    stratum: Ints,
    step: Ints,
    tokens: Floats | None = None,
) -> Sample:
    """Choose the rows that are fitted, and cut their steps into blocks.

    Parameters:
        values, y, stratum, step: of all rows, sorted by stratum and step; ``stratum`` may have any numbers.
    """
    keep, lone = _rows_in_strata(stratum, step, layer)
    kept_tokens = None if tokens is None else tokens[keep]
    return _sample(layer, kind, values[:, keep], y[keep], stratum[keep], step[keep], lone, kept_tokens)


def _sample(
    layer: int | None,
    kind: str,
    values: Floats,
    y: Floats,
    stratum: Ints,
    step: Ints,
    lone: int,
    tokens: Floats | None = None,
    layers: Ints | None = None,
) -> Sample:
    """The same of the rows that were chosen; so many were not, being alone in their stratum."""
    stratum = np.unique(stratum, return_inverse=True)[1]
    numbers, order = np.unique(step, return_inverse=True)
    steps = len(numbers)
    blocks = min(steps, int(np.clip(steps // STEPS_A_BLOCK, MIN_BLOCKS, MOST_BLOCKS)))
    reason = None
    if len(y) < MIN_ROWS or steps < MIN_STEPS:
        have = f"{text.number(len(y), 'row')} in {text.number(steps, 'step')}"
        if lone:
            have += f" ({lone:,} more without another row of the same rank and way of launch)"
        reason = f"{have}, at least {MIN_ROWS} rows and {MIN_STEPS} steps needed"
    elif layers is not None and np.unique(layers, return_counts=True)[1].max() < MIN_STEPS:
        reason = f"no layer has the {MIN_STEPS} rows that a slope of its own needs"
    strata = Strata(stratum, order * blocks // max(steps, 1), int(stratum.max(initial=-1)) + 1, blocks)
    return Sample(layer, kind, np.ascontiguousarray(values), y, strata, steps, reason, tokens, layers)


def _rows_in_strata(stratum: Ints, step: Ints, layer: int | None) -> tuple[Ints, int]:
    """Positions of rows of a layer (None: of all) that are fitted, and how many are not, being the only one of their
    stratum.

    Of too many rows every n-th step of a stratum is taken, each stratum beginning with another one: ranks that
    saw the same tokens then stand for different steps, so that nearly all steps are still there.
    """
    _, number, size = np.unique(stratum, return_inverse=True, return_counts=True)
    max_rows = max(MOST_POOLED_ROWS if layer is None else MOST_ROWS, POOLED_IN_STRATUM * len(size))
    every = -(-len(stratum) // max_rows)
    at = np.arange(len(stratum))
    if every > 1:
        order = np.unique(step, return_inverse=True)[1]
        at = at[(order + number) % every == 0]
        size = np.bincount(number[at], minlength=len(size))
    kept_rows = at[size[number[at]] >= MIN_IN_STRATUM]
    return kept_rows, len(at) - len(kept_rows)
