"""Each token chose exactly top_k experts."""

from __future__ import annotations

import numpy as np
import polars as pl

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 120
EXPORTS_ONLY = False

NAME = "counts_sum"


def check(results: RunMetrics) -> Check:
    """Counts (logical and physical) sum to num_tokens x top_k."""
    cells = wrong = 0
    example = ""
    for report in results.reports:
        for event, table in (("moe.counts", report.events.counts), ("moe.physical", report.events.physical)):
            total = table.matrix.sum(axis=1, dtype=np.int64)
            expected = (table.cells["num_tokens"] * table.cells["top_k"]).to_numpy()
            bad = np.flatnonzero(total != expected)
            cells += len(table)
            wrong += len(bad)
            if len(bad) and not example:
                row = table.cells.with_columns(pl.Series("total", total)).row(int(bad[0]), named=True)
                example = (
                    f"{event} of rank {row['rank']} step {row['step']} layer {row['layer']} sums to {row['total']}, "
                    f"not {row['num_tokens']} tokens x {row['top_k']}"
                )
    if wrong:
        return failed(NAME, f"{wrong:,} of {cells:,} counts have a wrong sum: {example}.", cells=cells, wrong=wrong)
    if not cells:
        return not_applicable(NAME, "No counts in the capture.", cells=0, wrong=0)
    return passed(NAME, f"All {cells:,} counts sum to tokens x top_k.", cells=cells, wrong=0)
