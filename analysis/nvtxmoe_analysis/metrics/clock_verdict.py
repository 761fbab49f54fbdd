"""How the reports' clocks were aligned, and whether that holds, as a JSON value and in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.metrics.collectives.match import NOT_SIMULTANEOUS, REASONS
from nvtxmoe_analysis.metrics.wait_transfer import MOST_RESIDUAL_NS, MOST_RESIDUAL_SHARE, Split

#: What can be said of the clocks.
NOTHING, AGREE, CORRECTED, CONTRADICTED, NOT_ALIGNED = (
    "nothing_to_compare",
    "agree",
    "corrected",
    "contradicted",
    "not_aligned",
)


def verdict(split: Split) -> str:
    """What can be said of the clocks.

    ``agree``: with the recorded clocks no rank ends a collective before the last began. ``corrected``: with them one
    would, or there are none; an offset was found with which none does. ``not_aligned``: none was found, or none that is
    sure enough for half of the collectives over several reports. ``contradicted``: within a report, ranks do end before
    the last began. ``nothing_to_compare``: no collective of several ranks was matched.
    """
    lines = [aligned for aligned in split.aligned if aligned.line is not None]
    if any(not line.fits for line in lines) or split.refused > split.across:
        return NOT_ALIGNED
    if split.contradictions or (split.frame["reason"] == REASONS[NOT_SIMULTANEOUS]).any():
        return CONTRADICTED
    if not split.compared:
        return NOTHING
    return CORRECTED if any(line.recorded_violations != 0 for line in lines) else AGREE


def describe(split: Split, reports: Sequence[CaptureFacts]) -> dict[str, Any]:
    """The key ``clock`` of moe_straggler.json."""
    return {
        "verdict": verdict(split),
        "statement": statement(split),
        "reports": len(reports),
        "collectives_compared": split.compared,
        "collectives_across_reports": split.across,
        "collectives_refused": split.refused,
        "contradictions": split.contradictions,
        "not_simultaneous_kernels": int((split.frame["reason"] == REASONS[NOT_SIMULTANEOUS]).sum()),
        "closest_us": None if split.closest_ns is None else split.closest_ns / 1e3,
        "limit_us": MOST_RESIDUAL_NS / 1e3,
        "limit_of_duration_pct": 100 * MOST_RESIDUAL_SHARE,
        "by_report": [_report(split, reports, number) for number in range(len(reports))] if len(reports) > 1 else [],
    }


def _report(split: Split, reports: Sequence[CaptureFacts], number: int) -> dict[str, Any]:
    aligned = split.aligned[number]
    names = [str(report.source) for report in reports]
    fields = {
        "report": names[number],
        "reference": names[aligned.reference],
        "recorded_by": reports[number].recorded_clock()[1],
    }
    if aligned.line is None or aligned.against is None:
        return {**fields, "aligned_by": "its own time"}
    return {
        **fields,
        "aligned_by": "recorded clocks" if aligned.recorded_violations == 0 else "collectives",
        "compared_with": names[aligned.against],
        "collectives": aligned.line.bounds,
        "offset_ns": aligned.line.offset_ns,
        "offset_at_ns": aligned.line.origin_ns,
        "drift_ppm": 1e6 * aligned.line.drift,
        "median_residual_us": aligned.median_residual_ns / 1e3,
        "most_residual_us": aligned.most_residual_ns / 1e3,
        "fits": aligned.fits,
        "recorded_offset_ns": aligned.recorded_ns,
        "recorded_violations": aligned.recorded_violations,
        "correction_us": None if aligned.recorded_ns is None else (aligned.line.offset_ns - aligned.recorded_ns) / 1e3,
    }


def statement(split: Split) -> str:
    """One or two sentences."""
    lines = [aligned for aligned in split.aligned if aligned.line is not None]
    outcome = verdict(split)
    compared = number(split.compared, "collective")
    if outcome == NOTHING:
        return "No collective of several ranks could be compared, so the clocks could not be checked."
    if outcome == NOT_ALIGNED:
        if not all(line.fits for line in lines):
            return (
                "The reports' clocks could not be aligned: with every offset and drift, a rank ends a collective "
                "before the last began."
            )
        return (
            f"The reports' clocks could not be aligned well enough: they may be off by {_off(split)}. "
            f"{split.refused:,} of {split.refused + split.across:,} collectives over several reports are not split."
        )
    if outcome == CONTRADICTED:
        return (
            "In some collectives a rank ends before the last began, though one report has one clock: these kernels do "
            "not meet as assumed, or the GPUs' clocks were not converted well."
        )
    if not lines:
        return f"One clock; in {compared} no rank ends before the last began."
    if outcome == AGREE:
        return (
            f"By the reports' recorded clocks no rank ends one of {split.across:,} collectives before the last began; "
            f"they may be off by {_off(split)}."
        )
    start = f"The reports were aligned by {split.across:,} collectives; they may be off by {_off(split)}."
    broken = sum(line.recorded_violations or 0 for line in lines)
    if any(line.recorded_violations is None for line in lines):
        return f"{start} Not every report has a recorded clock."
    return f"{start} By the recorded clocks alone, a rank would end {broken:,} of them before the last began."


def _off(split: Split) -> str:
    lines = [aligned for aligned in split.aligned if aligned.line is not None]
    median = max(line.median_residual_ns for line in lines) / 1e3
    largest = max(line.most_residual_ns for line in lines) / 1e3
    return f"{median:,.1f} us, at times {largest:,.1f} us" if largest > median + 0.05 else f"{median:,.1f} us"
