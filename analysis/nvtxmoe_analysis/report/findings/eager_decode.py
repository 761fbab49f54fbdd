"""Finding: decode steps are launched kernel by kernel, and the GPU idles between the launches."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.report.finding import COST, NOTE, Finding, NextStep, Stake
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import SourcedNumber, percent, total
from nvtxmoe_analysis.report.sentences import sentence
from nvtxmoe_analysis.report.steady import CORRELATION, EAGER, STEP

ID = "eager-decode"
ORDER = 3
MEANING = (
    "Decode steps do not replay CUDA graphs: graphs are off, or a batch has no graph. At stake: the time in which the "
    "GPU idles between the first and the last MoE layer of such a step, spread over all decode steps. The share is of "
    "GPU time and this idle time."
)

TIMINGS = "layer_timings"
COLUMNS = ("gpu_start_ns", "gpu_end_ns")


def find(ledger: Ledger) -> list[Finding]:
    """Return what the GPU idles in eager decode steps."""
    steady = ledger.steady
    timings = ledger.source.frame(TIMINGS, COLUMNS)
    if steady is None or timings is None or steady.kind != "decode" or ledger.step_time is None:
        return []
    eager = steady.numbers if steady.eager else steady.left_out[EAGER]
    if not eager:
        return []
    decode = steady.numbers | eager
    idle = _idle(ledger, timings, eager, decode)
    step_and_idle = total(ledger.step_time, idle)
    at_stake = Stake(idle, percent(idle, step_and_idle))
    if steady.eager:
        text = "No decode step replays a CUDA graph, and the GPU idles {} per decode step between launches, {} of it."
        headline = sentence(text, idle, at_stake.share)
        action = "Turn CUDA graphs on: remove --enforce-eager, and do not set cudagraph_mode to NONE."
        command = """vllm serve MODEL --compilation-config '{"cudagraph_mode": "FULL_AND_PIECEWISE"}'"""
    else:
        text = "{} of {} decode steps do not replay a CUDA graph: {} of idle GPU per decode step, {} of it."
        headline = sentence(text, len(eager), len(decode), idle, at_stake.share)
        action = "Capture graphs for the batches that have none: compare the steps' num_tokens with the captured sizes."
        command = "vllm serve MODEL --max-num-seqs N --cudagraph-capture-sizes 1 2 4 8 16 ... N"
    expected = sentence("launched_by is graph in decode, and a step takes up to {} less.", idle)
    confidence = sentence(
        "measured, and a lower bound of idle time: work of a step before its first and after its last MoE layer counts "
        "as if it lay between them."
    )
    kind = COST if at_stake.matters else NOTE
    # Without idle time there is nothing to win.
    next_step = NextStep("use CUDA graphs", action, expected, command) if idle.value else None
    return [Finding("Eager decode", headline, [], confidence, kind, None, at_stake, next_step, in_moe=False)]


def _idle(ledger: Ledger, timings: pl.DataFrame, eager: frozenset[int], decode: frozenset[int]) -> SourcedNumber:
    """Return the idle time of eager steps, over all decode steps."""
    rows = timings.filter(pl.col("step").is_in(eager))
    extent = rows.group_by(STEP).agg(extent=pl.col("gpu_end_ns").max() - pl.col("gpu_start_ns").min())
    times = ledger.source.loaded.frame(CORRELATION).select(*STEP, "step_gpu_ns")
    all_steps = times.filter(pl.col("step").is_in(decode)).unique(list(STEP))
    idle = extent.join(all_steps, on=STEP).select((pl.col("extent") - pl.col("step_gpu_ns")).clip(0))
    return ledger.of_steps(
        float(idle.to_series().sum()) / len(all_steps),
        TIMINGS,
        "gpu_end_ns",
        "idle",
        rows=len(rows),
        over=len(all_steps),
        steps=eager,
        in_words=f"{len(eager):,} eager decode steps",
    )
