"""Journals of direct mode were written to their end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.events.journal_file import JournalFile

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 70
EXPORTS_ONLY = False

NAME = "journals_whole"
#: Journals that a message names.
MOST_NAMES = 8


def check(results: RunMetrics) -> Check:
    """Each journal has its end, which a process writes that ends by itself.

    Of a killed engine is there what it had written, and an engine that still runs is read as far as it is: neither is
    the whole of a run. Damage elsewhere than at the end is an error of the reader.
    """
    files = [file for report in results.reports for file in report.events.journals.values()]
    if not files:
        return not_applicable(NAME, "No journal among the inputs.")
    evidence: dict[str, JsonValue] = {
        "journals": len(files),
        "not_ended": [file.path.name for file in files if not file.ended],
        "truncated": [file.path.name for file in files if file.truncated],
    }
    if message := unfinished(files):
        return failed(NAME, message, **evidence)
    return passed(NAME, f"{number(len(files), 'journal')}, each with its end.", **evidence)


def unfinished(files: Sequence[JournalFile]) -> str:
    """What is to be said of the journals that are not whole; empty when all are."""
    open_ = [file.path.name for file in files if not file.ended or file.truncated]
    if not open_:
        return ""
    named = ", ".join(open_[:MOST_NAMES]) + (", ..." if len(open_) > MOST_NAMES else "")
    cut = sum(file.truncated for file in files)
    ends = f"without an end{f' ({cut:,} cut off)' if cut else ''}"
    return (
        f"{len(open_):,} of {number(len(files), 'journal')} {ends}: {named}. "
        "The process was killed or still runs; what it had written by then is here."
    )
