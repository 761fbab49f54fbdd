"""What steps of other kinds than that of the headlines take, and what of it MoE layers take."""

from __future__ import annotations

from dataclasses import dataclass

from nvtxmoe_analysis.core.text import listed, number
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.moe_time import moe_parts, moe_share
from nvtxmoe_analysis.report.numbers import SourcedNumber, difference, percent, total
from nvtxmoe_analysis.report.selected import filtered_out
from nvtxmoe_analysis.report.sentences import Sentence, sentence
from nvtxmoe_analysis.report.steady import CORRELATION, LEAST_STEPS, STEP, Steady

#: Share of the GPU time of all steps from which a kind of step is worth a sentence on the first screen.
LEAST_SHARE_PCT = 10.0


@dataclass(frozen=True)
class OtherKind:
    """The steady steps of a kind.

    Attributes:
        ledger: takes times per step of them.
        share: of the GPU time of all steps, percent. per_step: GPU time.
        moe: what MoE layers take per step. moe_share: the same as a share of the step.
    """

    ledger: Ledger
    steady: Steady
    share: SourcedNumber
    per_step: SourcedNumber
    moe: SourcedNumber
    moe_share: SourcedNumber

    @property
    def matters(self) -> bool:
        """True if the steps take LEAST_SHARE_PCT of the GPU time or more."""
        return self.share.value >= LEAST_SHARE_PCT

    @property
    def too_few(self) -> bool:
        """True if there are too few steps to look for problems in them."""
        return len(self.steady.numbers) < LEAST_STEPS

    @property
    def too_few_words(self) -> Sentence:
        """What is not looked for in too few steps."""
        text = "Too few to look for problems in them: {}, at least {} are needed."
        return sentence(text, self.steady.nouns, LEAST_STEPS)


def other_kinds(ledger: Ledger) -> list[OtherKind]:
    """Return the other kinds of steps, the most GPU time first. Empty if layers or ranks were filtered out."""
    if filtered_out(ledger):
        return []
    kinds = []
    for other in ledger.others:
        steps, per_step, share = other.steady, other.step_time, moe_share(other)
        if steps is None or per_step is None or share is None:
            continue
        moe = total(*moe_parts(other).values())
        kinds.append(OtherKind(other, steps, percent(_sum(other), _whole(ledger)), per_step, moe, share))
    return sorted(kinds, key=lambda kind: -kind.share.value)


def of_all(other: OtherKind) -> Sentence:
    """Return the share of the GPU time that such steps take, what one takes, and MoE layers of it."""
    many = number(len(other.steady.numbers), f"{other.steady.kind} step")
    verb = "takes" if len(other.steady.numbers) == 1 else "take"
    text = "{} {} {} of the GPU time of all steps. MoE layers take {} of {} per {} ({})."
    noun = other.steady.noun
    return sentence(text, many, verb, other.share, other.moe, other.per_step, noun, other.moe_share)


def lead(ledger: Ledger) -> str:
    """Return ``In decode steps, `` if another kind of steps matters, so that a verdict is of one kind; else empty."""
    if ledger.steady is None or not any(other.matters for other in other_kinds(ledger)):
        return ""
    return f"In {ledger.steady.kind} steps, "


def beside(ledger: Ledger) -> list[Sentence]:
    """Return what the first screen has of steps that its times per step are not of, where they matter."""
    matter = [other for other in other_kinds(ledger) if other.matters]
    sentences = [
        sentence("{} {}", of_all(other), other.too_few_words) if other.too_few else of_all(other) for other in matter
    ]
    if ledger.steady is None or filtered_out(ledger):
        return sentences
    named = total(_sum(ledger), *(_sum(other.ledger) for other in matter))
    share = percent(difference(_whole(ledger), named), _whole(ledger))
    if share.value >= LEAST_SHARE_PCT:
        kinds = [f"{other.steady.kind} steps" for other in other_kinds(ledger) if not other.matters]
        left_out = [ledger.steady.without] if ledger.steady.without else []
        among = listed([*kinds, *left_out])
        text = "The other {} of the GPU time is not looked at{}."
        sentences.append(sentence(text, share, f" ({among})" if among else ""))
    return sentences


def _sum(ledger: Ledger) -> SourcedNumber:
    """Return the GPU time of a ledger's steady steps, of all ranks."""
    return ledger.take(CORRELATION, "step_gpu_ns", "sum", once=STEP, steady=True)


def _whole(ledger: Ledger) -> SourcedNumber:
    """Return the GPU time of all steps, of all ranks."""
    return ledger.take(CORRELATION, "step_gpu_ns", "sum", once=STEP)
