"""Finding: limits of the other findings, and what could not be seen."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.report.finding import UNSEEN, Finding
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.models import EXPLAINS, best_models, sentence_of
from nvtxmoe_analysis.report.numbers import percent
from nvtxmoe_analysis.report.selected import filters
from nvtxmoe_analysis.report.sentences import Sentence, sentence

ID = "limits"
#: Comes last: only then is known what the others could not use.
ORDER = 1000
MEANING = "What could not be seen or fitted, and what limits the other findings."

CORRELATION = "layer_correlation"


def find(ledger: Ledger) -> list[Finding]:
    """Return everything that limits the other findings, or that they could not use. Comes last, after their reads."""
    lines = [
        *_unknown_verdict(ledger),
        *_filters(ledger),
        *_gpu(ledger),
        *_sampled(ledger),
        *_tiles(ledger),
        *_inferred(ledger),
        *_alone(ledger),
        *_not_split(ledger),
        *_speeds(ledger),
        *_not_fitted(ledger),
    ]
    if ledger.source.frame(CORRELATION) is not None:
        lines.append(sentence("The time of a single expert: a fused kernel serves many, so time is known by layer."))
    if not lines:
        return []
    number = f"{len(lines)} things limit" if len(lines) > 1 else "One thing limits"
    return [Finding("What could not be seen", sentence("{} what can be said.", number), lines, None, UNSEEN)]


def _unknown_verdict(ledger: Ledger) -> list[Sentence]:
    if ledger.source.document("validation"):
        return []
    return [sentence("Whether the capture is complete: {}.", ledger.source.why("validation"))]


def _filters(ledger: Ledger) -> list[Sentence]:
    active = filters(ledger)
    if not active:
        return []
    steps_kept, captured = (
        ledger.from_document("validation", "selection", key) for key in ("steps_kept", "steps_captured")
    )
    return [sentence("What was filtered out ({}): {} of {} steps were kept.", ", ".join(active), steps_kept, captured)]


def _gpu(ledger: Ledger) -> list[Sentence]:
    if ledger.source.frame(CORRELATION) is not None:
        return []
    return [sentence("What routing costs in GPU time: {}.", ledger.source.why(CORRELATION))]


def _sampled(ledger: Ledger) -> list[Sentence]:
    """Return the share of tokens that were sampled."""
    frame = ledger.source.frame("routing_weights")
    if frame is None:
        return [sentence("Routing weights and experts token by token: {}.", ledger.source.why("routing_weights"))]
    counts = ledger.source.frame("activations")
    if counts is None:
        return []
    # A kernel that routes inside itself may give its ids only: their weights are empty.
    rows = ledger.take("routing_weights", "weight", "known" if _without_weights(frame) else "rows")
    everything = ledger.take("activations", "activation_count", "sum")
    if rows.value >= everything.value:
        return []
    return [
        sentence(
            "Routing weights of all tokens: {} of {} assignments were sampled ({}).",
            rows,
            everything,
            percent(rows, everything),
        )
    ]


def _without_weights(frame: pl.DataFrame) -> bool:
    return bool(frame["weight"].is_null().any() or frame["weight"].is_nan().any())


def _tiles(ledger: Ledger) -> list[Sentence]:
    frame = ledger.source.frame(CORRELATION, ["block_m_source"])
    if frame is None or not (frame["block_m_source"] == "default").any():
        return []
    sizes = sorted(frame["block_m"].drop_nulls().unique().to_list())
    rows = ledger.take(CORRELATION, "block_m_source", "rows", where={"block_m_source": "default"})
    shown = " or ".join(map(str, sizes))
    return [
        sentence(
            "The kernel's tile size: of {} rows it is the default, {}, so expert_tiles is an assumption.", rows, shown
        )
    ]


def _inferred(ledger: Ledger) -> list[Sentence]:
    frame = ledger.source.frame(CORRELATION, ["collective_inferred_ns"])
    if frame is None or not frame["collective_inferred_ns"].sum():
        return []
    time = ledger.take(CORRELATION, "collective_inferred_ns", "sum")
    text = "Which layer {} of collectives belong to: they run after the layer's range, and are tied to it by inference."
    return [sentence(text, time)]


def _alone(ledger: Ledger) -> list[Sentence]:
    """Return why ranks could not be compared."""
    reason = ledger.source.document("straggler_document").get("reason")
    return [sentence("What unequal ranks cost: {}", str(reason))] if reason else []


def _not_split(ledger: Ledger) -> list[Sentence]:
    """Return the time of collectives that could not be split into waiting and transfer."""
    collectives = ledger.source.document("straggler_document").get("collectives") or {}
    if not collectives.get("not_split_us"):
        return []
    unsplit = ledger.from_document("straggler_document", "collectives", "not_split_us")
    return [sentence("How much of {} of collectives is waiting: they could not be split.", unsplit)]


def _speeds(ledger: Ledger) -> list[Sentence]:
    """Return why it is unknown whether a rank is slow at the same load."""
    balance = (ledger.source.document("straggler_document").get("straggler") or {}).get("perfect_balance") or {}
    speeds = (balance.get("by_routing") or {}).get("speed") or []
    reasons = sorted({str(row["reason"]) for row in speeds if row.get("reason")})
    return [sentence("Whether a rank is slow at the same load: {}.", reasons[0])] if reasons else []


def _not_fitted(ledger: Ledger) -> list[Sentence]:
    """Return the models that explain nothing, in their words."""
    return [sentence("{}", sentence_of(row)) for row in best_models(ledger) if row["status"] != EXPLAINS]
