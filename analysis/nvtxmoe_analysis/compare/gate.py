"""Conditions under which a comparison fails, for programs that watch over changes: ``kernel_time>5%``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.compare.measures import METRICS
from nvtxmoe_analysis.compare.runs import KINDS, UNKNOWN
from nvtxmoe_analysis.compare.tables import ALL

JS = "js"
#: Metrics that can be watched, with what they are.
WATCHED: Mapping[str, str] = {
    **{name: metric.says for name, metric in METRICS.items()},
    JS: "Jensen-Shannon divergence of the shares of experts, less its noise",
}
#: What has figures of single layers.
LAYERED = frozenset({JS, *(name for name, metric in METRICS.items() if metric.whole is not None)})
LAYER_PREFIX = "layer_"

#: How sure a difference must be.
SIGNIFICANT, INTERVAL, ESTIMATE = "significant", "interval", "estimate"
RULES = (SIGNIFICANT, INTERVAL, ESTIMATE)

PASSED, FAILED, UNDECIDED = "passed", "failed", "undecided"

_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000}
_EXPRESSION = re.compile(
    rf"(?P<layer>{LAYER_PREFIX})?(?P<metric>[a-z_]+?)(?:@(?P<kind>[a-z]+))?\s*(?P<sign>[<>])\s*"
    r"(?P<number>[+-]?\d{1,12}(?:\.\d{1,12})?)\s*(?P<unit>%|[a-z]+)?"
)


@dataclass(frozen=True)
class Gate:
    """One condition.

    Attributes:
        text: as it was given.
        per_layer: any layer may fail it, not only all together.
        kind: of step.
        above: fails above the limit, else below.
        limit: in the metric's unit, or in percent.
    """

    text: str
    metric: str
    per_layer: bool
    kind: str
    above: bool
    limit: float
    percent: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a gate.

    Attributes:
        verdict: PASSED, FAILED or UNDECIDED.
        layer: the worst layer, of a gate on layers.
        value: of all or of the worst layer, in the limit's unit.
        layers_failed: numbers of layers that fail, of a gate on layers.
        reason: why it could not be decided.
    """

    gate: Gate
    verdict: str
    layer: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    layers_failed: tuple[int, ...] = ()
    reason: str | None = None


def describe() -> str:
    """The metrics in words, for help and errors."""
    return ", ".join(WATCHED)


def parse(text: str) -> Gate:
    """Read a condition.

    Raises:
        NvtxmoeError: it is none. The message names what there is.
    """
    match = _EXPRESSION.fullmatch(text.strip())
    if match is None:
        raise _bad(text, "it is not METRIC>NUMBER", "Write kernel_time>5%, layer_imbalance@decode>0.2 or js>0.05")
    metric, kind, unit = match["metric"], match["kind"] or ALL, match["unit"]
    if metric not in WATCHED:
        raise _bad(
            text, f"there is no metric {metric}", f"Metrics: {describe()}; with {LAYER_PREFIX} before: any layer"
        )
    if match["layer"] and metric not in LAYERED:
        raise _bad(text, f"{metric} is of whole steps and has no layers", f"Write {metric} without {LAYER_PREFIX}")
    if kind not in (ALL, *KINDS) or kind == UNKNOWN:
        raise _bad(text, f"there is no kind of step {kind}", "Kinds: decode, prefill, mixed; none: all")
    limit = float(match["number"])
    if metric == JS:
        if match["sign"] == "<" or limit < 0 or unit not in (None, "bits"):
            raise _bad(text, "a divergence is 0 to 1 bits", "Write js>0.05")
        return Gate(text, metric, bool(match["layer"]), kind, True, limit, False)
    timed = METRICS[metric].unit == "ns"
    if unit != "%" and (unit not in _NS if timed else unit is not None):
        units = "%, ns, us or ms" if timed else "%, or nothing for the ratio itself"
        raise _bad(text, f"{metric} has not the unit {unit}" if unit else f"{metric} needs a unit", f"Units: {units}")
    above = match["sign"] == ">"
    if (limit < 0) if above else (limit > 0):
        raise _bad(
            text,
            "a difference is B's less A's, so > goes with a number from 0 up and < with one from 0 down",
            f"Write {metric}>5% against growth, {metric}<-5% against a fall",
        )
    scale = 1 if unit == "%" else _NS.get(unit or "", 1)
    return Gate(text, metric, bool(match["layer"]), kind, above, limit * scale, unit == "%")


def _bad(text: str, what: str, remedy: str) -> NvtxmoeError:
    return NvtxmoeError(f"--fail-if {text!r} can't be read: {what}", remedy=remedy)


def judge(gate: Gate, metrics: pl.DataFrame, activations: pl.DataFrame, rule: str, alpha: float) -> Outcome:
    """Whether a comparison fails a gate.

    Parameters:
        metrics, activations: see ``tables``.
        rule: SIGNIFICANT: the estimate is beyond the limit, and the difference is significant (of layers, after Holm's
            adjustment). INTERVAL: the whole confidence interval is beyond the limit. ESTIMATE: the estimate is.

    Where no layer fails but one could not be compared, a gate on layers is undecided.
    """
    rows = _rows(gate, metrics, activations)
    if rows.is_empty():
        kind = "" if gate.kind == ALL else f" of {gate.kind} steps"
        return Outcome(gate, UNDECIDED, reason=f"the runs have no {gate.metric}{kind} to compare")
    known = rows.filter(pl.col("value").is_not_null())
    if rule != ESTIMATE:
        known = known.filter(pl.col("p_adjusted").is_not_null())
    if known.is_empty():
        reasons = rows["reason"].drop_nulls().unique(maintain_order=True).to_list()
        return Outcome(gate, UNDECIDED, reason="; ".join(reasons) or "nothing was measured")
    sign = 1.0 if gate.above else -1.0
    beyond = pl.col("value") * sign > gate.limit * sign
    failing = {
        SIGNIFICANT: beyond & (pl.col("p_adjusted") < alpha),
        INTERVAL: (pl.col("low") if gate.above else pl.col("high")) * sign > gate.limit * sign,
        ESTIMATE: beyond,
    }[rule]
    failed = known.filter(failing)
    if failed.is_empty() and len(known) < len(rows):
        # What is not known has not passed: a layer that could not be compared may be the one that got worse.
        unknown = rows.join(known, on="layer_idx", how="anti")
        reasons = unknown["reason"].drop_nulls().to_list() or ["nothing was measured"]
        return Outcome(gate, UNDECIDED, reason=f"layer {unknown['layer_idx'][0]}: {reasons[0]}")
    worst = (known if failed.is_empty() else failed).sort(pl.col("value") * sign, descending=True).row(0, named=True)
    return Outcome(
        gate,
        PASSED if failed.is_empty() else FAILED,
        layer=worst["layer_idx"],
        value=worst["value"],
        low=worst["low"],
        high=worst["high"],
        p_value=worst["p_adjusted"],
        layers_failed=tuple(failed["layer_idx"].drop_nulls().sort().to_list()),
    )


def _rows(gate: Gate, metrics: pl.DataFrame, activations: pl.DataFrame) -> pl.DataFrame:
    """``layer_idx``, ``value``, ``low``, ``high``, ``p_adjusted``, ``reason`` of what a gate looks at."""
    if gate.metric == JS:
        rows, names = activations, ("excess_bits", "ci_low", "ci_high")
    else:
        rows = metrics.filter(pl.col("metric") == gate.metric)
        names = (
            ("change_pct", "change_pct_ci_low", "change_pct_ci_high")
            if gate.percent
            else ("difference", "ci_low", "ci_high")
        )
    layers = pl.col("layer_idx").is_not_null() if gate.per_layer else pl.col("layer_idx").is_null()
    value, low, high = (pl.col(name).alias(new) for name, new in zip(names, ("value", "low", "high"), strict=True))
    return rows.filter(pl.col("step_kind") == gate.kind, layers).select(
        "layer_idx", value, low, high, "p_adjusted", "reason"
    )
