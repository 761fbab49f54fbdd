"""Findings: cost of the slowest rank, and wait time in collectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nvtxmoe_analysis.report.finding import COST, NOTE, WEAK, Finding, Headline
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import Sentence, SourcedNumber, duration, pct, sentence, times, together

ORDER = 30

DOCUMENT = "straggler_document"
#: Below this share of the steps' time, imbalance between ranks is a note rather than a cost.
SMALL_PCT = 1.0
#: A rank that takes less than this share more time than the mean at the same load is not slow.
LEAST_SLOWER = 0.02


def find(ledger: Ledger) -> list[Finding]:
    """Return the excess of the slowest rank, and the wait time in collectives."""
    document = ledger.source.document(DOCUMENT)
    return [*_waiting(ledger, document), *_excess(ledger, document)]


def _excess(ledger: Ledger, document: Mapping[str, Any]) -> list[Finding]:
    straggler = document.get("straggler")
    if not isinstance(straggler, Mapping) or not straggler.get("cells"):
        return []
    if isinstance(straggler["perfect_balance"].get("by_routing"), Mapping):
        return _by_routing(ledger, straggler)
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


def _by_routing(ledger: Ledger, straggler: Mapping[str, Any]) -> list[Finding]:
    """Return what even loads would save, apart from what ranks take longer at the same load."""
    at = ("straggler", "perfect_balance")
    balance = straggler["perfect_balance"]
    routing = ledger.from_document(DOCUMENT, *at, "by_routing", "saves_us")
    excess = ledger.from_document(DOCUMENT, *at, "saves_us")
    text = "Even loads of the ranks would save at most {}; the slowest ranks' excess is {} in all"
    if balance.get("of_steps_pct") is not None:
        share = ledger.from_document(DOCUMENT, *at, "of_steps_pct")
        headline = sentence(text + ", {} of the steps' GPU time.", routing, excess, share)
    else:
        headline = sentence(text + ".", routing, excess)
    cells, even = (ledger.from_document(DOCUMENT, *at, "by_routing", key) for key in ("cells", "cells_of_even_load"))
    confidence = sentence(
        "an upper bound: the slowest rank's own work over the mean's in {} (step, layer), as if ranks waited after "
        "every layer and nothing else ran meanwhile; in {} of them all ranks have the same load.",
        cells,
        even,
    )
    details = [*_speeds(ledger, balance["by_routing"].get("speed") or [])]
    details += [*_worst_layer(ledger, straggler), *_explained_wait(ledger, straggler), *_slowest(ledger, straggler)]
    small = (balance.get("of_steps_pct") or 0.0) < SMALL_PCT
    number = Headline("even loads of ranks would save", routing, f"at most, of {excess} that the slowest take longer")
    return [Finding("Unequal ranks", headline, details, confidence, NOTE if small else COST, "stragglers", number)]


def _speeds(ledger: Ledger, speed: Sequence[Mapping[str, Any]]) -> list[Sentence]:
    """Return the rank that takes longest at the same load, if that is more than chance; why it is not known."""
    known = [(row["time_at_mean_load"], at) for at, row in enumerate(speed) if "time_at_mean_load" in row]
    if not known:
        reasons = sorted({str(row["reason"]) for row in speed if row.get("reason")})
        return [sentence("Whether a rank is slow at the same load can't be told: {}.", reasons[0])] if reasons else []
    factor, at = max(known)
    if factor - 1 <= max(LEAST_SLOWER, 3 * speed[at]["error"]):
        return []
    path = ("straggler", "perfect_balance", "by_routing", "speed", at, "time_at_mean_load")
    slower = ledger.from_document(DOCUMENT, *path, text=times(factor))
    return [sentence("Rank {} takes {} times the mean rank's time at the same load.", str(speed[at]["rank"]), slower)]


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
