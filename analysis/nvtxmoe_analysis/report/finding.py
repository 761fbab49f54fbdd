"""Types of a finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nvtxmoe_analysis.report.numbers import Sentence, SourcedNumber

#: Kinds of findings: costs time; worth knowing; weak evidence; can't be known.
COST, NOTE, WEAK, UNSEEN = "cost", "note", "weak", "unseen"


@dataclass(frozen=True)
class Headline:
    """Number of a finding for the top of the page, with a label, and a few words below it."""

    label: str
    number: SourcedNumber
    sub: str = ""


@dataclass(frozen=True)
class Finding:
    """A finding in words.

    Attributes:
        topic: a word or two.
        headline: one sentence with its numbers.
        details: further sentences.
        confidence: how sure it is, and why.
        kind: COST, NOTE, WEAK or UNSEEN.
        chart: the name of the chart that shows it, if one does.
        headline_number: its number for the top of the page, if it has one.
    """

    topic: str
    headline: Sentence
    details: Sequence[Sentence] = ()
    confidence: Sentence | None = None
    kind: str = NOTE
    chart: str | None = None
    headline_number: Headline | None = None

    @property
    def sentences(self) -> list[Sentence]:
        """All sentences in order."""
        return [self.headline, *self.details, *([] if self.confidence is None else [self.confidence])]

    @property
    def numbers(self) -> list[SourcedNumber]:
        """Every number once, in order; a computed number is followed by its parts."""
        distinct: dict[tuple[str, str], SourcedNumber] = {}
        pending = [number for sentence in self.sentences for number in sentence.numbers][::-1]
        while pending:
            number = pending.pop()
            distinct.setdefault((number.text, number.origin), number)
            pending += number.parts[::-1]
        return list(distinct.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the finding, JSON-ready."""
        return {
            "topic": self.topic,
            "tone": self.kind,
            "headline": str(self.headline),
            "details": [str(detail) for detail in self.details],
            "sure": None if self.confidence is None else str(self.confidence),
            "figures": [number.as_dict() for number in self.numbers],
            "chart": self.chart,
        }
