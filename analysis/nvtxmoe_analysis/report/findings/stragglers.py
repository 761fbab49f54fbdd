"""Findings: cost of the slowest rank, and wait time in collectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvtxmoe_analysis.report.finding import COST, NOTE, WEAK, Finding, Headline
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import Sentence, SourcedNumber, duration, pct, sentence, together

ORDER = 30

DOCUMENT = "straggler_document"
#: Below this share of the steps' time, imbalance between ranks is a note rather than a cost.
SMALL_PCT = 1.0


def find(ledger: Ledger) -> list[Finding]:
    """Return the excess of the slowest rank, and the wait time in collectives."""
    document = ledger.source.document(DOCUMENT)
    return [*_waiting(ledger, document), *_excess(ledger, document)]


def _excess(ledger: Ledger, document: Mapping[str, Any]) -> list[Finding]:
    straggler = document.get("straggler")
    if not isinstance(straggler, Mapping) or not straggler.get("cells"):
        return []
    saves = ledger.from_document(DOCUMENT, "straggler", "perfect_balance", "saves_us")
    shares = []
    for key, whole in (
        ("of_layers_pct", "the slowest ranks' own time in MoE layers"),
        ("of_steps_pct", "the steps' GPU time"),
    ):
        if straggler["perfect_balance"].get(key) is not None:
            shares.append(
                sentence("{} of {}", ledger.from_document(DOCUMENT, "straggler", "perfect_balance", key), whole)
            )
    text = "Perfect balance between ranks would save at most {}" + (", {}." if shares else ".")
    headline = sentence(text, saves, *([together(shares)] if shares else []))
    cells = ledger.from_document(DOCUMENT, "straggler", "cells")
    confidence = sentence(
        "an upper bound: the slowest rank's own work over the mean's in {} (step, layer), as if ranks waited after "
        "every layer and nothing else ran meanwhile.",
        cells,
    )
    small = (straggler["perfect_balance"].get("of_steps_pct") or 0.0) < SMALL_PCT
    headline_number = Headline("balance between ranks would save", saves, "at most, in all steps")
    details = [*_worst_layer(ledger, straggler), *_explained_wait(ledger, straggler), *_slowest(ledger, straggler)]
    return [
        Finding("Unequal ranks", headline, details, confidence, NOTE if small else COST, "stragglers", headline_number)
    ]


def _worst_layer(ledger: Ledger, straggler: Mapping[str, Any]) -> list[Sentence]:
    layers = [
        (layer_total.get("excess_us") or 0.0, -i) for i, layer_total in enumerate(straggler.get("per_layer") or [])
    ]
    if len(layers) < 2:
        return []
    position = -max(layers)[1]
    path = ("straggler", "per_layer", position)
    excess = ledger.from_document(DOCUMENT, *path, "excess_us")
    layer = straggler["per_layer"][position]["layer_idx"]
    if excess.value <= 0:
        return []
    largest = _largest_cell(ledger, path, straggler["per_layer"][position], excess)
    if straggler["per_layer"][position].get("of_layer_pct") is None:
        return [sentence("Most of it is in layer {}: {}.", layer, excess), *largest]
    share = ledger.from_document(DOCUMENT, *path, "of_layer_pct")
    return [sentence("Most of it is in layer {}: {}, {} of the layer.", layer, excess, share), *largest]


def _largest_cell(
    ledger: Ledger, path: tuple[str | int, ...], layer_total: Mapping[str, Any], excess: SourcedNumber
) -> list[Sentence]:
    """Return a single step with more than half of a layer's excess: an outlier, no property of the layer."""
    largest = layer_total.get("largest")
    if not isinstance(largest, Mapping) or 2 * (largest.get("excess_us") or 0.0) <= excess.value:
        return []
    cell_excess = ledger.from_document(DOCUMENT, *path, "largest", "excess_us")
    text = "{} of it in one step, {}, on rank {}: an outlier rather than what the layer costs."
    return [sentence(text, cell_excess, str(largest.get("step")), str(largest.get("rank")))]


def _explained_wait(ledger: Ledger, straggler: Mapping[str, Any]) -> list[Sentence]:
    """Return the share of the wait time that the excess explains."""
    if straggler.get("excess_of_wait_pct") is None or not straggler.get("wait_us_a_rank"):
        return []
    share = ledger.from_document(DOCUMENT, "straggler", "excess_of_wait_pct")
    wait = ledger.from_document(
        DOCUMENT, "straggler", "wait_us_a_rank", text=duration(1e3 * straggler["wait_us_a_rank"])
    )
    return [sentence("It explains {} of the {} that a rank waits in collectives on average, no more.", share, wait)]


def _slowest(ledger: Ledger, straggler: Mapping[str, Any]) -> list[Sentence]:
    if not straggler.get("slowest_rank"):
        return []
    share = ledger.from_document(DOCUMENT, "straggler", "slowest_rank", 0, "pct")
    rank = straggler["slowest_rank"][0]["rank"]
    return [sentence("Rank {} is the slowest most often, in {} of them.", rank, share)]


def _waiting(ledger: Ledger, document: Mapping[str, Any]) -> list[Finding]:
    collectives = document.get("collectives")
    if not isinstance(collectives, Mapping) or not collectives.get("split") or collectives.get("wait_pct") is None:
        return []
    wait, transfer, share, kernels, split = (
        ledger.from_document(DOCUMENT, "collectives", key)
        for key in ("wait_us", "transfer_us", "wait_pct", "kernels", "split")
    )
    text = "Ranks wait {} for one another in collectives, summed over ranks: {} of {}; {} is transfer."
    details = []
    if collectives.get("wait_pct_of_all") is not None:
        share = ledger.from_document(
            DOCUMENT, "collectives", "wait_pct_of_all", text=pct(collectives["wait_pct_of_all"])
        )
        whole = ledger.from_document(DOCUMENT, "collectives", "all_us")
        headline = sentence(text, wait, share, sentence("all {} in collectives", whole), transfer)
        if collectives.get("not_split_us"):
            unsplit = ledger.from_document(DOCUMENT, "collectives", "not_split_us")
            details.append(
                sentence("{} of collectives could not be split: how much of it is waiting is not known.", unsplit)
            )
    else:
        headline = sentence(text, wait, share, "the time of those that could be split", transfer)
    eager = collectives.get("launched_eagerly")
    if isinstance(eager, Mapping) and eager.get("split") and eager["split"] < collectives["split"]:
        eager_wait = ledger.from_document(DOCUMENT, "collectives", "launched_eagerly", "wait_us")
        details.append(
            sentence("{} of the waiting is in collectives that were launched eagerly, outside CUDA graphs.", eager_wait)
        )
    first_of_step = collectives.get("first_of_step")
    if isinstance(first_of_step, Mapping) and first_of_step.get("split"):
        text = "{} is in the first collective of a step, where ranks meet after launching."
        details.append(sentence(text, ledger.from_document(DOCUMENT, "collectives", "first_of_step", "wait_us")))
    clock = document.get("clock") or {}
    confidence = sentence("{} of {} kernels could be split. {}", split, kernels, str(clock.get("statement") or ""))
    clocks_agree = clock.get("verdict") in ("agree", "corrected")
    headline_number = Headline("waiting for other ranks", wait, f"{share} of the collectives' time, summed over ranks")
    return [
        Finding(
            "Waiting in collectives",
            headline,
            details,
            confidence,
            COST if clocks_agree else WEAK,
            "stragglers",
            headline_number,
        )
    ]
