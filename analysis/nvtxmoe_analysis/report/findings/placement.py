"""Finding: what another placement of experts on the ranks would save, and whether that is worth it."""

from __future__ import annotations

from typing import Any

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.placement.document import document
from nvtxmoe_analysis.placement.predict import place
from nvtxmoe_analysis.placement.verdict import NOT_WORTH, WORTH
from nvtxmoe_analysis.report.finding import COST, NOTE, WEAK, Finding, Headline
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import SourcedNumber, sentence, shown

ORDER = 35
#: The frame that predictions are made from.
CORRELATION = "layer_correlation"
TOPIC = "Rebalancing experts"


def find(ledger: Ledger) -> list[Finding]:
    """Return the verdict of ``nvtxmoe place``; nothing where results lack what it needs, with the reason in
    ``absent`` where there is GPU time of several ranks."""
    frame = ledger.source.frame(CORRELATION)
    if frame is None or frame["rank"].n_unique() < 2:
        return []
    try:
        found = document(place(ledger.source.loaded))
    except NvtxmoeError as error:
        ledger.source.absent["placement"] = f"what rebalancing experts would save: {error.what}"
        return []
    return _finding(ledger, found)


def _finding(ledger: Ledger, found: dict[str, Any]) -> list[Finding]:
    verdict = found["verdict"]
    phases = [name for name, phase in found["phases"].items() if phase["reason"] is None]
    reasons = [f"{name}: {phase['reason']}" for name, phase in found["phases"].items() if phase["reason"]]
    details = [sentence("Not predicted: {}.", "; ".join(reasons))] if reasons else []
    if verdict["saves_at_most_ns"] is None:
        headline = sentence("Whether another placement of experts saves time can't be told.")
        return [Finding(TOPIC, headline, details, None, WEAK, "stragglers")]
    at_most = _predicted(ledger, verdict, "saves_at_most_ns")
    if phases:
        text = "predicted from tiles and active experts of {} steps, on steps that the model did not see."
        confidence = sentence(text, " and ".join(phases))
    else:
        confidence = sentence("no model could be fitted: it is how far today's slowest ranks are above the mean.")
    if verdict["answer"] == WORTH:
        saved = _predicted(ledger, verdict, "net_saved_ns")
        low, high = (_predicted(ledger, verdict, f"net_saved_{end}_ns") for end in ("low", "high"))
        headline = sentence(
            "Rebalancing experts saves {} per step (95 % interval {} to {}): worth it.", saved, low, high
        )
        number = Headline("rebalancing experts saves", saved, f"per step, {low} to {high}: worth it")
        return [Finding(TOPIC, headline, details, confidence, COST, "stragglers", number)]
    headline = sentence("Rebalancing experts saves at most {} per step: {}.", at_most, verdict["answer"])
    number = Headline("rebalancing experts saves at most", at_most, f"per step: {verdict['answer']}")
    kind = NOTE if verdict["answer"] == NOT_WORTH else WEAK
    return [Finding(TOPIC, headline, details, confidence, kind, "stragglers", number)]


def _predicted(ledger: Ledger, verdict: dict[str, Any], column: str) -> SourcedNumber:
    """Return a number of the verdict: no file holds it, it is predicted from one."""
    value = float(verdict[column])
    return SourcedNumber(value, shown(value, column), ledger.source.file(CORRELATION), column, "predicted")
