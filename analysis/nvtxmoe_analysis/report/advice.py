"""Findings and answers of a results folder as one document: ``findings.json`` beside the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvtxmoe._version import __version__
from nvtxmoe_analysis.core.file_set import replace_set, staging
from nvtxmoe_analysis.core.files import cannot_write, check_folder
from nvtxmoe_analysis.outputs.read import load
from nvtxmoe_analysis.report.commands import output_folder
from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.findings import findings
from nvtxmoe_analysis.report.first_screen import Answer, answers
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.steady import Steady, named_sets, steady_others
from nvtxmoe_analysis.report.trust import Trust, trust

FINDINGS = "findings.json"
#: Number of this form of the document; it rises when keys change their meaning or go.
FORM = 1


@dataclass(frozen=True)
class Advice:
    """What a results folder says, and what to do.

    Attributes:
        findings: the most important first.
        answers: to the four questions of the first screen.
        steady: the steps that times per step are of; None without GPU time.
        others: the steady steps of other kinds, which ``other-steps`` is of.
    """

    findings: Sequence[Finding]
    answers: Sequence[Answer]
    steady: Steady | None
    trust: Trust
    others: Sequence[Steady] = ()

    @property
    def step_sets(self) -> Mapping[str, frozenset[int]]:
        """Every set of steps that a number can be of, by its name."""
        return named_sets(self.steady, self.others)

    def as_dict(self) -> dict[str, Any]:
        """Return the document, JSON-ready; see docs/explanation/findings.md."""
        return {
            "form": FORM,
            "nvtxmoe": __version__,
            "complete": self.trust.complete,
            "steady_steps": None if self.steady is None else self.steady.as_dict(),
            "other_steps": [steps.as_dict() for steps in self.others],
            "answers": [answer.as_dict() for answer in self.answers],
            "findings": [finding.as_dict() for finding in self.findings],
        }


@dataclass(frozen=True)
class Advised:
    """Results and their advice. ``source`` knows what the findings could not use."""

    source: Source
    advice: Advice


def advise(source: Source) -> Advice:
    """Return the findings of a results folder with the four answers."""
    ledger = Ledger(source)
    listed = findings(ledger)
    box = trust(source)
    return Advice(listed, answers(listed, ledger, box), ledger.steady, box, steady_others(source))


def text_of(advice: Advice) -> str:
    """Return the text of ``findings.json``."""
    return json.dumps(advice.as_dict(), indent=2) + "\n"


def remove_findings(results: Path) -> None:
    """Remove the ``findings.json`` of a results folder whose tables were written again.

    Parameters:
        results: the folder of the result files.

    Raises:
        NvtxmoeError: the file can't be removed.
    """
    file = output_folder(results) / FINDINGS
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(error, file.parent, FINDINGS, "Make room, or make the folder writable") from error


def write_findings(folder: Path, advice: Advice | None = None) -> tuple[Advice, Path]:
    """Write ``findings.json`` beside the results.

    Parameters:
        folder: DIR of ``analyze`` or ``merge``, or ``moe_expert_tracking`` inside it.
        advice: of these results, if it is known already.

    Raises:
        NvtxmoeError: the folder has no results, or the file can't be written.
    """
    results = load(folder)
    output = output_folder(results.folder)
    check_folder(output)
    if advice is None:
        advice = advise(Source(results))
    try:
        with staging(output) as stage:
            (stage / FINDINGS).write_text(text_of(advice), encoding="utf-8")
            replace_set(output, stage, [FINDINGS])
    except OSError as error:
        raise cannot_write(error, output, FINDINGS, "Make room, or make the folder writable") from error
    return advice, output / FINDINGS
