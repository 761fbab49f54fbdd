"""The times of NVTX ranges are possible."""

from __future__ import annotations

from collections import Counter

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 212
EXPORTS_ONLY = True

NAME = "range_times"


def check(results: RunMetrics) -> Check:
    """Every range of the domain nvtxmoe has a possible start and end; for steps without an end see ``steps_closed``.

    Ranges with impossible times are left out: what was launched in them counts outside them. A range without an end
    lasts to the end of the capture.
    """
    bad: Counter[str] = Counter()
    for report in results.reports:
        bad.update(report.implausible_ranges)
    unclosed = sum(report.unclosed_ranges for report in results.reports)
    reasons: dict[str, JsonValue] = dict(sorted(bad.items()))
    evidence: dict[str, JsonValue] = {"implausible": bad.total(), "unclosed": unclosed, "reasons": reasons}
    problems = []
    if bad:
        listed = ", ".join(f"{reason} {count:,}" for reason, count in sorted(bad.items()))
        problems.append(
            f"{number(bad.total(), 'NVTX range')} {'has' if bad.total() == 1 else 'have'} impossible times ({listed}): "
            "work launched in them counts outside them."
        )
    if unclosed:
        problems.append(
            f"{number(unclosed, 'layer, phase or idle range')} {'has' if unclosed == 1 else 'have'} no end."
        )
    if problems:
        return failed(NAME, " ".join(problems), **evidence)
    return passed(NAME, "The times of all NVTX ranges are possible.", **evidence)
