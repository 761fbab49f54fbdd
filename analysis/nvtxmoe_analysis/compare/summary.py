"""One sentence on two runs: what differs, that nothing was seen, or why it cannot be told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import polars as pl

from nvtxmoe_analysis.compare.plan import Kind
from nvtxmoe_analysis.compare.tables import ALL
from nvtxmoe_analysis.core.text import listed, number
from nvtxmoe_analysis.stats.long_run import LEAST_STEPS

#: Answers to whether B differs.
DIFFERS, NOT_SEEN, CANNOT_TELL = "yes", "not seen", "cannot tell"
#: Most metrics or reasons that are named.
MOST_NAMED = 10
#: Name of the divergence of the experts' shares.
JS = "js"

Row = Mapping[str, Any]


class Compared(Protocol):
    """What of a comparison the sentence is made from; see ``compare.Comparison``."""

    @property
    def options(self) -> Mapping[str, Any]:
        """``confidence`` among them."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of steps that both runs have."""

    @property
    def metrics(self) -> pl.DataFrame:
        """See ``tables.METRICS``."""

    @property
    def activations(self) -> pl.DataFrame:
        """See ``tables.ACTIVATIONS``."""

    @property
    def experts(self) -> pl.DataFrame:
        """See ``tables.EXPERTS``."""


def summary(comparison: Compared, a: str = "A", b: str = "B") -> dict[str, str]:
    """Return ``answer`` (DIFFERS, NOT_SEEN, CANNOT_TELL) and ``sentence``.

    A row is significant at the rate of the tables, which adjust for layers and experts alone. There are many metrics
    and kinds of steps: the answer is yes if a row stays significant with all of them adjusted for (Holm), so that runs
    of the same thing get a yes as seldom as a row. Else rows that are significant by themselves are counted.

    Parameters:
        a, b: names of the runs.
    """
    alpha = 1.0 - float(comparison.options["confidence"])
    rows = [*comparison.metrics.to_dicts(), *({**row, "metric": JS} for row in comparison.activations.to_dicts())]
    by_metric = {name: [row for row in rows if row["metric"] == name] for name in _names(rows)}
    experts = comparison.experts.to_dicts()
    level = _level([*_least_p_values(rows), *_least_p_values(experts)], alpha)
    sure = {name: [row for row in of_metric if _below(row, level)] for name, of_metric in by_metric.items()}
    moved = [_moved(row) for of_metric in sure.values() for row in _named(of_metric)]
    if not sure.get(JS):
        moved += [_moved_expert(row) for row in experts if _below(row, level)]
    if moved:
        return {"answer": DIFFERS, "sentence": f"{b} differs from {a}: {listed(moved, MOST_NAMED)}."}
    known = [name for of_metric in by_metric.values() for name in _decided(of_metric)]
    unknown = [name for name, of_metric in by_metric.items() if not _decided(of_metric)]
    if known:
        more = f"; it cannot be told in {listed(unknown, MOST_NAMED)}" if unknown else ""
        single = sum(bool(row["significant"]) for row in (*rows, *experts))
        if single:
            more += f". Significant by itself: {number(single, 'row')} of the tables; chance makes some among so many"
        return {
            "answer": NOT_SEEN,
            "sentence": f"{b}: no difference from {a} was seen in {listed(known, MOST_NAMED)}{more}.",
        }
    over_layers = [row for row in rows if row["layer_idx"] is None]
    return {
        "answer": CANNOT_TELL,
        "sentence": f"Whether {b} differs from {a} cannot be told: {_why(comparison, over_layers, a, b)}",
    }


def _least_p_values(rows: Sequence[Row]) -> list[float]:
    """Return the least adjusted p-value of each metric and kind of steps, of all layers together and of single ones."""
    least: dict[tuple[object, object, bool], float] = {}
    for row in rows:
        p_value = row["p_adjusted"]
        if p_value is not None:
            of = (row.get("metric"), row.get("step_kind"), row["layer_idx"] is None)
            least[of] = min(p_value, least.get(of, 1.0))
    return list(least.values())


def _level(p_values: Sequence[float], alpha: float) -> float:
    """Return the largest p-value that Holm's method calls significant among these; -1 if none."""
    level = -1.0
    for rank, p_value in enumerate(sorted(p_values)):
        if p_value * (len(p_values) - rank) >= alpha:
            break
        level = p_value
    return level


def _below(row: Row, level: float) -> bool:
    return bool(row["significant"]) and row["p_adjusted"] is not None and row["p_adjusted"] <= level


def _named(rows: Sequence[Row]) -> Sequence[Row]:
    """Return the significant rows of a metric that the sentence names: that of all layers and steps, with the kinds of
    steps and the layers that change the other way; else kinds of steps and layers; else layers in a kind of steps."""
    by_parts: dict[int, list[Row]] = {0: [], 1: [], 2: []}
    for row in rows:
        if row["significant"]:
            by_parts[(row["step_kind"] != ALL) + (row["layer_idx"] is not None)].append(row)
    whole, parts, cells = by_parts.values()
    return [*whole, *(row for row in parts if _rises(row) != _rises(whole[0]))] if whole else parts or cells


def _rises(row: Row) -> bool:
    return bool(row["excess_bits" if row["metric"] == JS else "difference"] > 0)


def _decided(rows: Sequence[Row]) -> list[str]:
    """Return the name of a metric, with the kinds of steps if it can be told in some kinds alone; empty if in none."""
    kinds = [row["step_kind"] for row in rows if row["layer_idx"] is None and row["significant"] is not None]
    name = str(rows[0]["metric"])
    if ALL in kinds or not kinds:
        return [name] if kinds else []
    return [f"{name} in {kind} steps" for kind in kinds]


def _moved(row: Row) -> str:
    layer = "" if row["layer_idx"] is None else f" in layer {row['layer_idx']}"
    where = layer + ("" if row["step_kind"] == ALL else f" in {row['step_kind']} steps")
    if row["metric"] == JS:
        return f"shares of experts by {row['excess_bits']:.4f} bits above their noise{where}"
    change = "" if row["change_pct"] is None else f" {row['change_pct']:+.2f} %"
    return f"{row['metric']}{change}{where}"


def _moved_expert(row: Row) -> str:
    return f"share of expert {row['expert_id']} in layer {row['layer_idx']} by {row['difference_pct']:+.2f} points"


def _names(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["metric"]) for row in rows))


def _why(comparison: Compared, rows: Sequence[Row], a: str, b: str) -> str:
    """Return what is lacking, and what to do."""
    few = [
        f"{name} has {number(steps, f'{kind.name} step')}"
        for kind in comparison.kinds
        for name, steps in zip((a, b), kind.steps, strict=True)
        if steps < LEAST_STEPS
    ]
    if few:
        return (
            f"{listed(few, MOST_NAMED)}; at least {LEAST_STEPS} of a kind are needed in both. Compare longer pieces of "
            "the same load."
        )
    reasons = list(dict.fromkeys(str(row["reason"]) for row in rows if row["reason"]))
    return f"{'; '.join(reasons[:MOST_NAMED]) or 'no metric is in both runs'}."
