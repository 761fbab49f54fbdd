"""No two ranks that count as having tokens of their own counted the very same tokens."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.run.parallel_groups import data_parallel_size
from nvtxmoe_analysis.run.routing import once_a_group

ORDER = 34
EXPORTS_ONLY = False

NAME = "copies_counted_once"
#: Steps with equal counts from which on chance is ruled out.
FEWEST_STEPS = 8


def check(results: RunMetrics) -> Check:
    """Ranks that hold the same layers, and are neither tensor- nor data-parallel as moe.meta says, have other counts.

    If all their counts are equal over FEWEST_STEPS steps or more, they saw the same tokens: tp_size is wrong, and the
    tables contain each token more than once.
    """
    metas = [meta for report in results.reports for meta in report.metas.values()]
    unexplained = any(meta.world_size > meta.tp_size and data_parallel_size(meta) == 1 for meta in metas)
    groups = {meta.tp_group for meta in metas}
    if not unexplained or len(groups) < 2:
        return not_applicable(NAME, "moe.meta explains which ranks share tokens.", groups=len(groups), equal=0)
    table = once_a_group([r.events.counts for r in results.reports], [r.metas for r in results.reports])
    digest = pl.DataFrame({f"e{i}": column for i, column in enumerate(table.matrix.T)}).hash_rows()
    cells = table.cells.select("step", "layer", "group").with_columns(digest=digest)
    pairs = (
        cells.join(cells, on=["step", "layer"], suffix="_other")
        .filter(pl.col("group") < pl.col("group_other"))
        .group_by("group", "group_other")
        .agg(
            steps=pl.col("step").n_unique(),
            cells=pl.len(),
            same=(pl.col("digest") == pl.col("digest_other")).all(),
        )
    )
    same = pairs.filter(pl.col("same"), pl.col("steps") >= FEWEST_STEPS).sort("group", "group_other")
    if len(same):
        first, other, _, number, _ = same.row(0)
        ranks = {group: min(meta.rank for meta in metas if meta.tp_group == group) for group in groups}
        return failed(
            NAME,
            f"All {number:,} counts of ranks {ranks.get(first, first)} and {ranks.get(other, other)} are equal, but "
            "moe.meta has them in different tensor-parallel groups: their tokens are counted more than once.",
            groups=len(groups),
            equal=len(same),
        )
    return passed(NAME, "Ranks with tokens of their own have counts of their own.", groups=len(groups), equal=0)
