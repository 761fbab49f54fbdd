"""What a finding is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nvtxmoe_analysis.report.numbers import Sentence, SourcedNumber

#: How a finding is to be read: it costs time; it is worth knowing; what it rests on is weak; it can't be known.
COST, NOTE, WEAK, UNSEEN = "cost", "note", "weak", "unseen"


@dataclass(frozen=True)
class Headline:
    """A finding's number for the top of the page, with a label and a few words below it."""

    label: str
    figure: SourcedNumber
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
        """All of it in order."""
        return [self.headline, *self.details, *([] if self.confidence is None else [self.confidence])]

    @property
    def figures(self) -> list[SourcedNumber]:
        """Every figure once, in order; after one that was computed those that it was computed from."""
        found: dict[tuple[str, str], SourcedNumber] = {}
        rest = [figure for sentence in self.sentences for figure in sentence.figures][::-1]
        while rest:
            figure = rest.pop()
            found.setdefault((figure.text, figure.origin), figure)
            rest += figure.parts[::-1]
        return list(found.values())

    def as_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return {
            "topic": self.topic,
            "tone": self.kind,
            "headline": str(self.headline),
            "details": [str(said) for said in self.details],
            "sure": None if self.confidence is None else str(self.confidence),
            "figures": [figure.as_dict() for figure in self.figures],
            "chart": self.chart,
        }
