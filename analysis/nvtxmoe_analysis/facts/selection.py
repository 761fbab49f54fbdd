"""Which steps, layers and ranks an analysis looks at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from nvtxmoe_analysis.events.decode import Events
from nvtxmoe_analysis.events.tables import CountTable, TopkTable


@dataclass(frozen=True)
class Selection:
    """Filters of ``analyze``. They narrow the tables; the checks look at the whole capture all the same.

    Attributes:
        first_step, last_step: step numbers, both inclusive.
        skip_first: leave out this many captured steps of every rank.
        only: ``prefill`` (steps with prefill tokens alone), ``decode`` (with decode tokens alone), or ``mixed``.
        layers, ranks: numbers to keep.
    """

    first_step: int | None = None
    last_step: int | None = None
    skip_first: int = 0
    only: str | None = None
    layers: frozenset[int] | None = None
    ranks: frozenset[int] | None = None

    @property
    def active(self) -> bool:
        """Whether anything is left out at all."""
        return self != Selection()

    @property
    def narrows_steps(self) -> bool:
        """Whether steps are left out."""
        return bool(self.skip_first or self.only or self.first_step is not None or self.last_step is not None)

    @property
    def narrows_work(self) -> bool:
        """Whether work outside layers is left out: of steps or ranks."""
        return self.narrows_steps or self.ranks is not None

    def describe(self) -> dict[str, object]:
        """The filters in force, for the validation file."""
        return {
            "first_step": self.first_step,
            "last_step": self.last_step,
            "skip_first": self.skip_first,
            "only": self.only,
            "layers": None if self.layers is None else sorted(self.layers),
            "ranks": None if self.ranks is None else sorted(self.ranks),
        }

    def of_steps(self, steps: pl.DataFrame) -> pl.Series:
        """Boolean for every row of ``steps`` (``rank``, ``step``, ``start``, ``prefill_tokens``, ``decode_tokens``)."""
        keep = pl.lit(True)
        if self.ranks is not None:
            keep &= pl.col("rank").is_in(list(self.ranks))
        if self.first_step is not None:
            keep &= pl.col("step") >= self.first_step
        if self.last_step is not None:
            keep &= pl.col("step") <= self.last_step
        if self.skip_first:
            keep &= pl.col("start").rank("ordinal").over("pid") > self.skip_first
        prefill, decode = pl.col("prefill_tokens") > 0, pl.col("decode_tokens") > 0
        if self.only == "prefill":
            keep &= prefill & ~decode
        elif self.only == "decode":
            keep &= decode & ~prefill
        elif self.only == "mixed":
            keep &= prefill & decode
        keep_steps: pl.Series = steps.with_columns(keep=keep.fill_null(False))["keep"]
        return keep_steps

    def of_cells(self, cells: pl.DataFrame, kept_steps: pl.DataFrame) -> pl.Series:
        """Positions (Int64) of the cells kept.

        Parameters:
            cells: ``pid``, ``rank``, ``step``, ``layer``.
            kept_steps: ``pid``, ``step`` of the steps kept.
        """
        frame = cells.select("pid", "rank", "step", "layer").with_row_index("at")
        if self.layers is not None:
            frame = frame.filter(pl.col("layer").is_in(list(self.layers)))
        if self.ranks is not None:
            frame = frame.filter(pl.col("rank").is_in(list(self.ranks)))
        if self.narrows_steps:
            frame = frame.join(
                kept_steps.select("pid", "step").unique(), on=["pid", "step"], how="semi", maintain_order="left"
            )
        at: pl.Series = frame["at"].cast(pl.Int64)
        return at


def select_operations(in_layer: pl.DataFrame, steps: pl.DataFrame, selection: Selection) -> pl.DataFrame:
    """Operations inside the selection."""
    if selection.layers is not None:
        in_layer = in_layer.filter(pl.col("layer").is_in(list(selection.layers)))
    if not steps["kept"].all():
        in_layer = in_layer.filter(steps["kept"].gather(in_layer["step_row"]))
    return in_layer


def marked(collectives: pl.DataFrame, steps: pl.DataFrame, selection: Selection) -> pl.DataFrame:
    """Operations with ``kept``: whether they are inside the selection."""
    in_layers = pl.lit(True) if selection.layers is None else pl.col("layer").is_in(list(selection.layers))
    return collectives.with_columns(kept=in_layers & steps["kept"].gather(collectives["step_row"]))


def without_step(cells: pl.DataFrame, steps: pl.DataFrame) -> pl.Series:
    """Boolean per row of ``cells`` (``pid``, ``step``): whether its process has steps, but none of that number.

    False for a process with a step whose number is lost: it may be the one.
    """
    numbered = steps.group_by("pid").agg(pl.col("step").is_not_null().all()).filter("step")["pid"].to_list()
    known = steps.select("pid", "step").unique().with_columns(known=pl.lit(True))
    joined = cells.select("pid", "step").join(known, on=["pid", "step"], how="left", maintain_order="left")
    return joined.select(pl.col("known").is_null() & pl.col("pid").is_in(numbered)).to_series()


def select_counts(counts: CountTable, steps: pl.DataFrame, selection: Selection) -> CountTable:
    """Counts of captured steps inside the selection; the very table where nothing is left out."""
    alone = without_step(counts.cells, steps)
    if alone.any():
        counts = counts.take((~alone).arg_true().cast(pl.Int64))
    if not selection.active:
        return counts
    return counts.take(selection.of_cells(counts.cells, steps.filter("kept")))


def select_topk(events: Events, steps: pl.DataFrame, selection: Selection) -> TopkTable:
    """Sampled tokens of captured steps inside the selection, their runs with ``rank``."""
    known = pl.col("pid").replace_strict(ranks_of(events, steps), default=None, return_dtype=pl.Int64)
    topk = replace(events.topk, runs=events.topk.runs.with_columns(rank=known))
    alone = without_step(topk.runs, steps)
    if alone.any():
        topk = topk.take((~alone).arg_true().cast(pl.Int64))
    if not selection.active:
        return topk
    return topk.take(selection.of_cells(topk.runs, steps.filter("kept")))


def ranks_of(events: Events, steps: pl.DataFrame) -> dict[int, int]:
    """Rank by process, where an event has none itself: its moe.meta tells, else its steps or counts."""
    ranks = {pid: meta.rank for pid, meta in events.metas.items()}
    for cells in (steps, events.counts.cells):
        by_pid = cells.drop_nulls("rank").unique("pid", keep="first")
        ranks |= dict(zip(by_pid["pid"].to_list(), by_pid["rank"].to_list(), strict=True))
    return ranks
