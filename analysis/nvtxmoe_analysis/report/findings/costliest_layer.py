"""Finding: the layer that costs most per steady step."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.core.text import short_name
from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import SourcedNumber, difference, percent, ratio
from nvtxmoe_analysis.report.own_time import OWN_TIMES, costliest_layer, outlying, own_column
from nvtxmoe_analysis.report.selected import some_layers
from nvtxmoe_analysis.report.sentences import Sentence, sentence, together
from nvtxmoe_analysis.report.steady import CORRELATION, STEP
from nvtxmoe_analysis.report.theme import MOST_NAME, PHASES

ID = "costliest-layer"
ORDER = 41
MEANING = "The layer with most own kernel time per step, and whether it differs from the others."

#: Layers whose time is within this of their mean cost about the same.
EVEN = 0.05
#: Share of the layers' own time in outliers from which they are listed, and how many are.
LARGE_OUTLIERS, MOST_LISTED = 0.05, 8


def find(ledger: Ledger) -> list[Finding]:
    """Return the costliest layer per steady step, and outliers one by one."""
    if ledger.steady is None:
        return []
    all_steps = ledger.source.loaded.frame(CORRELATION).select("layer_idx", *STEP, *OWN_TIMES)
    outliers = outlying(all_steps)
    frame = all_steps.filter(pl.col("step").is_in(ledger.steady.numbers))
    column = own_column(frame)
    layer = costliest_layer(frame)
    where = {"layer_idx": layer}
    layer_time, all_time = ledger.per_step(CORRELATION, column, where=where), ledger.per_step(CORRELATION, column)
    if not all_time.value:
        return []
    layers = ledger.take(CORRELATION, "layer_idx", "distinct")
    details = [*_phases(ledger, layer, column), *_kernel(ledger, layer), *_outliers(ledger, all_steps, outliers)]
    kept_text = " kept" if some_layers(ledger) else ""
    topic, noun = "The layer that costs most", ledger.steady.noun
    if layers.value == 1:
        text = "The one {}, {}, takes {} of own kernel time per {}."
        headline = sentence(text, "layer kept" if kept_text else "MoE layer", layer, layer_time, noun)
        return [Finding(topic, headline, details, chart="layer_phases")]
    if _large(all_steps, outliers):
        return [Finding(topic, _typical(ledger, column, layer), details, chart="layer_phases")]
    times_mean = ratio(layer_time, ratio(all_time, layers, column))
    if times_mean.value < 1 + EVEN:
        text = "The layers{} cost about the same: layer {} takes most, {} of own kernel time per {}, {} times the mean."
        headline = sentence(text, kept_text, layer, layer_time, noun, times_mean)
    else:
        text = "Layer {} costs most: {} of own kernel time per {}, {} of all{} and {} times the mean layer."
        share = percent(layer_time, all_time)
        headline = sentence(text, layer, layer_time, noun, share, " kept" if kept_text else " layers", times_mean)
    won = ledger.wins(CORRELATION, column, where, STEP, steady=True)
    groups = ledger.take(CORRELATION, "step", "rows", where=where, steady=True)
    confidence = sentence("it was the slowest layer in {} of {} steady (rank, step).", won, groups)
    return [Finding(topic, headline, details, confidence, chart="layer_phases")]


def _large(frame: pl.DataFrame, outliers: pl.DataFrame) -> bool:
    """Return True if outlying times are much of the layers' time."""
    column = own_column(frame)
    return float(outliers[column].sum()) > LARGE_OUTLIERS * float(frame[column].sum())


def _typical(ledger: Ledger, column: str, layer: int) -> Sentence:
    """Return the headline by medians, which outliers do not move."""
    assert ledger.steady is not None
    typical = ledger.take(CORRELATION, column, "median", where={"layer_idx": layer}, steady=True)
    times_mean = ratio(typical, ledger.take(CORRELATION, column, "median", steady=True))
    text = "Outliers aside, layer {} costs most: {} per {} (median), {} times the median of all layers."
    if abs(times_mean.value - 1) < EVEN:
        text = "Outliers aside, the layers cost about the same: layer {} takes {} per {} (median), {} times the median "
        text += "of all layers."
    return sentence(text, layer, typical, ledger.steady.noun, times_mean)


def _outliers(ledger: Ledger, frame: pl.DataFrame, outliers: pl.DataFrame) -> list[Sentence]:
    """Return single times far above their layer's usual ones, if they are much of the layers' time."""
    column = own_column(frame)
    if not _large(frame, outliers):
        return []
    details = []
    ranked = outliers.sort([column, *STEP, "layer_idx"], descending=[True, False, False, False])
    for row in ranked.head(MOST_LISTED).iter_rows(named=True):
        cell = ledger.take(CORRELATION, column, where={name: row[name] for name in ("layer_idx", *STEP)})
        usual = ledger.take(CORRELATION, column, "median", where={"layer_idx": row["layer_idx"]})
        text = "Outlier: layer {} took {} in step {} on rank {}, where its median is {}."
        details.append(sentence(text, row["layer_idx"], cell, str(row["step"]), str(row["rank"]), usual))
    if len(outliers) > MOST_LISTED:
        details.append(sentence("{} more times are outliers.", len(outliers) - MOST_LISTED))
    return details


def _phases(ledger: Ledger, layer: int, column: str) -> list[Sentence]:
    """Return the layer's two longest phases. Unlike own kernel time, in ``column``, they hold collectives."""
    if ledger.source.frame(CORRELATION, [f"{phase}_ns" for phase in PHASES]) is None:
        return []
    where = {"layer_idx": layer}
    layer_time = ledger.per_step(CORRELATION, "kernel_time_ns", where=where)
    took: dict[str, SourcedNumber] = {
        phase: ledger.per_step(CORRELATION, f"{phase}_ns", where=where) for phase in PHASES
    }
    ranked = sorted((phase for phase in took if took[phase].value > 0), key=lambda phase: -took[phase].value)[:2]
    parts = [
        sentence("{} ({}) goes to phase {}", took[phase], percent(took[phase], layer_time), phase) for phase in ranked
    ]
    if not ranked:
        return []
    own = ledger.per_step(CORRELATION, column, where=where)
    if own.value == layer_time.value:
        return [sentence("Of its {} kernel time per step, {}.", layer_time, together(parts))]
    text = "With collectives it takes {} of kernel time per step, {} more than its own (mean); of that, {}."
    return [sentence(text, layer_time, difference(layer_time, own), together(parts))]


def _kernel(ledger: Ledger, layer: int) -> list[Sentence]:
    """Return the layer's longest kernel over all steps, collectives aside."""
    kernels = ledger.source.frame("kernel_timings")
    if kernels is None:
        return []
    aside = ""
    layer_kernels = kernels.filter(pl.col("layer_idx") == layer).group_by("kernel_name").agg(pl.col("total_ns").sum())
    collectives = ledger.source.frame("collectives", ["kernel_name"])
    if collectives is not None:
        own_kernels = layer_kernels.filter(~pl.col("kernel_name").is_in(collectives["kernel_name"].unique().implode()))
        aside = " other than collectives" if len(own_kernels) < len(layer_kernels) else ""
        layer_kernels = own_kernels
    if layer_kernels.is_empty():
        return []
    name = str(layer_kernels.sort(["total_ns", "kernel_name"], descending=[True, False])["kernel_name"][0])
    took = ledger.take("kernel_timings", "total_ns", "sum", where={"layer_idx": layer, "kernel_name": name})
    return [
        sentence("Its longest operation{} is {}, {} in all steps and ranks.", aside, short_name(name, MOST_NAME), took)
    ]
