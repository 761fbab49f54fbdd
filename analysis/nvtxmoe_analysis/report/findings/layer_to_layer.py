"""Finding: how much a token's experts of one layer tell of those of another."""

from __future__ import annotations

from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.ledger import Ledger, rows_where
from nvtxmoe_analysis.report.numbers import Where
from nvtxmoe_analysis.report.sentences import Sentence, sentence

ID = "layer-to-layer"
ORDER = 61
MEANING = "How much a token's experts of one layer tell of its experts in another, and the strongest path."

LAYERS, PATHS = "cross_layer", "cross_layer_paths"
#: Below this share of the entropy, one layer does not predict another.
LITTLE_PCT = 1.0
LAYER_COLUMNS = ("layer_a", "layer_b", "tokens", "mutual_information_bits", "explained_pct")
PATH_COLUMNS = (
    "layer_a",
    "expert_a",
    "layer_b",
    "expert_b",
    "tokens",
    "probability",
    "probability_low",
    "probability_high",
    "base_probability",
)


def find(ledger: Ledger) -> list[Finding]:
    """Return the two layers that tell most of one another, with their strongest path."""
    pairs = ledger.source.frame(LAYERS, LAYER_COLUMNS)
    known = None if pairs is None else pairs.drop_nulls(["mutual_information_bits", "explained_pct"])
    if known is None or known.is_empty():
        return []
    best = known.sort(["explained_pct", "layer_a", "layer_b"], descending=[True, False, False]).row(0, named=True)
    between: Where = {"layer_a": best["layer_a"], "layer_b": best["layer_b"]}
    share, tokens = (ledger.take(LAYERS, column, where=between) for column in ("explained_pct", "tokens"))
    if share.value < LITTLE_PCT:
        text = "A token's experts of one layer say next to nothing of those of another: layers {} and {} most, {}."
        headline = sentence(text, best["layer_a"], best["layer_b"], share)
    else:
        text = "A token's experts of layer {} tell most of those of another layer, {}: {} of their entropy."
        headline = sentence(text, best["layer_a"], best["layer_b"], share)
    confidence = sentence("{} sampled tokens; what shuffled tokens give by chance is subtracted.", tokens)
    return [Finding("From layer to layer", headline, _strongest(ledger, between), confidence)]


def _strongest(ledger: Ledger, between: Where) -> list[Sentence]:
    """Return the strongest path of these layers, if one is stronger than chance."""
    paths = ledger.source.frame(PATHS, PATH_COLUMNS, rows=False)
    layer_paths = None if paths is None else rows_where(paths, between)
    if layer_paths is None or layer_paths.is_empty():
        return []
    first = layer_paths.row(0, named=True)
    path = {name: first[name] for name in ("layer_a", "expert_a", "layer_b", "expert_b")}
    probability, base_probability, low, high = (
        ledger.take(PATHS, column, where=path, text=f"{first[column]:.2f}")
        for column in ("probability", "base_probability", "probability_low", "probability_high")
    )
    text = "Its strongest path: of tokens with expert {}, {} choose expert {} (95 % CI {} to {}); of all tokens {}."
    return [sentence(text, first["expert_a"], probability, first["expert_b"], low, high, base_probability)]
