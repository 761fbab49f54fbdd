"""Numbers at the top of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.trust import Trust


@dataclass(frozen=True)
class Tile:
    """A number with a label.

    Attributes:
        sub: a few words below it.
        kind: good, weak, bad or nothing.
        origin: where the number can be found.
    """

    label: str
    value: str
    sub: str = ""
    kind: str = ""
    origin: str = ""


def tiles(findings: Sequence[Finding], trust: Trust) -> list[Tile]:
    """Return the numbers of findings, and the verdict."""
    headlines = [finding.headline_number for finding in findings if finding.headline_number is not None]
    verdict = Tile(
        "capture",
        "complete" if trust.complete else "incomplete",
        trust.in_short,
        "good" if trust.complete else "bad",
    )
    return [
        *(
            Tile(headline.label, headline.number.text, headline.sub, "", headline.number.origin)
            for headline in headlines
        ),
        verdict,
    ]
