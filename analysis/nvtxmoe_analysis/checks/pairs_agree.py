"""Exact co-selection adds up to its tokens."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 144
EXPORTS_ONLY = False

NAME = "pairs_agree"


def check(results: RunMetrics) -> Check:
    """A token of top-k gives k(k-1)/2 pairs: those of a moe.pairs sum to that times its num_tokens.

    The table moe_expert_coselection does not use spans without a single pair: the sampled tokens serve.
    """
    spans = wrong = empty = 0
    first = ""
    for report in results.reports:
        top_k = {(pid, n): layer.top_k for pid, meta in report.metas.items() for n, layer in meta.layers.items()}
        for row, pairs in zip(report.events.pairs.spans.iter_rows(named=True), report.events.pairs.pairs, strict=True):
            k = top_k.get((row["pid"], row["layer"]))
            if k is None:
                continue
            spans += 1
            total, expected = int(pairs.sum(dtype="uint64")), row["num_tokens"] * (k * (k - 1) // 2)
            empty += expected > 0 and total == 0
            wrong += total != expected
            if total != expected and not first:
                first = (
                    f"layer {row['layer']} of rank {row['rank']}, steps {row['first_step']} to {row['last_step']}: "
                    f"{total:,} pairs, not {expected:,} ({row['num_tokens']:,} tokens, top-{k})"
                )
    evidence = {"spans": spans, "wrong": wrong, "empty": empty}
    if wrong:
        used = " Co-selection of their layers is that of the sampled tokens." if empty else ""
        return failed(NAME, f"{wrong:,} of {spans:,} moe.pairs have a wrong sum, the first {first}.{used}", **evidence)
    if not spans:
        return not_applicable(NAME, "No moe.pairs of a layer that moe.meta contains.", **evidence)
    return passed(NAME, f"{number(spans, 'span')} of moe.pairs add up to their tokens.", **evidence)
