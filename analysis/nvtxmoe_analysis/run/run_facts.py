"""The facts of all captures of one run, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.events.tables import CountTable, PairTable
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.facts.selection import Selection, select_counts
from nvtxmoe_analysis.ingest.task import Failure
from nvtxmoe_analysis.run.lost_steps import LostSteps, lost_steps
from nvtxmoe_analysis.run.parallel_groups import rank_groups
from nvtxmoe_analysis.run.routing import Routing, combine, once_a_group, totals
from nvtxmoe_analysis.run.row_order import Order, order_of
from nvtxmoe_analysis.run.same_run import refuse_several_runs

#: Capacity factors that are always looked at.
CAPACITY_FACTORS = (1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class RunFacts:
    """The facts of all captures of one run.

    Attributes:
        reports: the facts of each input.
        routing: counts with tensor-parallel copies once.
        kernels: ``rank``, ``layer_idx`` (null: outside layers), ``phase``, ``kernel_name``, ``launched_by``, ``count``,
            ``total_ns``, ``mean_ns``, ``min_ns``, ``max_ns``.
        origin_ns: start of the first captured step, in unix time where every report has a clock, else in the
            report's own time.
        aligned: whether the reports' clocks could be put on one axis.
        options: what the analysis was asked, for the validation file.
        capacity_factors: those of moe_capacity.
        failed: reports that could not be read.
    """

    reports: tuple[CaptureFacts, ...]
    selection: Selection
    routing: Routing
    kernels: pl.DataFrame
    origin_ns: int
    aligned: bool
    options: dict[str, object] = field(default_factory=dict)
    capacity_factors: tuple[float, ...] = CAPACITY_FACTORS
    failed: tuple[Failure, ...] = ()

    @property
    def direct(self) -> bool:
        """Whether direct mode recorded it: see ``CaptureFacts.direct``. Exports and sessions are never mixed."""
        return all(report.direct for report in self.reports)

    @cached_property
    def layers(self) -> pl.DataFrame:
        """(rank, step, layer) rows of all that was captured, by KEY and ``gpu_start_ns``: see
        ``layer_rows.layer_rows``."""
        return self.row_order.together([report.layers for report in self.reports])

    @cached_property
    def row_order(self) -> Order:
        """The order in which rows of all reports stand in tables."""
        return order_of([report.layers for report in self.reports])

    @cached_property
    def physical(self) -> CountTable:
        """moe.physical inside the selection, each cell once, as ``routing.counts``: what EPLB's replicas served."""
        tables = []
        for report in self.reports:
            tables.append(select_counts(report.events.physical, report.steps, self.selection))
        return once_a_group(tables, [report.metas for report in self.reports])

    @cached_property
    def features(self) -> pl.DataFrame:
        """``CaptureFacts.features`` of the chosen counts."""
        return self.routing.order.together([report.features for report in self.reports])

    @cached_property
    def totals(self) -> dict[int, npt.NDArray[np.int64]]:
        """Assignments by layer and expert."""
        return totals(self.routing.counts, self.routing.experts)

    @cached_property
    def steps(self) -> pl.DataFrame:
        """Kept steps of all reports: ``report``, ``rank``, ``step``, ``start``, token counts, ``timestamp_ns``."""
        origin = self.origin_ns if self.aligned else pl.col("at_ns").min().over("report")
        steps = _all_steps(self.reports, self.aligned).with_columns(timestamp_ns=pl.col("at_ns") - origin)
        return steps if steps["kept"].all() else steps.filter("kept")

    @cached_property
    def collectives(self) -> pl.DataFrame:
        """Collective kernels of all reports, in the order in which each report has them.

        Columns: ``report`` (position in ``reports``) and those of ``CaptureFacts.collectives``.
        """
        return pl.concat(
            [
                report.collectives.select(pl.lit(i, pl.Int64).alias("report"), pl.all())
                for i, report in enumerate(self.reports)
            ]
        )

    @cached_property
    def lost_steps(self) -> LostSteps:
        """Steps that ranks of the whole capture must have and lack."""
        return lost_steps(self.reports)

    @cached_property
    def rank_groups(self) -> dict[str, pl.DataFrame]:
        """Which ranks of the whole capture work together: see ``rank_groups.rank_groups``."""
        return rank_groups(meta for report in self.reports for meta in report.metas.values())

    @property
    def several_ranks(self) -> bool:
        """Whether ranks that work together were captured, so that they can be compared."""
        return any(len(frame) > frame["group"].n_unique() for frame in self.rank_groups.values())

    @cached_property
    def pairs(self) -> tuple[PairTable, ...]:
        """Exact co-selection, where it was captured; a table a report."""
        return tuple(report.events.pairs for report in self.reports)


def merge(reports: Sequence[CaptureFacts], selection: Selection, options: dict[str, object]) -> RunFacts:
    """Put the facts of all reports together, in the order of their ranks: that of the inputs says nothing.

    Raises:
        NvtxmoeError: the reports are not of one run, or sessions of direct mode have no step.
    """
    reports = sorted(reports, key=_lowest_rank)
    refuse_several_runs(reports)
    _refuse_no_steps(reports)
    _refuse_empty(reports, selection)
    aligned = all(report.epoch_ns is not None for report in reports) or len(reports) == 1
    steps = _all_steps(reports, aligned)
    routing = combine([r.counts for r in reports], [r.topk for r in reports], [r.metas for r in reports])
    return RunFacts(
        reports=tuple(_on_one_matrix(reports, routing)),
        selection=selection,
        routing=routing,
        kernels=_merged_kernels(reports),
        origin_ns=int(steps["at_ns"].min() or 0),  # type: ignore[arg-type]
        aligned=aligned,
        options=options,
    )


def _lowest_rank(report: CaptureFacts) -> tuple[bool, int]:
    ranks = [meta.rank for meta in report.metas.values()]
    ranks += report.steps["rank"].drop_nulls().to_list() if not ranks else []
    return not ranks, min(ranks, default=0)


def _on_one_matrix(reports: Sequence[CaptureFacts], routing: Routing) -> list[CaptureFacts]:
    """The reports with their counts as parts of all counts, so that whoever drops the given ones has them once."""
    changed, start = list(reports), 0
    for at in routing.order.reports if routing.order.rows is None else ():
        report = reports[at]
        end = start + len(report.counts)
        matrix = routing.counts.matrix[start:end, : report.counts.matrix.shape[1]]
        counts = CountTable(report.counts.cells, matrix)
        events = replace(report.events, counts=counts) if report.events.counts is report.counts else report.events
        changed[at], start = replace(report, counts=counts, events=events), end
    return changed


def _refuse_no_steps(reports: Sequence[CaptureFacts]) -> None:
    """Raise when sessions hold nothing to merge; of an export a check says so."""
    if all(report.direct and report.steps.is_empty() for report in reports):
        journals = sum(len(report.events.journals) for report in reports)
        raise NvtxmoeError(
            f"no step in {number(journals, 'journal')}: nothing was scheduled",
            where=reports[0].source,
            remedy="Send requests to the engine while it records",
        )


def _refuse_empty(reports: Sequence[CaptureFacts], selection: Selection) -> None:
    """Raise when the filters leave nothing of a capture that holds something."""
    any_kept = any(report.steps["kept"].any() or len(report.counts) for report in reports)
    layers = {n for r in reports for m in r.metas.values() for n in m.layers}
    layers |= {n for r in reports for n in r.events.counts.cells["layer"].unique().to_list()}
    if selection.layers is not None and layers and not layers & selection.layers:
        any_kept = False
    if any_kept or not selection.active:
        return
    steps = pl.concat([report.steps.select("rank", "step") for report in reports]).drop_nulls()
    if steps.is_empty():
        return
    ranks = ", ".join(map(str, steps["rank"].unique().sort().to_list()))
    numbers = steps["step"].sort().to_list()
    raise NvtxmoeError(
        f"the filters keep nothing: captured are steps {numbers[0]} to {numbers[-1]} of "
        f"{'rank' if ',' not in ranks else 'ranks'} {ranks}, layers {', '.join(map(str, sorted(layers)))}",
        remedy="Widen --steps, --skip-first, --only, --layers or --ranks",
    )


def _all_steps(reports: Sequence[CaptureFacts], aligned: bool) -> pl.DataFrame:
    frames = [
        report.steps.with_columns(
            report=pl.lit(i, pl.Int64),
            at_ns=pl.col("start") + (report.epoch_ns or 0 if aligned and len(reports) > 1 else 0),
        )
        for i, report in enumerate(reports)
    ]
    return pl.concat(frames)


def _merged_kernels(reports: Sequence[CaptureFacts]) -> pl.DataFrame:
    by = ["rank", "layer_idx", "phase", "kernel_name", "launched_by"]
    return (
        pl.concat([report.kernels for report in reports])
        .group_by(by)
        .agg(pl.col("count").sum(), pl.col("total_ns").sum(), pl.col("min_ns").min(), pl.col("max_ns").max())
        .with_columns(mean_ns=pl.col("total_ns") / pl.col("count"))
        .select(*by, "count", "total_ns", "mean_ns", "min_ns", "max_ns")
        .sort(
            ["rank", "layer_idx", "total_ns", *by[2:]],
            descending=[False, False, True, False, False, False],
            nulls_last=True,
        )
    )
