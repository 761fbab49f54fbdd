"""Metrics and tables of a run without its files: for tests that look at one table or the verdict."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from nvtxmoe_analysis.core.progress import Progress
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.ingest.ingest import ingest
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.outputs.registry import table_builders
from nvtxmoe_analysis.run.run_facts import merge


def metrics_of(*inputs: Path, selection: Selection | None = None) -> RunMetrics:
    """The run as ``analyze`` reads it; a table is computed when it is asked for."""
    chosen = selection or Selection()
    reports, failed = ingest(inputs, chosen, progress=Progress())
    return RunMetrics.of(merge(reports, chosen, {}), failed=tuple(failed))


def table_of(stem: str, *inputs: Path, selection: Selection | None = None) -> pl.DataFrame:
    """The table that ``analyze`` writes to the file of that stem."""
    return table_builders()[stem](metrics_of(*inputs, selection=selection))
