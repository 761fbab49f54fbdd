"""What waiting for the slowest rank costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvtxmoe_analysis.report.finding import COST, NOTE, WEAK, Finding, Headline
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import Sentence, SourcedNumber, duration, pct, sentence, together

ORDER = 30

DOCUMENT = "straggler_document"
#: Below this share of the steps' time, balance between ranks is not worth a cost of its own.
SMALL_PCT = 1.0


def find(ledger: Ledger) -> list[Finding]:
    """Excess of the slowest rank, and what part of the collectives is waiting."""
    document = ledger.source.document(DOCUMENT)
    return [*_waiting(ledger, document), *_excess(ledger, document)]


def _excess(ledger: Ledger, document: Mapping[str, Any]) -> list[Finding]:
    said = document.get("straggler")
    if not isinstance(said, Mapping) or not said.get("cells"):
        return []
    saves = ledger.told(DOCUMENT, "straggler", "perfect_balance", "saves_us")
    shares = []
    for key, of in (
        ("of_layers_pct", "the slowest ranks' own time in MoE layers"),
        ("of_steps_pct", "the steps' GPU time"),
    ):
        if said["perfect_balance"].get(key) is not None:
            shares.append(sentence("{} of {}", ledger.told(DOCUMENT, "straggler", "perfect_balance", key), of))
    text = "Perfect balance between ranks would save at most {}" + (", {}." if shares else ".")
    headline = sentence(text, saves, *([together(shares)] if shares else []))
    cells = ledger.told(DOCUMENT, "straggler", "cells")
    confidence = sentence(
        "an upper bound: the slowest rank's own work over the mean's in {} (step, layer), as if ranks waited after "
        "every layer and nothing else ran meanwhile.",
        cells,
    )
    small = (said["perfect_balance"].get("of_steps_pct") or 0.0) < SMALL_PCT
    headline_number = Headline("balance between ranks would save", saves, "at most, in all steps")
    details = [*_worst_layer(ledger, said), *_of_waiting(ledger, said), *_slowest(ledger, said)]
    return [
        Finding("Unequal ranks", headline, details, confidence, NOTE if small else COST, "stragglers", headline_number)
    ]


def _worst_layer(ledger: Ledger, said: Mapping[str, Any]) -> list[Sentence]:
    layers = [(one.get("excess_us") or 0.0, -i) for i, one in enumerate(said.get("per_layer") or [])]
    if len(layers) < 2:
        return []
    place = -max(layers)[1]
    at = ("straggler", "per_layer", place)
    excess = ledger.told(DOCUMENT, *at, "excess_us")
    layer = said["per_layer"][place]["layer_idx"]
    if excess.value <= 0:
        return []
    largest = _one_cell(ledger, at, said["per_layer"][place], excess)
    if said["per_layer"][place].get("of_layer_pct") is None:
        return [sentence("Most of it is in layer {}: {}.", layer, excess), *largest]
    of = ledger.told(DOCUMENT, *at, "of_layer_pct")
    return [sentence("Most of it is in layer {}: {}, {} of the layer.", layer, excess, of), *largest]


def _one_cell(
    ledger: Ledger, at: tuple[str | int, ...], said: Mapping[str, Any], excess: SourcedNumber
) -> list[Sentence]:
    """A single step that makes more than half of a layer's excess: no property of the layer."""
    largest = said.get("largest")
    if not isinstance(largest, Mapping) or 2 * (largest.get("excess_us") or 0.0) <= excess.value:
        return []
    here = ledger.told(DOCUMENT, *at, "largest", "excess_us")
    text = "{} of it in one step, {}, on rank {}: an outlier rather than what the layer costs."
    return [sentence(text, here, str(largest.get("step")), str(largest.get("rank")))]


def _of_waiting(ledger: Ledger, said: Mapping[str, Any]) -> list[Sentence]:
    """How much of the waiting that excess explains."""
    if said.get("excess_of_wait_pct") is None or not said.get("wait_us_a_rank"):
        return []
    share = ledger.told(DOCUMENT, "straggler", "excess_of_wait_pct")
    wait = ledger.told(DOCUMENT, "straggler", "wait_us_a_rank", text=duration(1e3 * said["wait_us_a_rank"]))
    return [sentence("It explains {} of the {} that a rank waits in collectives on average, no more.", share, wait)]


def _slowest(ledger: Ledger, said: Mapping[str, Any]) -> list[Sentence]:
    if not said.get("slowest_rank"):
        return []
    share = ledger.told(DOCUMENT, "straggler", "slowest_rank", 0, "pct")
    rank = said["slowest_rank"][0]["rank"]
    return [sentence("Rank {} is the slowest most often, in {} of them.", rank, share)]


def _waiting(ledger: Ledger, document: Mapping[str, Any]) -> list[Finding]:
    said = document.get("collectives")
    if not isinstance(said, Mapping) or not said.get("split") or said.get("wait_pct") is None:
        return []
    wait, transfer, share, kernels, split = (
        ledger.told(DOCUMENT, "collectives", key) for key in ("wait_us", "transfer_us", "wait_pct", "kernels", "split")
    )
    text = "Ranks wait {} for one another in collectives, summed over ranks: {} of {}; {} is transfer."
    details = []
    if said.get("wait_pct_of_all") is not None:
        share = ledger.told(DOCUMENT, "collectives", "wait_pct_of_all", text=pct(said["wait_pct_of_all"]))
        whole = ledger.told(DOCUMENT, "collectives", "all_us")
        headline = sentence(text, wait, share, sentence("all {} in collectives", whole), transfer)
        if said.get("not_split_us"):
            unsplit = ledger.told(DOCUMENT, "collectives", "not_split_us")
            details.append(
                sentence("{} of collectives could not be split: how much of it is waiting is not known.", unsplit)
            )
    else:
        headline = sentence(text, wait, share, "the time of those that could be split", transfer)
    eager = said.get("launched_eagerly")
    if isinstance(eager, Mapping) and eager.get("split") and eager["split"] < said["split"]:
        eager_wait = ledger.told(DOCUMENT, "collectives", "launched_eagerly", "wait_us")
        details.append(
            sentence("{} of the waiting is in collectives that were launched eagerly, outside CUDA graphs.", eager_wait)
        )
    first = said.get("first_of_step")
    if isinstance(first, Mapping) and first.get("split"):
        text = "{} is in the first collective of a step, where ranks meet after launching."
        details.append(sentence(text, ledger.told(DOCUMENT, "collectives", "first_of_step", "wait_us")))
    clock = document.get("clock") or {}
    confidence = sentence("{} of {} kernels could be split. {}", split, kernels, str(clock.get("statement") or ""))
    good = clock.get("verdict") in ("agree", "corrected")
    headline_number = Headline("waiting for other ranks", wait, f"{share} of the collectives' time, summed over ranks")
    return [
        Finding(
            "Waiting in collectives",
            headline,
            details,
            confidence,
            COST if good else WEAK,
            "stragglers",
            headline_number,
        )
    ]
