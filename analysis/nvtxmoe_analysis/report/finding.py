"""Types of a finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nvtxmoe_analysis.report.numbers import SourcedNumber, percent
from nvtxmoe_analysis.report.sentences import Sentence

#: Kinds of findings, in the order of the page: the capture lacks something; a problem; the answer where there is no
#: problem, or none of MoE layers; weak evidence; worth knowing; what can't be known.
INCOMPLETE, COST, VERDICT, WEAK, NOTE, UNSEEN = "incomplete", "cost", "verdict", "weak", "note", "unseen"
KINDS = (INCOMPLETE, COST, VERDICT, WEAK, NOTE, UNSEEN)
#: How certain a finding is: measured in this capture; estimated by a model; it can't be told.
MEASURED, ESTIMATED, UNCERTAIN = "measured", "estimated", "uncertain"
#: Share of a step below which time at stake is no problem.
LEAST_PCT = 2.0
#: The page that says more on every finding.
DOCUMENTED = "docs/explanation/findings.md"


@dataclass(frozen=True)
class Stake:
    """The time that a finding is about: what at most could be won of it per step.

    Attributes:
        per_step: ns of GPU time per step of the mean rank.
        share: of the step's time, percent.
        steps: which steps, in the words of ``Steady.noun``.
    """

    per_step: SourcedNumber
    share: SourcedNumber
    steps: str = "step"

    @property
    def certainty(self) -> str:
        """MEASURED or ESTIMATED."""
        return ESTIMATED if self.per_step.is_estimated else MEASURED

    @property
    def whole(self) -> str:
        """What the share is of, in words: ``it``, the step, or the mean of the steps that were valued."""
        step = self.share.parts[-1] if self.share.parts else None
        return f"{step}, the mean of the valued steps" if step is not None and step.how == "predicted" else "it"

    @property
    def sure_ns(self) -> float:
        """Time that is sure: the lower end of the interval, or a measured time itself."""
        return self.per_step.value if self.per_step.interval is None else self.per_step.interval[0]

    @property
    def matters(self) -> bool:
        """True if the share is at least LEAST_PCT."""
        return self.share.value >= LEAST_PCT

    def as_dict(self) -> dict[str, Any]:
        """Return the stake in us, JSON-ready."""
        low, high = self.per_step.interval or (None, None)
        return {
            "us_per_step": _us(self.per_step.value),
            "low_us": _us(low),
            "high_us": _us(high),
            "share_pct": _rounded(self.share.value),
            "per": self.steps,
            "kind": self.certainty,
        }


def stake(per_step: SourcedNumber, step: SourcedNumber) -> Stake:
    """Return the stake of a time per step, as a share of the step's time."""
    return Stake(per_step, percent(per_step, step))


@dataclass(frozen=True)
class NextStep:
    """What to do next.

    Attributes:
        short: two or three words.
        action: a sentence.
        expected: what then is to be seen.
        command: a command or a setting; empty if there is none.
    """

    short: str
    action: str
    expected: Sentence
    command: str = ""


@dataclass(frozen=True)
class Finding:
    """A finding in words.

    Attributes:
        topic: a word or two.
        headline: one sentence with its numbers.
        details: further sentences.
        confidence: how sure it is, and why.
        kind: one of KINDS.
        chart: the name of the chart that shows it, if one does.
        stake: the time it is about, if it costs any.
        next_step: what to do.
        in_moe: False if the cost lies outside MoE layers.
        first_screen: a sentence that the first screen has even if another finding comes first.
        of_others: True if its time at stake is of other steps than those that headlines are of.
        id: stable name, that of its module.
    """

    topic: str
    headline: Sentence
    details: Sequence[Sentence] = ()
    confidence: Sentence | None = None
    kind: str = NOTE
    chart: str | None = None
    stake: Stake | None = None
    next_step: NextStep | None = None
    in_moe: bool = True
    first_screen: Sentence | None = None
    of_others: bool = False
    id: str = ""

    @property
    def sentences(self) -> list[Sentence]:
        """All sentences in order."""
        expected = [] if self.next_step is None else [self.next_step.expected]
        return [self.headline, *self.details, *([] if self.confidence is None else [self.confidence]), *expected]

    @property
    def numbers(self) -> list[SourcedNumber]:
        """Every number once, in order; a computed number is followed by its parts."""
        distinct: dict[tuple[str, str], SourcedNumber] = {}
        pending = [number for sentence in self.sentences for number in sentence.numbers][::-1]
        if self.stake is not None:
            pending = [self.stake.share, self.stake.per_step, *pending]
        while pending:
            number = pending.pop()
            distinct.setdefault((number.text, number.origin), number)
            pending += number.parts[::-1]
        return list(distinct.values())

    @property
    def certainty(self) -> str:
        """MEASURED, ESTIMATED or UNCERTAIN."""
        if self.kind in (WEAK, UNSEEN):
            return UNCERTAIN
        if self.stake is not None:
            return self.stake.certainty
        return ESTIMATED if any(number.is_estimated for number in self.headline.numbers) else MEASURED

    @property
    def may_cost(self) -> bool:
        """True for a problem, for a capture that lacks something, and for time that may be lost."""
        if self.kind == WEAK:
            return self.stake is not None and self.stake.matters
        return self.kind in (COST, INCOMPLETE)

    @property
    def documented(self) -> str:
        """The place in the docs that says more."""
        return f"{DOCUMENTED}#{self.id}"

    def as_dict(self) -> dict[str, Any]:
        """Return the finding, JSON-ready."""
        next_step = self.next_step
        return {
            "id": self.id,
            "topic": self.topic,
            "title": str(self.headline),
            "kind": self.kind,
            "certainty": self.certainty,
            "how_sure": None if self.confidence is None else str(self.confidence),
            "at_stake": None if self.stake is None else self.stake.as_dict(),
            "next_step": None
            if next_step is None
            else {
                "short": next_step.short,
                "action": next_step.action,
                "command": next_step.command or None,
                "expected": str(next_step.expected),
                "documented": self.documented,
            },
            "details": [str(detail) for detail in self.details],
            "numbers": [number.as_dict() for number in self.numbers],
            "evidence": _evidence(self.numbers),
            "chart": self.chart,
        }


def _evidence(numbers: Sequence[SourcedNumber]) -> list[dict[str, Any]]:
    """Return the columns and rows that the numbers come from, each once."""
    distinct: dict[str, dict[str, Any]] = {}
    for number in numbers:
        if number.file:
            distinct.setdefault(str(number.evidence), number.evidence)
    return list(distinct.values())


def _us(ns: float | None) -> float | None:
    return None if ns is None else _rounded(ns / 1e3)


def _rounded(value: float) -> float | None:
    return None if value != value else float(f"{value:.6g}")  # noqa: PLR0124  not a number
