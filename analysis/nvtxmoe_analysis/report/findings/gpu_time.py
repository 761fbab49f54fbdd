"""What MoE layers cost, and which layer costs most."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.core.text import short_name
from nvtxmoe_analysis.report.chart_tools import MOST_NAME
from nvtxmoe_analysis.report.finding import COST, Finding, Headline
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import Sentence, SourcedNumber, difference, percent, ratio, sentence, together
from nvtxmoe_analysis.report.own_time import costliest_layer, own_column
from nvtxmoe_analysis.report.theme import CLASSES, PHASES

#: Layers whose time is within this of their mean cost about the same.
EVEN = 0.05
#: From this share of the steps' time on, waiting in collectives is worth a warning.
LARGE = 0.1
#: So many times the median, a single time is told apart.
OUTLYING = 5

ROWS = "layer_correlation"
STEP = ("rank", "step")
#: Classes in words, where they are not plain.
WORDS = {
    "collective": "collectives",
    "norm": "norms",
    "dense": "dense layers",
    "memory": "copies and memsets",
    "recording": "nvtxmoe's own kernel",
    "other": "other work",
    "unplaced": "work that can't be placed",
}
OUTSIDE = {name: f"step_{name}_ns" for name in CLASSES if name != "moe layers"}


def find(ledger: Ledger) -> list[Finding]:
    """The layers' share of the steps, and the costliest layer."""
    frame = ledger.source.frame(ROWS)
    if frame is None or not frame["kernel_time_ns"].sum():
        return []
    return [*_share(ledger, frame), _costliest(ledger, frame)]


def some_layers(ledger: Ledger) -> bool:
    """Whether only some layers were kept: then the others' time is not in the layers' sum."""
    return bool((ledger.source.document("validation").get("selection") or {}).get("layers"))


def _share(ledger: Ledger, frame: pl.DataFrame) -> list[Finding]:
    column = own_column(frame)
    own, kernels = ledger.take(ROWS, column, "sum"), ledger.take(ROWS, "kernel_time_ns", "sum")
    meeting = difference(kernels, own)
    number = ledger.take(ROWS, "step", "rows", where={"layer_idx": costliest_layer(frame)})
    confidence = sentence(
        "it is measured, not sampled: a sum over {} (rank, step), of kernels as nsys recorded them.", number
    )
    if some_layers(ledger):
        headline = sentence("Kernels of the layers kept take {} of their own.", own)
        details = [*_inside(meeting), sentence("Other layers were filtered out, so a share of the steps says nothing.")]
        headline_number = Headline("own time of the layers kept", own, "other layers were filtered out")
        return [Finding("Time of MoE layers", headline, details, confidence, COST, None, headline_number)]
    if not {"step_gpu_ns", *OUTSIDE.values()} <= set(frame.columns) or not frame["step_gpu_ns"].sum():
        return []
    steps = ledger.take(ROWS, "step_gpu_ns", "sum", once=STEP)
    share = percent(own, steps)
    classes = {name: ledger.take(ROWS, column, "sum", once=STEP) for name, column in OUTSIDE.items()}
    ranked = sorted((name for name in classes if classes[name].value), key=lambda name: -classes[name].value)[:2]
    details = []
    if ranked:
        rest = [
            sentence("{} ({}) goes to {}", classes[name], percent(classes[name], steps), WORDS.get(name, name))
            for name in ranked
        ]
        details.append(sentence("Outside the layers {}.", together(rest)))
    details += _split(ledger) if meeting.value else []
    if (meeting.value + classes["collective"].value) > LARGE * steps.value:
        details.append(sentence("The time of a collective holds its waiting for other ranks."))
    if meeting.value:
        text = (
            "MoE layers' own kernels take {} of {} GPU time in steps: {}. Collectives inside them take another {}, {}."
        )
        headline = sentence(text, own, steps, share, meeting, percent(meeting, steps))
    else:
        headline = sentence("Kernels in MoE layers take {} of {} GPU time in steps: {}.", own, steps, share)
    headline_number = Headline("MoE layers' own share of GPU time", share, f"{own} of {steps}, without collectives")
    return [Finding("Time of MoE layers", headline, details, confidence, COST, "step_share", headline_number)]


def _inside(meeting: SourcedNumber) -> list[Sentence]:
    """Collectives inside layers."""
    if not meeting.value:
        return []
    return [sentence("Collectives inside them take another {}, which holds waiting for other ranks.", meeting)]


def _split(ledger: Ledger) -> list[Sentence]:
    """Waiting and transfer of collectives in layers, where they could be told apart."""
    said = (ledger.source.document("straggler_document").get("collectives") or {}).get("in_layers") or {}
    if not said.get("split"):
        return []
    at = ("straggler_document", "collectives", "in_layers")
    wait, transfer, split, kernels = (ledger.told(*at, key) for key in ("wait_us", "transfer_us", "split", "kernels"))
    text = "Of the collectives inside layers {} of {} kernels could be split: {} is waiting, {} transfer."
    return [sentence(text, split, kernels, wait, transfer)]


def _costliest(ledger: Ledger, frame: pl.DataFrame) -> Finding:
    layer, column = costliest_layer(frame), own_column(frame)
    where = {"layer_idx": layer}
    mine, all_mine = (ledger.take(ROWS, name, "sum", where=where) for name in (column, "kernel_time_ns"))
    everything = ledger.take(ROWS, column, "sum")
    layers = ledger.take(ROWS, "layer_idx", "distinct")
    against = ratio(mine, ratio(everything, layers, column))
    meeting = difference(all_mine, mine)
    details = [*_phases(ledger, frame, layer, all_mine), *_kernel(ledger, layer)]
    if meeting.value:
        details.insert(
            0, sentence("Collectives inside it take another {}, which holds waiting: not ranked by.", meeting)
        )
    own = "own kernel time" if column == "own_ns" else "kernel time"
    kept = " kept" if some_layers(ledger) else ""
    details = [*_outlier(ledger, layer, column, mine), *details]
    if layers.value == 1:
        one = "layer kept" if kept else "MoE layer"
        headline = sentence("The one {}, {}, takes {} of {}.", one, layer, mine, own)
        return Finding("The layer that costs most", headline, details, None, COST, "layer_phases")
    share = percent(mine, everything)
    if against.value < 1 + EVEN:
        text = "The layers{} cost about the same: layer {} takes most, {} of {}, only {} times the mean layer."
        headline = sentence(text, kept, layer, mine, own, against)
    else:
        text = "Layer {} costs most: {} of {}, {} of all in {} and {} times the mean layer."
        headline = sentence(text, layer, mine, own, share, "the layers kept" if kept else "MoE layers", against)
    named = SourcedNumber(layer, f"layer {layer}", mine.file, "layer_idx", where=where)
    won = ledger.wins(ROWS, column, where, STEP)
    groups = ledger.take(ROWS, "step", "rows", where=where)
    confidence = sentence("it was the slowest layer in {} of {} (rank, step).", won, groups)
    headline_number = Headline("costliest layer, by own time", named, f"{mine}, {against} times the mean layer")
    return Finding("The layer that costs most", headline, details, confidence, COST, "layer_phases", headline_number)


def _outlier(ledger: Ledger, layer: int, column: str, mine: SourcedNumber) -> list[Sentence]:
    """A single (rank, step) that makes more than a tenth of the layer's time, and is far from its median."""
    where = {"layer_idx": layer}
    largest, median = (ledger.take(ROWS, column, how, where=where) for how in ("max", "median"))
    if largest.value <= OUTLYING * median.value or 10 * largest.value <= mine.value:
        return []
    text = "{} of it in one step of one rank, where the median is {}: an outlier rather than what the layer costs."
    return [sentence(text, largest, median)]


def _phases(ledger: Ledger, frame: pl.DataFrame, layer: int, whole: SourcedNumber) -> list[Sentence]:
    """Its two longest phases."""
    if not {f"{phase}_ns" for phase in PHASES} <= set(frame.columns):
        return []
    took = {phase: ledger.take(ROWS, f"{phase}_ns", "sum", where={"layer_idx": layer}) for phase in PHASES}
    ranked = sorted((phase for phase in took if took[phase].value), key=lambda phase: -took[phase].value)[:2]
    parts = [sentence("{} ({}) goes to phase {}", took[phase], percent(took[phase], whole), phase) for phase in ranked]
    return [sentence("Of layer {}'s kernel time {}.", layer, together(parts))] if ranked else []


def _kernel(ledger: Ledger, layer: int) -> list[Sentence]:
    """Its longest kernel."""
    kernels = ledger.source.frame("kernel_timings")
    if kernels is None:
        return []
    mine = kernels.filter(pl.col("layer_idx") == layer).group_by("kernel_name").agg(pl.col("total_ns").sum())
    if mine.is_empty():
        return []
    name = str(mine.sort(["total_ns", "kernel_name"], descending=[True, False])["kernel_name"][0])
    took = ledger.take("kernel_timings", "total_ns", "sum", where={"layer_idx": layer, "kernel_name": name})
    return [sentence("Its longest operation is {}, with {}.", short_name(name, MOST_NAME), took)]
