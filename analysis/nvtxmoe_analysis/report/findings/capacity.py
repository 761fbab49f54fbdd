"""Finding: assignments that a fixed capacity of the experts would drop."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import Where
from nvtxmoe_analysis.report.sentences import sentence

ID = "capacity"
ORDER = 50
MEANING = "What a fixed capacity of the experts would drop and pad. vLLM drops nothing."

NAME = "capacity"
COLUMNS = ("layer_idx", "capacity_factor", "over_capacity_pct", "empty_slots_pct")
#: The capacity factor of the headline, if the results have it.
USUAL = 1.25


def find(ledger: Ledger) -> list[Finding]:
    """Return assignments over capacity of all layers, and the layer that would lose most."""
    frame = ledger.source.frame(NAME, COLUMNS)
    if frame is None:
        return []
    all_layers = frame.filter(pl.col("layer_idx").is_null()).drop_nulls("over_capacity_pct").sort("capacity_factor")
    if all_layers.is_empty():
        return []
    factors = all_layers["capacity_factor"].to_list()
    factor = USUAL if USUAL in factors else factors[0]
    where: Where = {"layer_idx": None, "capacity_factor": factor}
    over, empty = (ledger.take(NAME, column, where=where) for column in ("over_capacity_pct", "empty_slots_pct"))
    text = "At a capacity factor of {}, {} of the assignments would be over capacity, and {} of the slots stay empty."
    headline = sentence(text, f"{factor:g}", over, empty)
    details = []
    layers = frame.filter(pl.col("capacity_factor") == factor).drop_nulls(["layer_idx", "over_capacity_pct"])
    if len(layers) > 1:
        layer = int(layers.sort(["over_capacity_pct", "layer_idx"], descending=[True, False])["layer_idx"][0])
        worst = ledger.take(NAME, "over_capacity_pct", where={"layer_idx": layer, "capacity_factor": factor})
        if worst.value > 0:
            details.append(sentence("Layer {} would lose most, {}.", layer, worst))
    if factors[-1] != factor and over.value > 0:
        at_largest_factor = ledger.take(
            NAME, "over_capacity_pct", where={"layer_idx": None, "capacity_factor": factors[-1]}
        )
        text = "At {} it is still {}." if at_largest_factor.value > 0 else "At {} it is none."
        details.append(
            sentence(text, f"{factors[-1]:g}", *([at_largest_factor] if at_largest_factor.value > 0 else []))
        )
    text = "computed from every step's counts. vLLM drops nothing: this is what padding or dropping would do."
    return [Finding("Capacity", headline, details, sentence(text))]
