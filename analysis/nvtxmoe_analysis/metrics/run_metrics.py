"""The facts of a run with the tables computed from them, each once: what outputs and checks are built from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import polars as pl

from nvtxmoe_analysis.metrics.correlation import correlate
from nvtxmoe_analysis.metrics.cross_layer import CrossLayer, cross_layer
from nvtxmoe_analysis.metrics.layer_model.choice import Choice
from nvtxmoe_analysis.metrics.layer_model.choose import choose
from nvtxmoe_analysis.metrics.roofline.expert_sizes import expert_sizes
from nvtxmoe_analysis.metrics.roofline.peaks import PeakOptions
from nvtxmoe_analysis.metrics.roofline.rows import roofline, with_work
from nvtxmoe_analysis.metrics.roofline.work import expert_work
from nvtxmoe_analysis.metrics.straggler import stragglers
from nvtxmoe_analysis.metrics.wait_transfer import Split, split
from nvtxmoe_analysis.run.data_parallel import Sharing, sharing
from nvtxmoe_analysis.run.parallel_groups import EXPERT, distinct
from nvtxmoe_analysis.run.run_facts import RunFacts


@dataclass(frozen=True)
class RunMetrics(RunFacts):
    """The facts of a run, and the tables that several outputs share. A table is computed when it is first asked for.

    Attributes:
        peaks: the GPUs' peaks that the user gave.
    """

    peaks: PeakOptions = field(default_factory=PeakOptions)

    @classmethod
    def of(cls, facts: RunFacts, **changes: Any) -> RunMetrics:
        """Return the facts with metrics, and with other values of some fields."""
        return cls(**{field.name: getattr(facts, field.name) for field in fields(facts)} | changes)

    @cached_property
    def correlation(self) -> pl.DataFrame:
        """The rows of moe_layer_correlation."""
        return self.row_order.together(correlate(self.reports, self.sharing))

    @cached_property
    def sharing(self) -> Sharing | None:
        """The data-parallel ranks that share experts."""
        whole = None if self.selection.active else (self.routing.counts, self.physical)
        return sharing(self.reports, whole)

    @cached_property
    def expert_work(self) -> pl.DataFrame:
        """What the experts' kernels did and what their sizes are, in the order of ``correlation``: see
        ``roofline.rows.with_work``."""
        work = self.row_order.together(expert_work(self.reports, self.sharing))
        metas = [meta for report in self.reports for meta in report.metas.values()]
        return with_work(self.correlation, work, expert_sizes(metas, self.peaks))

    @cached_property
    def roofline(self) -> pl.DataFrame:
        """The rows of moe_roofline."""
        return roofline(self.expert_work)

    @cached_property
    def collective_split(self) -> Split:
        """Waiting and transfer of all collectives of the whole capture: those inside the selection are ``kept``."""
        epochs = [report.recorded_clock()[0] for report in self.reports]
        return split(self.collectives, distinct(self.rank_groups), epochs)

    @cached_property
    def stragglers(self) -> pl.DataFrame:
        """The rows of moe_straggler."""
        kept_kernels = self.collective_split.frame.lazy().filter("kept")
        return stragglers(self.correlation, self.rank_groups[EXPERT], kept_kernels)

    def prepare(self) -> None:
        """Compute what several outputs share, so that they can be built side by side."""
        _ = self.features, self.totals, self.steps
        with ThreadPoolExecutor(1, "nvtxmoe-cross-layer") as aside:
            paths = aside.submit(lambda: self.cross_layer)
            if not self.direct:
                _ = self.collectives, self.correlation, self.collective_split, self.models
                _ = self.roofline, self.stragglers
            paths.result()

    @cached_property
    def models(self) -> list[Choice]:
        """Which feature explains each layer's time."""
        return choose(self.correlation)

    @cached_property
    def cross_layer(self) -> CrossLayer:
        """How the layers' choices hang together, from the sampled tokens."""
        layers = {layer for report in self.reports for meta in report.metas.values() for layer in meta.layers}
        for report in self.reports:
            layers |= set(report.events.counts.cells["layer"].unique().to_list())
        return cross_layer(self.routing.topk, sorted(layers))
