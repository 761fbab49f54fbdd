"""Findings: GPU time of MoE layers, and the layer that costs most."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.core.text import short_name
from nvtxmoe_analysis.report.chart_tools import MOST_NAME
from nvtxmoe_analysis.report.finding import COST, Finding, Headline
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import Sentence, SourcedNumber, difference, percent, ratio, sentence, together
from nvtxmoe_analysis.report.own_time import OUTLYING, STEP, costliest_layer, outlying, own_column
from nvtxmoe_analysis.report.theme import CLASSES, PHASES

ORDER = 10

#: Layers whose time is within this of their mean cost about the same.
EVEN = 0.05
#: Share of the steps' time from which the wait time in collectives gets a warning.
LARGE = 0.1
#: Share of the layers' own time in outliers from which the costliest layer is that of the steady steps, and how many
#: outliers are listed.
LARGE_OUTLIERS, MOST_LISTED = 0.05, 8

#: Share of the layers' kernel time that must overlap to be reported.
OVERLAPPING = 0.02

ROWS = "layer_correlation"
#: Classes whose names are not plain, in words.
WORDS = {
    "collective": "collectives",
    "norm": "norms",
    "dense": "matrix multiplications outside MoE layers",
    "memory": "copies and memsets",
    "recording": "nvtxmoe's own kernel",
    "other": "other work",
    "unplaced": "work that can't be placed",
}
OUTSIDE = {name: f"step_{name}_ns" for name in CLASSES if name != "moe layers"}


def find(ledger: Ledger) -> list[Finding]:
    """Return the layers' share of the steps, and the costliest layer."""
    frame = ledger.source.frame(ROWS)
    if frame is None or not frame["kernel_time_ns"].sum():
        return []
    return [*_share(ledger, frame), _costliest(ledger, frame)]


def some_layers(ledger: Ledger) -> bool:
    """Return True if only some layers were kept: the sum over layers then lacks the others' time."""
    return bool((ledger.source.document("validation").get("selection") or {}).get("layers"))


def _share(ledger: Ledger, frame: pl.DataFrame) -> list[Finding]:
    column = own_column(frame)
    own, kernels = ledger.take(ROWS, column, "sum"), ledger.take(ROWS, "kernel_time_ns", "sum")
    collectives = difference(kernels, own)
    number = ledger.take(ROWS, "step", "rows", where={"layer_idx": costliest_layer(frame)})
    confidence = sentence(
        "it is measured, not sampled: a sum over {} (rank, step), of kernels as nsys recorded them.", number
    )
    if some_layers(ledger):
        headline = sentence("Kernels of the layers kept take {} of their own.", own)
        details = [
            *_overlap(ledger, frame),
            *_inside(collectives),
            sentence("Other layers were filtered out, so a share of the steps says nothing."),
        ]
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
    details += _split(ledger) if collectives.value else []
    if (collectives.value + classes["collective"].value) > LARGE * steps.value:
        details.append(sentence("The time of a collective holds its waiting for other ranks."))
    details = [*_overlap(ledger, frame), *details]
    if collectives.value:
        text = (
            "MoE layers' own kernels take {} of {} GPU time in steps: {}. Collectives inside them take another {}, {}."
        )
        headline = sentence(text, own, steps, share, collectives, percent(collectives, steps))
    else:
        headline = sentence("Kernels in MoE layers take {} of {} GPU time in steps: {}.", own, steps, share)
    headline_number = Headline("MoE layers' own share of GPU time", share, f"{own} of {steps}, without collectives")
    return [Finding("Time of MoE layers", headline, details, confidence, COST, "step_share", headline_number)]


def _overlap(ledger: Ledger, frame: pl.DataFrame) -> list[Sentence]:
    """Return the union of the layers' work if kernels ran at the same time: sums then exceed the time that passed."""
    if "busy_ns" not in frame.columns:
        return []
    union, kernels = (ledger.take(ROWS, name, "sum") for name in ("busy_ns", "kernel_time_ns"))
    if union.value >= (1 - OVERLAPPING) * kernels.value:
        return []
    text = "Kernels overlap: those of the layers keep the GPU busy for {}, {} is their sum. Times and shares here are "
    return [sentence(text + "sums over kernels, not time that passed.", union, kernels)]


def _inside(collectives: SourcedNumber) -> list[Sentence]:
    """Return the time of collectives inside layers."""
    if not collectives.value:
        return []
    return [sentence("Collectives inside them take another {}, which holds waiting for other ranks.", collectives)]


def _split(ledger: Ledger) -> list[Sentence]:
    """Return wait and transfer time of collectives in layers, if they could be split."""
    in_layers = (ledger.source.document("straggler_document").get("collectives") or {}).get("in_layers") or {}
    if not in_layers.get("split"):
        return []
    at = ("straggler_document", "collectives", "in_layers")
    wait, transfer, split, kernels = (
        ledger.from_document(*at, key) for key in ("wait_us", "transfer_us", "split", "kernels")
    )
    text = "Of the collectives inside layers {} of {} kernels could be split: {} is waiting, {} transfer."
    return [sentence(text, split, kernels, wait, transfer)]


def _costliest(ledger: Ledger, frame: pl.DataFrame) -> Finding:
    layer, column = costliest_layer(frame), own_column(frame)
    where = {"layer_idx": layer}
    outliers = outlying(frame)
    if float(outliers[column].sum()) > LARGE_OUTLIERS * float(frame[column].sum()):
        return _steady(ledger, frame, outliers)
    layer_time, layer_kernel_time = (ledger.take(ROWS, name, "sum", where=where) for name in (column, "kernel_time_ns"))
    all_time = ledger.take(ROWS, column, "sum")
    layers = ledger.take(ROWS, "layer_idx", "distinct")
    times_mean = ratio(layer_time, ratio(all_time, layers, column))
    collectives = difference(layer_kernel_time, layer_time)
    details = [*_phases(ledger, frame, layer, layer_kernel_time), *_kernel(ledger, layer)]
    if collectives.value:
        details.insert(
            0, sentence("Collectives inside it take another {}, which holds waiting: not ranked by.", collectives)
        )
    time_name = "own kernel time" if column == "own_ns" else "kernel time"
    kept = " kept" if some_layers(ledger) else ""
    details = [*_outlier(ledger, layer, column, layer_time), *details]
    if layers.value == 1:
        noun = "layer kept" if kept else "MoE layer"
        headline = sentence("The one {}, {}, takes {} of {}.", noun, layer, layer_time, time_name)
        return Finding("The layer that costs most", headline, details, None, COST, "layer_phases")
    share = percent(layer_time, all_time)
    if times_mean.value < 1 + EVEN:
        text = "The layers{} cost about the same: layer {} takes most, {} of {}, only {} times the mean layer."
        headline = sentence(text, kept, layer, layer_time, time_name, times_mean)
    else:
        text = "Layer {} costs most: {} of {}, {} of all in {} and {} times the mean layer."
        headline = sentence(
            text, layer, layer_time, time_name, share, "the layers kept" if kept else "MoE layers", times_mean
        )
    named = SourcedNumber(layer, f"layer {layer}", layer_time.file, "layer_idx", where=where)
    won = ledger.wins(ROWS, column, where, STEP)
    groups = ledger.take(ROWS, "step", "rows", where=where)
    confidence = sentence("it was the slowest layer in {} of {} (rank, step).", won, groups)
    headline_number = Headline(
        "costliest layer, by own time", named, f"{layer_time}, {times_mean} times the mean layer"
    )
    return Finding("The layer that costs most", headline, details, confidence, COST, "layer_phases", headline_number)


def _steady(ledger: Ledger, frame: pl.DataFrame, outliers: pl.DataFrame) -> Finding:
    """Return the layer that costs most in steady steps, by medians, and the outliers one by one."""
    layer, column = costliest_layer(frame), own_column(frame)
    where = {"layer_idx": layer}
    typical, mean = ledger.take(ROWS, column, "median", where=where), ledger.take(ROWS, column, "median")
    times_mean = ratio(typical, mean)
    text = "Outliers aside, layer {} costs most: {} per rank and step (median), {} times the median of all layers."
    if abs(times_mean.value - 1) < EVEN:
        text = "Outliers aside, the layers cost about the same: layer {} takes {} per rank and step (median), {} times "
        text += "the median of all layers."
    headline = sentence(text, layer, typical, times_mean)
    details = []
    ranked = outliers.sort([column, *STEP, "layer_idx"], descending=[True, False, False, False])
    for row in ranked.head(MOST_LISTED).iter_rows(named=True):
        cell = ledger.take(ROWS, column, where={name: row[name] for name in ("layer_idx", *STEP)})
        usual = ledger.take(ROWS, column, "median", where={"layer_idx": row["layer_idx"]})
        text = "Outlier: layer {} took {} in step {} on rank {}, where its median is {}."
        details.append(sentence(text, row["layer_idx"], cell, str(row["step"]), str(row["rank"]), usual))
    if len(outliers) > MOST_LISTED:
        details.append(sentence("{} more times are outliers.", len(outliers) - MOST_LISTED))
    details += _kernel(ledger, layer)
    named = SourcedNumber(layer, f"layer {layer}", typical.file, "layer_idx", where=where)
    number = Headline("costliest layer, outliers aside", named, f"{typical} per rank and step (median)")
    return Finding("The layer that costs most", headline, details, None, COST, "layer_phases", number)


def _outlier(ledger: Ledger, layer: int, column: str, layer_time: SourcedNumber) -> list[Sentence]:
    """Return a (rank, step) with more than a tenth of the layer's time, far from its median."""
    where = {"layer_idx": layer}
    largest, median = (ledger.take(ROWS, column, how, where=where) for how in ("max", "median"))
    if largest.value <= OUTLYING * median.value or 10 * largest.value <= layer_time.value:
        return []
    text = "{} of it in one step of one rank, where the median is {}: an outlier rather than what the layer costs."
    return [sentence(text, largest, median)]


def _phases(ledger: Ledger, frame: pl.DataFrame, layer: int, whole: SourcedNumber) -> list[Sentence]:
    """Return the layer's two longest phases."""
    if not {f"{phase}_ns" for phase in PHASES} <= set(frame.columns):
        return []
    took = {phase: ledger.take(ROWS, f"{phase}_ns", "sum", where={"layer_idx": layer}) for phase in PHASES}
    ranked = sorted((phase for phase in took if took[phase].value), key=lambda phase: -took[phase].value)[:2]
    parts = [sentence("{} ({}) goes to phase {}", took[phase], percent(took[phase], whole), phase) for phase in ranked]
    return [sentence("Of layer {}'s kernel time {}.", layer, together(parts))] if ranked else []


def _kernel(ledger: Ledger, layer: int) -> list[Sentence]:
    """Return the layer's longest kernel."""
    kernels = ledger.source.frame("kernel_timings")
    if kernels is None:
        return []
    layer_kernels = kernels.filter(pl.col("layer_idx") == layer).group_by("kernel_name").agg(pl.col("total_ns").sum())
    if layer_kernels.is_empty():
        return []
    name = str(layer_kernels.sort(["total_ns", "kernel_name"], descending=[True, False])["kernel_name"][0])
    took = ledger.take("kernel_timings", "total_ns", "sum", where={"layer_idx": layer, "kernel_name": name})
    return [sentence("Its longest operation is {}, with {}.", short_name(name, MOST_NAME), took)]
