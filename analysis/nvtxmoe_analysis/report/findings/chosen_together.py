"""Finding: experts that are chosen together within a token's top-k."""

from __future__ import annotations

from math import isfinite

import polars as pl

from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.ledger import Ledger, rows_where
from nvtxmoe_analysis.report.number_text import times
from nvtxmoe_analysis.report.numbers import SourcedNumber, Where, percent
from nvtxmoe_analysis.report.pairs import with_lift
from nvtxmoe_analysis.report.sentences import Sentence, sentence

ID = "chosen-together"
ORDER = 60
MEANING = "The two experts of a layer that tokens choose together most often, against what chance gives."

PAIRS = "coselection"


def find(ledger: Ledger) -> list[Finding]:
    """Return the pair chosen together most often."""
    frame = ledger.source.frame(PAIRS)
    if frame is None:
        return []
    ranked = frame.with_columns(share=pl.col("coselection_count") / pl.col("tokens")).sort(
        ["share", "layer_idx", "expert_id_1", "expert_id_2"], descending=[True, False, False, False]
    )
    first = ranked.row(0, named=True)
    where = {name: first[name] for name in ("layer_idx", "expert_id_1", "expert_id_2")}
    both, tokens = (ledger.take(PAIRS, column, where=where) for column in ("coselection_count", "tokens"))
    text = "Experts {} and {} of layer {} are chosen together most often: by {} of the tokens{}."
    pair = (first["expert_id_1"], first["expert_id_2"], first["layer_idx"])
    headline = sentence(text, *pair, percent(both, tokens), _against_chance(ledger, frame, where))
    confidence = sentence("{} tokens of that layer were looked at, {} chose both.", tokens, both)
    return [Finding("Chosen together", headline, [], confidence, chart="coselection")]


def _against_chance(ledger: Ledger, frame: pl.DataFrame, where: Where) -> Sentence | str:
    """How much more often a pair is chosen together than its experts' popularity alone gives."""
    lift = rows_where(with_lift(frame, ledger.source), where)["lift"].item()
    if lift is None or not isfinite(lift):
        return ""
    number = SourcedNumber(lift, times(lift), ledger.source.file(PAIRS), "coselection_count", "lift", where, (), 1)
    return sentence(", {} times as often as independent choices would", number)
