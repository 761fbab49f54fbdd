"""The cells and steps that a whole capture has."""

from __future__ import annotations

from collections import Counter

import polars as pl

from nvtxmoe_analysis.events.decode import Events

#: A process counts a step while the next ones run: so many, at most, are without counts where it was killed.
MOST_IN_FLIGHT = 32


def expected_cells(events: Events, steps: pl.DataFrame) -> pl.DataFrame:
    """``pid``, ``rank``, ``step``, ``layer``: each layer of its process for each numbered step that has tokens.

    A step whose payload is lost is taken to have some. Layers are those that moe.meta names or any counts have.

    Parameters:
        steps: ``events.steps``, with ranks where they are known.
    """
    return _cells(steps, _layers(events))


def counted_cells(events: Events, steps: pl.DataFrame) -> pl.DataFrame:
    """Those of :func:`wanted_cells` that must have counts.

    Not the layers whose routing a process says is hidden, nor those of one that was told not to send counts; nor, in a
    journal without its end, what was in flight when its process was killed: the last step that any counts are of, and
    the next ``MOST_IN_FLIGHT``.
    """
    expected = _cells(steps, counted(events))
    open_ = [pid for pid, file in events.journals.items() if not file.ended]
    if not open_:
        return expected
    last = events.counts.cells.filter(pl.col("pid").is_in(open_)).group_by("pid").agg(last=pl.col("step").max())
    in_flight = (pl.col("step") - pl.col("last")).is_between(0, MOST_IN_FLIGHT).fill_null(False)
    return expected.join(last, on="pid", how="left", maintain_order="left").filter(~in_flight).drop("last")


def counted_layers(events: Events) -> Counter[int]:
    """Number of layers, by pid, that must have counts in each step with tokens."""
    return Counter(pid for pid, _ in counted(events))


def counted(events: Events) -> set[tuple[int, int]]:
    """Return (pid, layer) that must have counts: not hidden, and of a process that sends counts."""
    hidden = {(pid, layer) for pid, state in events.capture_states().items() for layer in state.hidden}
    hidden |= {(pid, layer) for pid, meta in events.metas.items() if not meta.emits("counts") for layer in meta.layers}
    return _layers(events) - hidden


def _layers(events: Events) -> set[tuple[int, int]]:
    """(pid, layer) that moe.meta names or any counts have."""
    seen = events.counts.cells.select("pid", "layer").unique().rows()
    declared = {(pid, layer) for pid, meta in events.metas.items() for layer in meta.layers}
    return declared | {(int(pid), int(layer)) for pid, layer in seen}


def _cells(steps: pl.DataFrame, layers: set[tuple[int, int]]) -> pl.DataFrame:
    by_pid = pl.DataFrame(sorted(layers), schema={"pid": pl.Int64, "layer": pl.Int64}, orient="row")
    numbered = with_tokens(steps).filter(pl.col("step").is_not_null())
    return numbered.select("pid", "rank", "step").unique().join(by_pid, on="pid", how="inner")


def with_tokens(steps: pl.DataFrame) -> pl.DataFrame:
    """The steps that scheduled tokens, or may have: their payload is lost."""
    return steps.filter(pl.col("num_tokens").fill_null(1) > 0)


def first_cells(cells: pl.DataFrame, number: int = 3) -> list[str]:
    """The first few of some cells, for people."""
    frame = cells.select("rank", "step", "layer").sort("rank", "step", "layer").head(number)
    return [f"rank {rank} step {step} layer {layer}" for rank, step, layer in frame.rows()]
