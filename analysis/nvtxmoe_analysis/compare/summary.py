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


class Compared(Protocol):
    """What of a comparison the sentence is made from; see ``compare.Comparison``."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of steps that both runs have."""

    @property
    def metrics(self) -> pl.DataFrame:
        """See ``tables.METRICS``."""

    @property
    def activations(self) -> pl.DataFrame:
        """See ``tables.ACTIVATIONS``."""


def summary(comparison: Compared, a: str = "A", b: str = "B") -> dict[str, str]:
    """Return ``answer`` (DIFFERS, NOT_SEEN, CANNOT_TELL) and ``sentence``.

    All layers count together; kinds of steps count together if these can be told, and otherwise one by one.

    Parameters:
        a, b: names of the runs.
    """
    over_layers = pl.col("layer_idx").is_null()
    metrics = comparison.metrics.filter(over_layers).to_dicts()
    shares = [{**row, "metric": "js"} for row in comparison.activations.filter(over_layers).to_dicts()]
    rows = [*metrics, *shares]
    together = [row for row in rows if row["step_kind"] == ALL]
    if not any(row["significant"] is not None for row in together):
        together = [row for row in rows if row["step_kind"] != ALL]
    moved = [_moved(row) for row in together if row["significant"]]
    if moved:
        return {"answer": DIFFERS, "sentence": f"{b} differs from {a}: {listed(moved, MOST_NAMED)}."}
    known = _names(row for row in together if row["significant"] is not None)
    unknown = [name for name in _names(together) if name not in known]
    if known:
        more = f"; it cannot be told in {listed(unknown, MOST_NAMED)}" if unknown else ""
        return {
            "answer": NOT_SEEN,
            "sentence": f"{b}: no difference from {a} was seen in {listed(known, MOST_NAMED)}{more}.",
        }
    return {
        "answer": CANNOT_TELL,
        "sentence": f"Whether {b} differs from {a} cannot be told: {_why(comparison, rows, a, b)}",
    }


def _moved(row: Mapping[str, Any]) -> str:
    where = "" if row["step_kind"] == ALL else f" in {row['step_kind']} steps"
    if row["metric"] == "js":
        return f"shares of experts by {row['excess_bits']:.4f} bits above their noise{where}"
    change = "" if row["change_pct"] is None else f" {row['change_pct']:+.2f} %"
    return f"{row['metric']}{change}{where}"


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(row["metric"]) for row in rows))


def _why(comparison: Compared, rows: Sequence[Mapping[str, Any]], a: str, b: str) -> str:
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
