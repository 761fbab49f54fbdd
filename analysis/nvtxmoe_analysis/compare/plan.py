"""Which steps are compared with which, and the draws that all measurements share.

Steps are compared with steps of their own kind and of about their number of tokens. Ranks and layers of a step are
drawn together, so that what they have in common is not taken for independent evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

import numpy as np
import polars as pl

from nvtxmoe_analysis.compare.runs import KINDS, Run
from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.stats.block_bootstrap import draws
from nvtxmoe_analysis.stats.block_length import Dependence, autocovariance, cut, dependence

T = TypeVar("T")

#: With fewer blocks in either run, nothing is said about significance.
LEAST_BLOCKS = 6
#: Blocks of a run at most. Longer blocks cost nothing but time: so many say all that is to be said.
MOST_BLOCKS = 512
#: Steps that a class of token numbers must have in each run to be compared.
LEAST_STEPS = 3


@dataclass(frozen=True)
class Kind:
    """The steps of one kind in both runs; pairs are (A, B).

    Attributes:
        steps: number of distinct steps.
        length: steps a block of each run.
        enlarged: by what the variance between blocks is multiplied, for what blocks of that length do not have.
        block: ``step``, ``block`` of each run.
        weights: how often each block is drawn, float64 [resamples, blocks].
        classes: of token numbers, as ``token_class`` has them, with enough steps in both runs; each with the mean
            number of tokens of its steps.
        matched: number of steps in these classes.
        tokens: tokens of all its steps on all ranks.
    """

    name: str
    steps: tuple[int, int]
    length: tuple[int, int]
    enlarged: tuple[float, float]
    block: tuple[pl.DataFrame, pl.DataFrame]
    weights: tuple[Floats, Floats]
    classes: Mapping[int, float]
    matched: tuple[int, int]
    tokens: tuple[int, int]

    @property
    def blocks(self) -> tuple[int, int]:
        """Number of blocks of each run."""
        return self.weights[0].shape[1], self.weights[1].shape[1]

    @property
    def silent(self) -> str | None:
        """Why nothing can be said about significance; None where it can."""
        for name, steps, blocks in zip("AB", self.steps, self.blocks, strict=True):
            if steps < LEAST_BLOCKS:
                return f"{name} has only {steps} {self.name} steps"
            if blocks < LEAST_BLOCKS:
                return (
                    f"the {steps} {self.name} steps of {name} are so alike to their neighbours that they count as "
                    f"{blocks} independent stretches"
                )
        return None


def token_class() -> pl.Expr:
    """Octaves of the number of tokens: 1, 2 to 3, 4 to 7, 8 to 15, ... as 0, 1, 2, 3."""
    return pl.col("num_tokens").cast(pl.Float64).log(2.0).add(1e-9).floor().cast(pl.Int64).alias("token_class")


def plan(a: Run, b: Run, random: np.random.Generator, resamples: int) -> list[Kind]:
    """The kinds of step that both runs have."""
    sides = a, b
    steps = [side.steps.with_columns(token_class()) for side in sides]
    out = []
    for name in KINDS:
        mine = [frame.filter(pl.col("step_kind") == name) for frame in steps]
        if any(frame.is_empty() for frame in mine):
            continue
        numbers = [frame["step"].unique().sort() for frame in mine]
        found = [one for side in sides for one in _dependence(side, name)]
        least = max((one.length for one in found), default=1)
        length = _pair(max(least, ceil(len(number) / MOST_BLOCKS)) for number in numbers)
        blocks = [cut(len(number), one) for number, one in zip(numbers, length, strict=True)]
        classes = _classes(mine)
        out.append(
            Kind(
                name=name,
                steps=(len(numbers[0]), len(numbers[1])),
                length=length,
                enlarged=_pair(1.0 / (1.0 - max((d.missing(one) for d in found), default=0.0)) for one in length),
                block=_pair(pl.DataFrame({"step": n, "block": c}) for n, c in zip(numbers, blocks, strict=True)),
                weights=_pair(draws(random, int(c[-1]) + 1, resamples) for c in blocks),
                classes=classes,
                matched=_pair(f.filter(pl.col("token_class").is_in(list(classes)))["step"].n_unique() for f in mine),
                tokens=_pair(int(frame["num_tokens"].sum()) for frame in mine),
            )
        )
    return out


def _pair(values: Iterable[T]) -> tuple[T, T]:
    one, other = values
    return one, other


def _classes(sides: list[pl.DataFrame]) -> dict[int, float]:
    """See ``Kind.classes``. Where each run has one number of tokens, but not the same, nothing tells what the number
    does, and the class is left out.
    """
    tokens = pl.col("num_tokens")
    of_each = [
        frame.group_by("token_class").agg(
            pl.col("step").n_unique().alias("steps"), tokens.min().alias("least"), tokens.max().alias("most")
        )
        for frame in sides
    ]
    both = (
        of_each[0]
        .join(of_each[1], on="token_class", suffix="_b")
        .filter(
            pl.min_horizontal("steps", "steps_b") >= LEAST_STEPS,
            (pl.col("least") < pl.col("most"))
            | (pl.col("least_b") < pl.col("most_b"))
            | (pl.col("least") == pl.col("least_b")),
        )
    )
    means = pl.concat(sides).group_by("token_class").agg(tokens.mean())
    return dict(both.join(means, on="token_class").sort("token_class").select("token_class", "num_tokens").rows())


def _dependence(side: Run, kind: str) -> list[Dependence]:
    """What the run's own series say: its times, its imbalance, its routing."""
    out = []
    if side.times is not None:
        times = side.times.filter(pl.col("step_kind") == kind)
        out.append(_of_figure(times.with_columns(y=pl.col("kernel_time_ns").cast(pl.Float64))))
    counts = side.counts.filter(pl.col("step_kind") == kind)
    out.append(_of_figure(counts.with_columns(y=max_mean_ratio())))
    steps = counts["step"].n_unique()
    routing = []
    for (layer,), cells in counts.group_by("layer_idx"):
        numbered = cells.with_columns(block=pl.col("step").rank("dense").cast(pl.Int64) - 1)
        by_step = summed(numbered, cells["step"].n_unique(), side.experts[int(str(layer))][0])
        if len(by_step) == steps:
            mean = by_step.sum(axis=0) / by_step.sum()
            off = by_step - by_step.sum(axis=1, keepdims=True) * mean
            routing.append(autocovariance(off / np.sqrt(np.maximum(mean, 1.0 / by_step.sum()))))
    return [*out, *([dependence(routing, steps)] if routing else [])]


def max_mean_ratio() -> pl.Expr:
    """Of the counts of a cell, over all experts."""
    return pl.col("counts").list.max() / pl.col("counts").list.mean()


def _of_figure(cells: pl.DataFrame) -> Dependence:
    """Of the mean of ``y`` over the cells of a step, less what its number of tokens explains within its class: that is
    how the runs are compared too.
    """
    steps = cells.group_by("step").agg(pl.col("y").mean(), pl.col("num_tokens").max()).sort("step")
    x = pl.col("num_tokens").cast(pl.Float64)
    centred = steps.with_columns(token_class()).with_columns(
        x=x - x.mean().over("token_class"), y=pl.col("y") - pl.col("y").mean().over("token_class")
    )
    x, y = pl.col("x"), pl.col("y")
    slope = (x * y).sum().over("token_class") / (x * x).sum().over("token_class")
    rest = centred.select(y - pl.when(slope.is_finite()).then(slope * x).otherwise(0.0)).to_series().to_numpy()
    return dependence([autocovariance(rest[:, None])], len(rest))


def summed(cells: pl.DataFrame, blocks: int, width: int) -> Floats:
    """Counts summed by ``block``, float64 [blocks, width]. Sums up to 2^53 are exact."""
    matrix = cells["counts"].list.to_array(width).to_numpy()
    block = cells["block"].to_numpy()
    order = np.argsort(block, kind="stable")
    there, first = np.unique(block[order], return_index=True)
    out = np.zeros((blocks, width))
    out[there] = np.add.reduceat(matrix[order].astype(np.float64), first, axis=0)
    return out
