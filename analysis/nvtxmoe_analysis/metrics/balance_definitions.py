"""Balance of the load by several definitions: our own, and those that other projects quote."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats, Ints
from nvtxmoe_analysis.metrics import balance
from nvtxmoe_analysis.metrics.balance import Loads
from nvtxmoe_analysis.metrics.balance_across_layers import LayerSums, OfLayers
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.metrics.step_load import Load, loads
from nvtxmoe_analysis.run.expert_placement import Placement

OURS, VLLM, SGLANG, TRTLLM, MEGATRON = "nvtxmoe", "vLLM", "SGLang", "TensorRT-LLM", "Megatron-LM"
EXPERTS, SLOTS, RANKS = "experts", "slots", "ranks"
STEPS, TOTAL = "steps", "total"
#: Passes that SGLang averages over.
SGLANG_WINDOWS = (10, 100, 1000)


@dataclass(frozen=True)
class Metric:
    """A measure of one layer: ``of`` its loads gives [steps], NaN where there is none.

    Attributes:
        of_total: whether it is taken of the sum over all steps too.
        largest: whether the largest step counts instead of the mean.
        pooled: where all layers' value is not made of the layers' values: the name of its field in ``OfLayers``.
    """

    name: str
    project: str
    over: str
    of: Callable[[Loads], Floats]
    of_total: bool = field(default=False, kw_only=True)
    largest: bool = field(default=False, kw_only=True)
    pooled: str | None = field(default=None, kw_only=True)


METRICS = (
    Metric("max_mean_ratio", OURS, EXPERTS, balance.max_mean_ratio, of_total=True),
    Metric("cv", OURS, EXPERTS, balance.variation, of_total=True),
    Metric("entropy_bits", OURS, EXPERTS, balance.entropy_bits, of_total=True),
    Metric("gini", OURS, EXPERTS, balance.gini, of_total=True),
    Metric("active_pct", OURS, EXPERTS, balance.active_pct, of_total=True),
    Metric("max_mean_ratio", OURS, RANKS, balance.max_mean_ratio, of_total=True),
    Metric("balancedness", VLLM, RANKS, balance.balancedness, pooled="vllm"),
    Metric("balancedness", SGLANG, RANKS, balance.utilization, pooled="sglang"),
    Metric("imbalance_ratio", TRTLLM, RANKS, balance.imbalance_ratio),
    Metric("imbalance_ratio", TRTLLM, SLOTS, balance.imbalance_ratio),
    Metric("avg_overload_factor", MEGATRON, RANKS, balance.overload_factor),
    Metric("max_overload_factor", MEGATRON, RANKS, balance.overload_factor, largest=True),
)
#: Of all layers together only: of one layer it is 1, whatever the load.
BEFORE = Metric("balancedness_before_0_28", VLLM, RANKS, balance.balancedness, pooled="vllm_before")


@dataclass(frozen=True)
class _Values:
    """What is said of values that are not NaN."""

    number: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def plus(self, values: Floats) -> _Values:
        """With these too."""
        real = values[~np.isnan(values)]
        if not len(real):
            return self
        return self.joined(_Values(len(real), float(real.sum()), float(real.min()), float(real.max())))

    def joined(self, other: _Values) -> _Values:
        """Of both."""
        least, largest = min(self.least, other.least), max(self.most, other.most)
        return _Values(self.number + other.number, self.total + other.total, least, largest)


@dataclass
class _Part:
    """Values of one layer, or of all layers, and what they are of."""

    steps: dict[Metric, _Values] = field(default_factory=lambda: defaultdict(_Values))
    totals: dict[Metric, _Values] = field(default_factory=lambda: defaultdict(_Values))
    units: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    placements: list[Placement] = field(default_factory=list)

    def add(self, load: Load) -> None:
        """Measure one expert group's load."""
        self.placements.append(load.placement)
        for over, steps in _loads(load).items():
            self.units[over].add(steps.units)
            total = Loads(steps.of.sum(axis=0, keepdims=True))
            for metric in METRICS:
                if metric.over == over:
                    self.steps[metric] = self.steps[metric].plus(metric.of(steps))
                    if metric.of_total:
                        self.totals[metric] = self.totals[metric].plus(metric.of(total))

    def join(self, other: _Part) -> None:
        """Add another layer's values."""
        self.placements += other.placements
        for over, units in other.units.items():
            self.units[over] |= units
        for own_values, other_values in ((self.steps, other.steps), (self.totals, other.totals)):
            for metric, values in other_values.items():
                own_values[metric] = own_values[metric].joined(values)

    def row(self, layer: int | None, metric: Metric, window: str, values: _Values) -> tuple[Any, ...]:
        """A row of the table: the mean of the values that there are, or the largest."""
        ends: tuple[float | None, float | None] = (None, None)
        value = reason = None
        if values.number:
            value = values.most if metric.largest else values.total / values.number
            ends = (values.least, values.most) if window != TOTAL else ends
        else:
            refused = [placement.reason for placement in self.placements if placement.reason]
            reason = refused[0] if metric.over == RANKS and refused else "no step has an assignment"
        units = self.units[metric.over]
        sources = {placement.source for placement in self.placements if metric.over == RANKS and placement.source}
        return (
            layer, metric.name, metric.project, metric.over, window, value, *ends, values.number,
            min(units) if len(units) == 1 else None, min(sources, default=None) if len(sources) == 1 else None, reason,
        )  # fmt: skip


def rows(results: RunMetrics) -> list[tuple[Any, ...]]:
    """The rows of moe_balance_metrics, with the columns of ``outputs.balance_metrics``: one per (layer, metric,
    window), then those of all layers together (layer None).

    Windows: ``steps`` (the mean of the steps' values, or the largest of them where the metric's name says max),
    ``last_N`` (of the last N steps), ``total`` (the value of the sum over steps).
    """
    parts: dict[int, _Part] = defaultdict(_Part)
    sums: dict[int, LayerSums] = {}
    placed: dict[int, bool] = defaultdict(lambda: True)
    for load in loads(results):
        parts[load.layer].add(load)
        placed[load.group] &= load.ranks is not None
        if load.ranks is not None:
            if load.group in sums:
                sums[load.group].add(load.steps, load.ranks)
            else:
                sums[load.group] = LayerSums(load.steps, load.ranks)
    made: list[tuple[Any, ...]] = []
    for layer, part in parts.items():
        made += _rows_of_layer(layer, part)
        made.append(_load_balance_ratio(layer, results.totals[layer]))
    if parts:
        made += _rows_of_all(parts, [sums[group].result() for group in sums if placed[group]])
    return made


def _loads(load: Load) -> Mapping[str, Loads]:
    known = {EXPERTS: load.experts, SLOTS: load.slots, RANKS: load.ranks}
    return {over: Loads(matrix) for over, matrix in known.items() if matrix is not None}


def _rows_of_layer(layer: int, part: _Part) -> Iterator[tuple[Any, ...]]:
    for metric in METRICS:
        yield part.row(layer, metric, STEPS, part.steps[metric])
        if metric.of_total:
            yield part.row(layer, metric, TOTAL, part.totals[metric])


def _load_balance_ratio(layer: int, total: Ints) -> tuple[Any, ...]:
    """As moe_summary.json has it."""
    ratio = float(total.max() / total.min()) if total.min() > 0 else None
    reason = None if ratio is not None else "an expert got nothing"
    samples = 0 if ratio is None else 1
    return layer, "load_balance_ratio", OURS, EXPERTS, TOTAL, ratio, None, None, samples, len(total), None, reason


def _rows_of_all(parts: Mapping[int, _Part], pooled: Sequence[OfLayers]) -> Iterator[tuple[Any, ...]]:
    of_all = _Part()
    for part in parts.values():
        of_all.join(part)
    for metric in (*METRICS, BEFORE):
        by_step = np.zeros(0) if metric.pooled is None else _in_order(pooled, metric.pooled)
        values = of_all.steps[metric] if metric.pooled is None else _Values().plus(by_step)
        yield of_all.row(None, metric, STEPS, values)
        if metric.of_total:
            yield of_all.row(None, metric, TOTAL, of_all.totals[metric])
        if metric.project == SGLANG:
            for passes in SGLANG_WINDOWS:
                yield of_all.row(None, metric, f"last_{passes}", _Values().plus(by_step[-passes:]))


def _in_order(pooled: Sequence[OfLayers], name: str) -> Floats:
    """The values of all expert groups by step."""
    steps = np.concatenate([np.zeros(0, dtype=np.int64), *(part.steps for part in pooled)])
    values: Floats = np.concatenate([np.zeros(0), *(getattr(part, name) for part in pooled)])
    return values[np.argsort(steps, kind="stable")]
