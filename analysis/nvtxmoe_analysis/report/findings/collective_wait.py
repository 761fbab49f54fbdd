"""Finding: ranks wait in collectives, for reasons other than late launches, uneven loads and slow GPUs."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.report.commands import export_perfetto
from nvtxmoe_analysis.report.finding import COST, WEAK, Finding, NextStep, stake
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import difference, total
from nvtxmoe_analysis.report.sentences import Sentence, sentence
from nvtxmoe_analysis.report.steady import CORRELATION, STEP
from nvtxmoe_analysis.report.trust import processes
from nvtxmoe_analysis.report.waterfall_bars import bar

ID = "collective-wait"
ORDER = 5
MEANING = (
    "Ranks wait for one another in collectives after the first of a step, longer than uneven loads and slow GPUs "
    "explain. At stake: that waiting, of the mean rank. It is consistent with uneven attention or with launches that "
    "come late."
)

TOPIC = "Waiting in collectives"
TABLE = "collectives"
#: Columns that tell collectives apart.
COLLECTIVE = ("step", "layer_idx", "kernel_name", "ordinal", "phase", "group_kind", "group")
FIRST = "launch-skew"


def find(ledger: Ledger) -> list[Finding]:
    """Return the waiting that no other finding explains; of collectives that could not be split, their time."""
    frame = ledger.source.frame(TABLE, ["wait_ns", "reason"], rows=False)
    if ledger.steady is None or ledger.step_time is None:
        return []
    rows = None if frame is None else frame.filter(pl.col("step").is_in(ledger.steady.numbers))
    if frame is None or rows is None or not rows["wait_ns"].count():
        return _not_split(ledger)
    wait = ledger.per_step(TABLE, "wait_ns")
    explained = [number for name in ("uneven_ranks", "unequal_speed") if (number := bar(ledger, name)) is not None]
    explained += [
        finding.stake.per_step for finding in ledger.findings if finding.id == FIRST and finding.stake is not None
    ]
    remaining = difference(wait, total(*explained)) if explained else wait
    at_stake = stake(remaining, ledger.step_time)
    if not at_stake.matters:
        return []
    text = "Ranks wait {} per {}{}, {}, in collectives after the first, for reasons other than their loads and speeds."
    headline = sentence(text, remaining, ledger.steady.noun, ledger.of_mean_rank, at_stake.share)
    details = [sentence("In all, ranks wait {} per step{} in collectives.", wait, ledger.of_mean_rank)]
    details += _of_ranks(ledger, rows)
    details += _last(rows)
    if any(process.get("eplb") for process in processes(ledger.source.document("validation"))):
        details.append(sentence("EPLB moves experts between ranks in this run; its collectives may be among them."))
    expected = sentence("up to {} less per step of the mean rank.", remaining)
    action = (
        f"Look at what rank {_last_rank(rows)[0]} runs before these collectives, in which it begins last most often: "
        "attention of longer requests, or a gap between launches."
    )
    next_step = NextStep("look at the last rank", action, expected, export_perfetto(ledger.source))
    confidence = sentence("waiting is measured, the part of loads and speeds is estimated.")
    return [
        Finding(
            "Waiting in collectives",
            headline,
            details,
            confidence,
            COST,
            "stragglers",
            at_stake,
            next_step,
            in_moe=False,
        )
    ]


def _last(rows: pl.DataFrame) -> list[Sentence]:
    """Return which rank begins last most often, of the collectives that were split; the lowest of equal ones."""
    rank, times, collectives = _last_rank(rows)
    text = "Rank {} begins last most often: in {} of {} collectives that could be split."
    return [sentence(text, str(rank), f"{times:,}", f"{collectives:,}")]


def _last_rank(rows: pl.DataFrame) -> tuple[int, int, int]:
    """Return the rank that begins last most often, in how many collectives, and of how many."""
    collectives = rows.drop_nulls("last_rank").unique(list(COLLECTIVE))
    rank, times = collectives["last_rank"].value_counts().sort(["count", "last_rank"], descending=[True, False]).row(0)
    return int(rank), int(times), len(collectives)


def _of_ranks(ledger: Ledger, rows: pl.DataFrame) -> list[Sentence]:
    """Return what the rank that waits longest waits per step, and the one that waits least."""
    assert ledger.steady is not None
    waits = rows.drop_nulls(["rank", "wait_ns"]).group_by("rank").agg(pl.col("wait_ns").sum()).sort(["wait_ns", "rank"])
    if len(waits) < 2:
        return []
    least, longest_rank = int(waits["rank"][0]), int(waits["rank"][-1])
    steps = ("step",)
    longest, shortest = (
        ledger.per_step(TABLE, "wait_ns", where={"rank": rank}, by=steps) for rank in (longest_rank, least)
    )
    return [
        sentence(
            "In all collectives rank {} waits {} per step, and rank {} waits {}.",
            str(longest_rank),
            longest,
            str(least),
            shortest,
        )
    ]


def _not_split(ledger: Ledger) -> list[Finding]:
    """Return the time of collectives, of which it is unknown how much is waiting."""
    columns = ["collective_ns", "step_collective_ns"]
    if ledger.step_time is None or ledger.source.frame(CORRELATION, columns) is None:
        return []
    time = total(ledger.per_step(CORRELATION, columns[0]), ledger.per_step(CORRELATION, columns[1], once=STEP))
    at_stake = stake(time, ledger.step_time)
    if not at_stake.matters:
        return []
    text = "Collectives take {} per step, {}; how much of that is waiting for other ranks cannot be told."
    reason = _reason(ledger)
    next_step = NextStep(
        "analyse all ranks",
        "Analyse the reports of all ranks together.",
        sentence("the time is divided into waiting and transfer."),
        "nvtxmoe analyze RANK0.nsys-rep RANK1.nsys-rep -o DIR --report",
    )
    headline = sentence(text, time, at_stake.share)
    return [Finding(TOPIC, headline, reason, None, WEAK, None, at_stake, next_step, in_moe=False)]


def _reason(ledger: Ledger) -> list[Sentence]:
    reason = ledger.source.document("straggler_document").get("reason")
    return [sentence("{}", str(reason))] if reason else []
