"""Finding: how far the experts' kernels are from what the GPU can do, and which limit binds."""

from __future__ import annotations

from typing import Any

import polars as pl

from nvtxmoe_analysis.report.finding import COST, NOTE, UNSEEN, Finding, NextStep, stake
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import SourcedNumber, Where, difference, percent
from nvtxmoe_analysis.report.sentences import Sentence, sentence

ID = "far-from-peak"
ORDER = 9
MEANING = (
    "The experts' matrix products reach less than half of the limit that binds them (memory or compute). At stake: the "
    "time beyond that limit. If the experts' sizes are unknown, no time is at stake, and the finding comes last."
)

TOPIC = "Distance to the GPU's limits"
TABLE = "roofline_summary"
COLUMNS = (
    *("step_kind", "tokens_from", "tokens_to", "matmul_ns", "weight_gb_per_s", "weight_mbu_pct", "mbu_pct", "mfu_pct"),
    *("gb_per_s", "tflop_per_s", "limit", "roofline_pct", "padding_pct", "block_m_source"),
)
KINDS = ("decode", "prefill", "mixed")
#: The table of single rows, which steady steps are taken from.
ROWS = "roofline"
#: Below this share of the limit that binds, the kernels are far from it.
FAR_PCT = 50.0


def find(ledger: Ledger) -> list[Finding]:
    """Return the share of the roofline that steady steps reach, then the other kinds."""
    frame = ledger.source.frame(TABLE, COLUMNS)
    if frame is None:
        return []
    all_sizes = frame.filter(pl.col("tokens_to").is_null() & pl.col("step_kind").is_in(KINDS))
    known = all_sizes.filter(pl.col("roofline_pct").is_not_null()).sort(["matmul_ns", "step_kind"], descending=True)
    steady = _steady(ledger)
    if not known.is_empty() and steady is not None:
        return [_known(ledger, frame, known, *steady)]
    weights = all_sizes.filter(pl.col("weight_gb_per_s").is_not_null()).sort(
        ["matmul_ns", "step_kind"], descending=True
    )
    return [_weights(ledger, weights)] if len(weights) else []


def _steady(ledger: Ledger) -> tuple[SourcedNumber, SourcedNumber] | None:
    """Return the matrix products' time and their least time, per steady step; None if either is unknown."""
    rows = ledger.source.frame(ROWS, ["matmul_ns", "roofline_ns"])
    if rows is None or ledger.steady is None or ledger.step_time is None:
        return None
    steady_rows = rows.select("step", "matmul_ns", "roofline_ns").filter(pl.col("step").is_in(ledger.steady.numbers))
    if steady_rows["roofline_ns"].null_count() or not steady_rows["matmul_ns"].sum():
        return None
    return ledger.per_step(ROWS, "matmul_ns"), ledger.per_step(ROWS, "roofline_ns")


def _known(
    ledger: Ledger, frame: pl.DataFrame, known: pl.DataFrame, time: SourcedNumber, least: SourcedNumber
) -> Finding:
    """Return the finding where sizes and peaks are known."""
    assert ledger.steady is not None and ledger.step_time is not None
    kind = ledger.steady.kind
    of_kind = known.filter(step_kind=kind)
    limit = of_kind["limit"][0] if len(of_kind) else "the nearer limit"
    reached = percent(least, time)
    text = "The experts' matrix products take {} per {}; {} allows {}: they reach {} of that limit."
    headline = sentence(text, time, ledger.steady.noun, limit, least, reached)
    details = [*_binding(ledger, frame, kind), *_padding(ledger, known, kind)]
    for other in known["step_kind"].to_list():
        if other != kind:
            details += [_of_kind(ledger, known, other), *_binding(ledger, frame, other)]
    details.append(
        sentence(
            "Bytes and operations are the least that the routed rows need; rows that a CUDA graph pads are not counted."
        )
    )
    confidence = sentence("measured routing and kernel time against the data sheet's peaks ({}).", _peaks(ledger))
    beyond = difference(time, least)
    at_stake = stake(beyond, ledger.step_time)
    if reached.value >= FAR_PCT or not at_stake.matters:
        return Finding(TOPIC, headline, details, confidence, NOTE, "roofline")
    next_step = NextStep(
        "tune the kernel",
        "Tune the fused kernel for this shape and GPU with vLLM's benchmarks/kernels/benchmark_moe.py, serve with "
        "VLLM_TUNED_CONFIG_FOLDER set to what it writes, and compare MoE backends.",
        sentence("they reach more of the limit; at all of it a step takes {} less.", beyond),
        "python benchmarks/kernels/benchmark_moe.py --model MODEL --tune",
    )
    return Finding(TOPIC, headline, details, confidence, COST, "roofline", at_stake, next_step)


def _weights(ledger: Ledger, weights: pl.DataFrame) -> Finding:
    """Return what is known without sizes, the rate at which weights are read: no time is at stake."""
    kind = weights["step_kind"][0]
    rate = _rate(ledger, kind, "weight_gb_per_s", "GB/s")
    text = "How far the experts' kernels are from the GPU's limits is not known. In {} steps they read weights at {}"
    if weights["weight_mbu_pct"][0] is None:
        headline = sentence(text + ".", kind, rate)
    else:
        headline = sentence(text + ", {} of the GPU's bandwidth.", kind, rate, _number(ledger, kind, "weight_mbu_pct"))
    reasons = _reasons(ledger, "routed_flop", "activation_bytes") or ["not of every steady step"]
    details = [sentence("No time at stake can be given: the limit is unknown ({}).", "; ".join(reasons))]
    return Finding(TOPIC, headline, details, None, UNSEEN)


def _where(kind: str) -> Where:
    return {"step_kind": kind, "tokens_to": None}


def _number(ledger: Ledger, kind: str, column: str) -> SourcedNumber:
    return ledger.take(TABLE, column, where=_where(kind))


def _rate(ledger: Ledger, kind: str, column: str, unit: str) -> SourcedNumber:
    value = _number(ledger, kind, column).value
    text = f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.4f}"
    return ledger.take(TABLE, column, where=_where(kind), text=f"{text} {unit}")


def _of_kind(ledger: Ledger, known: pl.DataFrame, kind: str) -> Sentence:
    limit = known.filter(step_kind=kind)["limit"][0]
    text = (
        "In {} steps {} binds the experts' kernels, and they reach {} of that limit: {} ({} of the bandwidth), {} ({} "
    )
    return sentence(
        text + "of the throughput).",
        kind,
        limit,
        _number(ledger, kind, "roofline_pct"),
        _rate(ledger, kind, "gb_per_s", "GB/s"),
        _number(ledger, kind, "mbu_pct"),
        _rate(ledger, kind, "tflop_per_s", "TFLOP/s"),
        _number(ledger, kind, "mfu_pct"),
    )


def _binding(ledger: Ledger, frame: pl.DataFrame, kind: str) -> list[Sentence]:
    """Return up to which batch size memory binds, if both limits occur."""
    sizes = frame.filter(
        (pl.col("step_kind") == kind) & pl.col("tokens_to").is_not_null() & pl.col("limit").is_not_null()
    ).sort("tokens_to")
    limits = sizes["limit"].unique().to_list()
    if len(limits) < 2:
        return []
    memory = max(sizes.filter(limit="memory")["tokens_to"].to_list())
    compute = min(sizes.filter(limit="compute")["tokens_from"].to_list())
    text = "In {} steps memory binds in batches of up to {} tokens, compute in batches from {} on."
    largest = ledger.take(TABLE, "tokens_to", where={"step_kind": kind, "tokens_to": memory})
    least = ledger.take(TABLE, "tokens_from", where={"step_kind": kind, "tokens_from": compute})
    return [sentence(text, kind, largest, least)]


def _padding(ledger: Ledger, known: pl.DataFrame, kind: str) -> list[Sentence]:
    row = next(known.filter(step_kind=kind).iter_rows(named=True), None)
    if row is None or row["padding_pct"] is None:
        return []
    assumed = ", if the kernel has vLLM's default tiles" if row["block_m_source"] != "moe.meta" else ""
    if row["block_m_source"] == "kernel name":
        assumed = ""
    text = "{} of the rows of tiles are padding in {} steps{}."
    return [sentence(text, _number(ledger, kind, "padding_pct"), kind, assumed)]


def _document(ledger: Ledger) -> dict[str, Any]:
    return ledger.source.document("roofline_document")


def _peaks(ledger: Ledger) -> str:
    gpus = _document(ledger).get("gpus") or []
    return "; ".join(f"{gpu.get('name')}: {gpu.get('source')}" for gpu in gpus) or "source unknown"


def _reasons(ledger: Ledger, *columns: str) -> list[str]:
    unknown = _document(ledger).get("unknown") or []
    return [str(entry["meaning"]) for entry in unknown if entry.get("what") in columns]
