"""Which steps, layers and ranks an analysis looks at."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl


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
        kept: pl.Series = steps.with_columns(keep=keep.fill_null(False))["keep"]
        return kept

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
