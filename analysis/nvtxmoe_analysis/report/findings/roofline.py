"""Finding: how far the experts' kernels are from what the GPU can do, and which limit binds."""

from __future__ import annotations

from typing import Any

import polars as pl

from nvtxmoe_analysis.report.finding import COST, NOTE, Finding, Headline
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import Sentence, SourcedNumber, Where, sentence

ORDER = 25

TABLE = "roofline_summary"
COLUMNS = (
    *("step_kind", "tokens_from", "tokens_to", "matmul_ns", "weight_gb_per_s", "weight_mbu_pct", "mbu_pct", "mfu_pct"),
    *("gb_per_s", "tflop_per_s", "limit", "roofline_pct", "padding_pct", "block_m_source"),
)
KINDS = ("decode", "prefill", "mixed")
#: Below this share of the time the GPU's limits explain little: kernels are too short to reach them.
FAR_PCT = 30.0


def find(ledger: Ledger) -> list[Finding]:
    """Return the share of the roofline that the kind of step with most time reaches, then the other kinds."""
    frame = ledger.source.frame(TABLE, COLUMNS)
    if frame is None:
        return []
    whole = frame.filter(pl.col("tokens_to").is_null() & pl.col("step_kind").is_in(KINDS))
    known = whole.filter(pl.col("roofline_pct").is_not_null()).sort(["matmul_ns", "step_kind"], descending=True)
    if not known.is_empty():
        return [_known(ledger, frame, known)]
    weights = whole.filter(pl.col("weight_gb_per_s").is_not_null()).sort(["matmul_ns", "step_kind"], descending=True)
    return [_weights(ledger, weights)] if len(weights) else []


def _known(ledger: Ledger, frame: pl.DataFrame, known: pl.DataFrame) -> Finding:
    """Return the finding where sizes and peaks are known."""
    first, *others = known["step_kind"].to_list()
    headline = sentence("{}", _of_kind(ledger, known, first))
    details = [_of_kind(ledger, known, kind) for kind in others]
    for kind in (first, *others):
        details += [*_binding(ledger, frame, kind), *_padding(ledger, known, kind)]
    share = _number(ledger, first, "roofline_pct")
    details.append(
        sentence(
            "Bytes and operations are the least that the routed rows need; rows that a CUDA graph pads are not counted."
        )
    )
    number = Headline(f"experts' kernels, {first}: share of the roofline", share, "least time at the GPU's peaks")
    confidence = sentence("measured routing and kernel time against the data sheet's peaks ({}).", _peaks(ledger))
    kind = COST if share.value < FAR_PCT else NOTE
    return Finding("Distance to the GPU's limits", headline, details, confidence, kind, "roofline", number)


def _weights(ledger: Ledger, weights: pl.DataFrame) -> Finding:
    """Return the finding where only the bytes of weights are known."""
    kind = weights["step_kind"][0]
    rate = _rate(ledger, kind, "weight_gb_per_s", "GB/s")
    text = "In {} steps the experts' kernels read the weights of the experts hit at {}"
    if weights["weight_mbu_pct"][0] is None:
        headline = sentence(text + ".", kind, rate)
    else:
        headline = sentence(text + ", {} of the GPU's bandwidth.", kind, rate, _number(ledger, kind, "weight_mbu_pct"))
    details = [
        sentence("Activations and operations are unknown: {}.", reason)
        for reason in _reasons(ledger, "routed_flop", "activation_bytes")
    ]
    return Finding("Distance to the GPU's limits", headline, details, None, NOTE)


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
    row = known.filter(step_kind=kind).row(0, named=True)
    if row["padding_pct"] is None:
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
