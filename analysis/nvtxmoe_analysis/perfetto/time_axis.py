"""One axis of time for the reports of a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.metrics.clocks.align import Aligned
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

OWN, RECORDED, COLLECTIVES, NONE = "own", "recorded", "collectives", "none"

#: Times later than this are unix time, not time since a capture began: a year in ns.
MOST_OWN_NS = 365 * 86_400 * 10**9


@dataclass(frozen=True)
class Axis:
    """What to add to each report's times.

    Attributes:
        offsets_ns: by report.
        unix_ns: unix time of the axis's 0, None where no clock tells it.
        clock: ``own`` (one report, whose own time it is), ``recorded`` (the reports' recorded clocks), ``collectives``
            (they are wrong or missing for some report, and the collectives that it shares with others tell its
            offset), or ``none`` (some reports can't be put on one axis: each begins with its own 0).
    """

    offsets_ns: tuple[int, ...]
    unix_ns: int | None
    clock: str


def axis_of(results: RunMetrics) -> Axis:
    """The axis of a trace: the own time of one report; of several, of the one whose 0 comes first.

    A report's offset is one number, so that durations stay what they are. Where collectives tell it, it is that in the
    middle of the report's steps.
    """
    reports = results.reports
    epochs = [report.recorded_clock()[0] for report in reports]
    lines = [Aligned(i) for i in range(len(reports))] if results.direct else list(results.collective_split.aligned)
    root = [line.reference if line.line is not None and line.fits else i for i, line in enumerate(lines)]
    shift = [_shift(line, report) for line, report in zip(lines, reports, strict=True)]
    clock = COLLECTIVES if any(r != i and lines[i].recorded_violations != 0 for i, r in enumerate(root)) else RECORDED
    known = [epochs[r] for r in root]
    unix: int | None = None
    if len(set(root)) == 1:
        offsets, unix = shift, known[0]
    else:
        known_epochs = [epoch for epoch in known if epoch is not None]
        if len(known_epochs) == len(known):
            offsets, unix = [epoch + more for epoch, more in zip(known_epochs, shift, strict=True)], 0
        else:
            offsets, clock = shift, NONE
    first = min(offsets)
    if len(reports) > 1 and clock != NONE:
        offsets, unix = [offset - first for offset in offsets], None if unix is None else unix + first
    floor = min((o + t for o, report in zip(offsets, reports, strict=True) for t in _first_times(report)), default=0)
    if floor < 0 or floor > MOST_OWN_NS:
        offsets, unix = [offset - floor for offset in offsets], None if unix is None else unix + floor
    return Axis(tuple(offsets), unix if unix is not None and unix >= 0 else None, OWN if len(reports) == 1 else clock)


def _shift(line: Aligned, report: CaptureFacts) -> int:
    if line.line is None or not line.fits:
        return 0
    start = report.steps["start"].drop_nulls().to_numpy()
    middle = int(start[len(start) // 2]) if len(start) else line.line.origin_ns
    return int(line.line.at(np.array([middle], dtype=np.int64))[0])


def _first_times(report: CaptureFacts) -> Sequence[int]:
    columns = (
        report.steps["start"],
        report.events.ranges["start"],
        report.layers["gpu_start_ns"],
        report.collectives["start"],
    )
    least = (column.min() for column in columns)
    return [value for value in least if isinstance(value, int)]
