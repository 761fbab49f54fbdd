"""Finding: GPU time of MoE layers per steady step, and of other kinds of steps."""

from __future__ import annotations

from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.moe_time import beyond_parts, how_sure, longest, moe_parts, moe_share, outside
from nvtxmoe_analysis.report.number_text import capital
from nvtxmoe_analysis.report.numbers import SourcedNumber, percent, total
from nvtxmoe_analysis.report.other_kinds import of_all, other_kinds
from nvtxmoe_analysis.report.sentences import Sentence, sentence, together
from nvtxmoe_analysis.report.steady import CORRELATION
from nvtxmoe_analysis.report.waterfall_bars import TOTAL, bar

ID = "layers-time"
ORDER = 40
MEANING = (
    "How much of a step the MoE layers take: own kernels, transfer in their collectives, waiting for uneven ranks."
)

#: Share of the layers' kernel time that must overlap to be reported, and most classes named.
OVERLAPPING, MOST_NAMED = 0.02, 5
PARTS = {"own": "own kernels", "transfer": "transfer in their collectives", "uneven": "waiting for uneven ranks"}


def find(ledger: Ledger) -> list[Finding]:
    """Return the layers' share of a steady step."""
    parts, step = moe_parts(ledger), ledger.step_time
    if not parts or step is None or ledger.steady is None or not parts["own"].value:
        return []
    share = moe_share(ledger)
    confidence = sentence("{} {}, not sampled.", how_sure(parts if share else {}), capital(ledger.steady.basis))
    if share is None:
        text = "Kernels of the layers kept take {} of their own per {}."
        headline = sentence(text, parts["own"], ledger.steady.noun)
        details = [
            *_overlap(ledger),
            sentence("Other layers were filtered out, so a share of the step says nothing."),
        ]
        return [Finding("Time of MoE layers", headline, details, confidence)]
    text = "MoE layers take {} of {} GPU time per {}, {}."
    headline = sentence(text, total(*parts.values()), step, ledger.steady.noun, share)
    details = [
        *_parts(parts, step),
        *_beyond_parts(ledger, parts),
        *_overlap(ledger),
        *_outside(ledger, step),
        *_left_out(ledger),
        *_kinds(ledger),
    ]
    return [Finding("Time of MoE layers", headline, details, confidence, chart="step_share")]


def _parts(parts: dict[str, SourcedNumber], step: SourcedNumber) -> list[Sentence]:
    if len(parts) == 1:
        return []
    named = [sentence("{} ({}) {}", number, percent(number, step), PARTS[name]) for name, number in parts.items()]
    return [sentence("Of that, {}.", together(named))]


def _beyond_parts(ledger: Ledger, parts: dict[str, SourcedNumber]) -> list[Sentence]:
    """Return what the waterfall counts to the layers and this finding does not, with both totals."""
    whole, others = bar(ledger, TOTAL), beyond_parts(ledger)
    if whole is None or not others or whole.text == (cost := total(*parts.values())).text:
        return []
    named = [sentence("{} {}", number, name) for name, number in others.items()]
    return [sentence("The waterfall's total is {}: these {} plus {}.", whole, cost, together(named))]


def _overlap(ledger: Ledger) -> list[Sentence]:
    """Return the union of the layers' work if kernels ran at the same time: sums then exceed the time that passed."""
    if ledger.source.frame(CORRELATION, ["busy_ns"]) is None:
        return []
    union, kernels = (ledger.per_step(CORRELATION, name) for name in ("busy_ns", "kernel_time_ns"))
    if union.value >= (1 - OVERLAPPING) * kernels.value:
        return []
    text = "Kernels overlap: those of the layers keep the GPU busy for {} per step, {} is their sum. Times and shares "
    return [sentence(text + "are sums over kernels, not time that passed.", union, kernels)]


def _outside(ledger: Ledger, step: SourcedNumber) -> list[Sentence]:
    classes = outside(ledger)
    return [sentence("Outside the layers the step takes {}.", longest(classes, step, MOST_NAMED))] if classes else []


def _left_out(ledger: Ledger) -> list[Sentence]:
    assert ledger.steady is not None
    return [sentence("Left out: {}.", ledger.steady.without)] if ledger.steady.without else []


def _kinds(ledger: Ledger) -> list[Sentence]:
    """Return what the other kinds of steps take."""
    return [of_all(other) for other in other_kinds(ledger)]
