"""What MoE layers cost, and which layer costs most."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.report.figures import Figure, Sentence, percent, ratio, say, together
from nvtxmoe_analysis.report.finding import COST, Finding, Headline
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.look import CLASSES, PHASES
from nvtxmoe_analysis.report.shaping import short_name

#: Layers whose time is within this of their mean cost about the same.
EVEN = 0.05

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


def costliest_layer(frame: pl.DataFrame) -> int:
    """The layer with the most kernel time; of equal ones the lowest."""
    by_layer = frame.group_by("layer_idx").agg(pl.col("kernel_time_ns").sum())
    return int(by_layer.sort(["kernel_time_ns", "layer_idx"], descending=[True, False])["layer_idx"][0])


def _share(ledger: Ledger, frame: pl.DataFrame) -> list[Finding]:
    if not {"step_gpu_ns", *OUTSIDE.values()} <= set(frame.columns) or not frame["step_gpu_ns"].sum():
        return []
    kernels = ledger.take(ROWS, "kernel_time_ns", "sum")
    steps = ledger.take(ROWS, "step_gpu_ns", "sum", once=STEP)
    share = percent(kernels, steps)
    classes = {name: ledger.take(ROWS, column, "sum", once=STEP) for name, column in OUTSIDE.items()}
    ranked = sorted((name for name in classes if classes[name].value), key=lambda name: -classes[name].value)[:2]
    details = []
    if ranked:
        rest = [
            say("{} ({}) goes to {}", classes[name], percent(classes[name], steps), WORDS.get(name, name))
            for name in ranked
        ]
        details.append(say("Of the rest {}.", together(rest)))
    if "collective" in ranked:
        details.append(say("The time of a collective holds its waiting for other ranks."))
    number = ledger.take(ROWS, "step", "rows", where={"layer_idx": costliest_layer(frame)})
    headline = say("Kernels in MoE layers take {} of {} GPU time in steps: {}.", kernels, steps, share)
    sure = say("it is measured, not sampled: a sum over {} (rank, step), of kernels as nsys recorded them.", number)
    tile = Headline("MoE layers' share of GPU time", share, f"{kernels} of {steps}")
    return [Finding("Time of MoE layers", headline, details, sure, COST, "step_share", tile)]


def _costliest(ledger: Ledger, frame: pl.DataFrame) -> Finding:
    layer = costliest_layer(frame)
    where = {"layer_idx": layer}
    mine = ledger.take(ROWS, "kernel_time_ns", "sum", where=where)
    everything = ledger.take(ROWS, "kernel_time_ns", "sum")
    layers = ledger.take(ROWS, "layer_idx", "distinct")
    against = ratio(mine, ratio(everything, layers, "kernel_time_ns"))
    details = [*_phases(ledger, frame, layer, mine), *_kernel(ledger, layer)]
    if layers.value == 1:
        headline = say("The one MoE layer, {}, takes {} of kernel time.", layer, mine)
        return Finding("The layer that costs most", headline, details, None, COST, "layer_phases")
    share = percent(mine, everything)
    if against.value < 1 + EVEN:
        headline = say(
            "The layers cost about the same: layer {} takes most, {}, only {} times the mean layer.",
            layer,
            mine,
            against,
        )
    else:
        headline = say(
            "Layer {} costs most: {} of kernel time, {} of all in MoE layers and {} times the mean layer.",
            layer,
            mine,
            share,
            against,
        )
    named = Figure(layer, f"layer {layer}", mine.file, "layer_idx", where=where)
    won = ledger.wins(ROWS, "kernel_time_ns", where, STEP)
    groups = ledger.take(ROWS, "step", "rows", where=where)
    sure = say("it was the slowest layer in {} of {} (rank, step).", won, groups)
    tile = Headline("costliest layer", named, f"{mine}, {against} times the mean layer")
    return Finding("The layer that costs most", headline, details, sure, COST, "layer_phases", tile)


def _phases(ledger: Ledger, frame: pl.DataFrame, layer: int, whole: Figure) -> list[Sentence]:
    """Its two longest phases."""
    if not {f"{phase}_ns" for phase in PHASES} <= set(frame.columns):
        return []
    took = {phase: ledger.take(ROWS, f"{phase}_ns", "sum", where={"layer_idx": layer}) for phase in PHASES}
    ranked = sorted((phase for phase in took if took[phase].value), key=lambda phase: -took[phase].value)[:2]
    parts = [say("{} ({}) goes to phase {}", took[phase], percent(took[phase], whole), phase) for phase in ranked]
    return [say("Of layer {}'s kernel time {}.", layer, together(parts))] if ranked else []


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
    return [say("Its longest operation is {}, with {}.", short_name(name), took)]
