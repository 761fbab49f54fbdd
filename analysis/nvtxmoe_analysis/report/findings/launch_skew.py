"""Finding: ranks reach the first collective of a step at different times."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.report.commands import export_perfetto
from nvtxmoe_analysis.report.finding import COST, Finding, NextStep, stake
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import SourcedNumber, difference
from nvtxmoe_analysis.report.selected import some_layers
from nvtxmoe_analysis.report.sentences import Sentence, sentence
from nvtxmoe_analysis.report.steady import STEP

ID = "launch-skew"
ORDER = 4
MEANING = (
    "Ranks wait in the first collective of a step, where they meet after launching it. At stake: that waiting, of the "
    "mean rank. It is consistent with launches that come late on one host process, and with uneven work before the "
    "MoE layers."
)

TABLE = "collectives"
COLUMNS = ("layer_idx", "start_ns", "wait_ns", "last_rank")


def find(ledger: Ledger) -> list[Finding]:
    """Return what ranks wait in the first collective of a steady step, which is unknown if layers were filtered out."""
    frame = ledger.source.frame(TABLE, COLUMNS)
    if frame is None or ledger.steady is None or ledger.step_time is None or some_layers(ledger):
        return []
    rows = frame.filter(pl.col("step").is_in(ledger.steady.numbers))
    first = rows.filter(pl.col("start_ns") == pl.col("start_ns").min().over(STEP)).drop_nulls("wait_ns")
    if first.is_empty():
        return []
    over = ledger.steady.rank_steps
    value = float(first["wait_ns"].sum()) / over
    wait = ledger.of_steps(value, TABLE, "wait_ns", "first_of_step", rows=len(first), over=over)
    own_part = _of_own_time(ledger, first)
    wait = wait if own_part is None else difference(wait, own_part)
    at_stake = stake(wait, ledger.step_time)
    if not at_stake.matters:
        return []
    text = "Ranks wait {} per {}{}, {}, in its first collective: they come to it at different times."
    headline = sentence(text, wait, ledger.steady.noun, ledger.of_mean_rank, at_stake.share)
    last = first.unique("step")["last_rank"].value_counts(sort=True)
    rank, times = last.row(0)
    details = [sentence("Rank {} comes last in {} of {} steps.", str(rank), times, first["step"].n_unique())]
    details += _of_ranks(ledger, first)
    expected = sentence("ranks reach that collective together, and a step of the mean rank takes {} less.", wait)
    next_step = NextStep(
        "launch ranks together",
        f"Look at what rank {rank}'s process does before it launches a step: it comes last most often. Give each "
        "process CPU cores of its own, "
        "and check that --async-scheduling is on.",
        expected,
        export_perfetto(ledger.source),
    )
    confidence = sentence("measured: start and end of each rank's kernel on one clock. Why a rank is late is not.")
    return [
        Finding("Launch skew", headline, details, confidence, COST, "stragglers", at_stake, next_step, in_moe=False)
    ]


def _of_ranks(ledger: Ledger, first: pl.DataFrame) -> list[Sentence]:
    """Return what the rank that waits longest there waits per step, and the one that waits least."""
    waits = (
        first.drop_nulls("rank").group_by("rank").agg(pl.col("wait_ns").sum(), over=pl.len()).sort(["wait_ns", "rank"])
    )
    if len(waits) < 2:
        return []
    numbers = [
        ledger.of_steps(ns / over, TABLE, "wait_ns", "first_of_step", where={"rank": rank}, rows=over, over=over)
        for rank, ns, over in waits.iter_rows()
    ]
    latest_rank, least = str(waits["rank"][-1]), str(waits["rank"][0])
    text = "Rank {} waits {} there per step, and rank {} waits {}."
    return [sentence(text, latest_rank, numbers[-1], least, numbers[0])]


def _of_own_time(ledger: Ledger, first: pl.DataFrame) -> SourcedNumber | None:
    """Return what ranks wait there because their own times in the layer before it differ; None if no layer is."""
    layers = first["layer_idx"].unique().to_list()
    if len(layers) != 1 or layers[0] is None or ledger.source.frame("straggler", ["excess_ns"]) is None:
        return None
    excess = ledger.per_step("straggler", "excess_ns", where={"layer_idx": layers[0]}, by=("group", "step"))
    return excess if excess.value > 0 else None
