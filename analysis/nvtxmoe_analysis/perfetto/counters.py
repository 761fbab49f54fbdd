"""Counter tracks of expert load: by layer max/mean, active experts, tokens, and the counts of its hottest experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.perfetto import messages as m
from nvtxmoe_analysis.perfetto.protobuf_columns import Doubles, Encoded, Message, Numbers, Raw, interleave, number
from nvtxmoe_analysis.perfetto.slices import BLOCK_EVENTS, checked

#: Name and unit of the counters of a layer, by column of :func:`values`.
OF_LAYER = {"max_mean_ratio": ("max/mean", ""), "active_experts": ("active experts", ""), "num_tokens": ("tokens", "")}
EXPERT_UNIT = "assignments"


@dataclass(frozen=True)
class Load:
    """What counters show.

    Attributes:
        frame: a value a row: ``report``, ``rank``, ``layer``, ``expert`` (-1: of the layer), ``what`` (a key of
            OF_LAYER, or ``expert``), ``time`` (ns of the report, when the step began), ``value`` (Float64).
        untimed: cells whose step's range was not captured; they have no place in time.
    """

    frame: pl.DataFrame
    untimed: int


def load(results: RunMetrics, experts: int) -> Load:
    """The load of every (step, layer) of each group of ranks that shares tokens, as moe_load_imbalance has it.

    Parameters:
        experts: how many of each layer's experts get a counter: those with the most assignments in all.
    """
    counts = results.routing.counts
    begin_times = results.steps.select("rank", "step", "report", pl.col("start").alias("time"))
    begin_times = begin_times.unique(["rank", "step"], keep="first", maintain_order=True)
    cells = (
        counts.cells.select("rank", "step", "layer", "num_tokens")
        .hstack(results.features.select("max_mean_ratio", "active_experts"))
        .with_row_index("row")
        .join(begin_times, on=["rank", "step"], how="left", maintain_order="left")
    )
    timed = cells.filter(pl.col("time").is_not_null())
    parts = [
        timed.select(*_KEY, expert=pl.lit(-1, pl.Int64), what=pl.lit(what), value=pl.col(what).cast(pl.Float64))
        for what in OF_LAYER
    ]
    for layer, total in results.totals.items():
        layer_rows = timed.filter(pl.col("layer") == layer)
        hottest = np.lexsort((np.arange(len(total)), -total))[:experts]
        for expert in hottest[total[hottest] > 0].tolist():
            column = counts.matrix[layer_rows["row"].to_numpy(), expert] if expert < counts.matrix.shape[1] else None
            if column is not None:
                value = pl.Series(column.astype(np.float64))
                parts.append(
                    layer_rows.select(*_KEY, expert=pl.lit(expert, pl.Int64), what=pl.lit("expert"), value=value)
                )
    return Load(pl.concat(parts).drop_nulls("value"), len(cells) - len(timed))


_KEY = ("report", "rank", "layer", "time")


def packets(frame: pl.DataFrame, sequence: int) -> Iterator[bytes]:
    """Packets of counters on one sequence.

    Parameters:
        frame: ``time`` (ns of the trace), ``uuid`` of the track, ``value``, ``whole`` (whether it is an integer).
    """
    frame = frame.sort("time", "uuid", maintain_order=True)
    yield m.sequence_start(sequence, {})
    for part in frame.iter_slices(BLOCK_EVENTS):
        is_integer, value = part["whole"].to_numpy(), part["value"].to_numpy()
        event = Message(
            m.TRACK_EVENT,
            [
                Raw(number(m.TYPE, m.COUNTED)),
                Numbers(m.TRACK, part["uuid"].to_numpy()),
                Numbers(m.COUNTER, np.where(is_integer, value, 0).astype(np.int64), is_integer),
                Doubles(m.DOUBLE_COUNTER, value, ~is_integer),
            ],
        )
        head = Raw(number(m.SEQUENCE, sequence) + number(m.FLAGS, m.NEEDS_STATE))
        time = Numbers(m.TIMESTAMP, checked(part["time"].to_numpy()))
        encoded = Encoded(len(part), [Message(m.PACKET, [time, head, event])])
        yield interleave([(encoded, np.arange(len(part)))])


def title(what: str, layer: int, expert: int) -> tuple[str, str]:
    """Name and unit of a counter's track."""
    if what == "expert":
        return f"layer {layer} expert {expert}", EXPERT_UNIT
    name, unit = OF_LAYER[what]
    return f"layer {layer} {name}", unit


def in_order(shown: pl.DataFrame) -> Iterator[tuple[int, str, int]]:
    """``layer``, ``what`` and ``expert`` of each counter, layer by layer: the layer's own first, then its experts, the
    hottest first, as they come."""
    place = {what: index for index, what in enumerate((*OF_LAYER, "expert"))}
    ranked = shown.with_columns(place=pl.col("what").replace_strict(place, return_dtype=pl.Int64))
    yield from ranked.sort("layer", "place", maintain_order=True).select("layer", "what", "expert").iter_rows()
