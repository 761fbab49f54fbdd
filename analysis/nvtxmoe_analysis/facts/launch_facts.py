"""What the checks need of the launches in steps: how many a step has, and those that lost GPU work."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class LaunchFacts:
    """Launches inside steps (``Launches.in_steps``) of one export, summed by step.

    Attributes:
        by_step: one row a step that has any: ``step_row``, ``pid``, ``rank``, ``step``, ``launches``,
            ``graph_launches``, ``whole`` (Boolean: none of them lost work).
        lost: launches without GPU work, and graph launches that gave less than another of their graph: ``rank``,
            ``step``, ``step_row``, ``name``, ``start`` (ns), ``is_graph``, ``has_work``, ``partial`` (Boolean).
    """

    by_step: pl.DataFrame
    lost: pl.DataFrame

    @property
    def number(self) -> int:
        """Launches in steps."""
        return int(self.by_step["launches"].sum())

    @property
    def graphs(self) -> int:
        """Graph launches in steps."""
        return int(self.by_step["graph_launches"].sum())


def launch_facts(launches: pl.DataFrame, steps: pl.DataFrame) -> LaunchFacts:
    """Sum launches by step.

    Parameters:
        launches: the columns of ``Launches.in_steps``, and ``partial``.
        steps: ``step_row``, ``pid``, ``rank``, ``step``.
    """
    loses = ~pl.col("has_work") | pl.col("partial")
    by_step = (
        launches.group_by("step_row", maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("launches"),
            pl.col("is_graph").sum().cast(pl.Int64).alias("graph_launches"),
            (~loses.any()).alias("whole"),
        )
        .join(steps, on="step_row", how="left", maintain_order="left")
        .select("step_row", "pid", "rank", "step", "launches", "graph_launches", "whole")
    )
    lost = launches.filter(loses).join(steps, on="step_row", how="left", maintain_order="left")
    columns = ("rank", "step", "step_row", "name", "start", "is_graph", "has_work", "partial")
    return LaunchFacts(by_step, lost.select(columns))
