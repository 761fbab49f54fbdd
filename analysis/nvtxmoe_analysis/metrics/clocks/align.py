"""The reports' clocks on one axis: which report is moved against which, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.core.grouping import runs
from nvtxmoe_analysis.metrics.clocks.fit import Line, Residual, fit_line, residual_of
from nvtxmoe_analysis.metrics.collectives.match import CollectiveKernels, MatchedCollectives, over_same_reports

Numbers = npt.NDArray[np.int32 | np.int64]

#: Last start and first end of a report that has no kernel in a collective.
NO_START, NO_END = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True)
class ReportBounds:
    """Collectives as each of some reports sees them.

    Attributes:
        family: int32 or int64 [collectives].
        last_start, first_end: int64 [reports, collectives], ns of the report's own time, over its ranks; NO_START and
            NO_END where none of its ranks take part.
    """

    family: Numbers
    last_start: Ints
    first_end: Ints

    def of_family(self, family: int) -> ReportBounds:
        """Those of one family."""
        in_family = self.family == family
        if in_family.all():
            return self
        return ReportBounds(self.family[in_family], self.last_start[:, in_family], self.first_end[:, in_family])

    def contradictions(self, tolerance_ns: int) -> npt.NDArray[np.bool_]:
        """Collectives in which, within one report, a rank ended so long before the last began."""
        early = np.zeros(len(self.family), dtype=np.bool_)
        for last, first in zip(self.last_start, self.first_end, strict=True):
            early |= (last != NO_START) & (last - first > tolerance_ns)
        return early

    def shared(self) -> Ints:
        """How many collectives each two reports share: int64 [reports, reports]."""
        present = self.last_start != NO_START
        if present.all():
            return np.full((len(present), len(present)), len(self.family))
        both: Ints = present.astype(np.int64) @ present.T
        return both

    def bounds(self, against: int, report: int, line: Line | None = None) -> tuple[Ints, Ints, Ints]:
        """Bounds of the offset between two reports, as ``clocks.fit.fit_line`` takes them.

        Parameters:
            line: what to add to the times of ``against`` first.
        """
        both = (self.last_start[against] != NO_START) & (self.last_start[report] != NO_START)
        last, first = self.last_start[against][both], self.first_end[against][both]
        if line is not None:
            last, first = last + line.at(last), first + line.at(first)
        own_last, own_first = self.last_start[report][both], self.first_end[report][both]
        return own_last, last - own_first, first - own_last


@dataclass(frozen=True)
class CollectiveBounds:
    """Collectives as all reports see them. Most are seen by few reports: each part is of those that see it.

    Attributes:
        parts: numbers of reports, rising, and what these see of collectives, a row each.
        reports: how many there are.
    """

    parts: Sequence[tuple[Ints, ReportBounds]]
    reports: int

    def families(self) -> list[int]:
        """Numbers of the families that have a collective, rising."""
        return sorted({int(family) for _, part in self.parts for family in np.unique(part.family)})

    def of_family(self, family: int) -> CollectiveBounds:
        """Those of one family."""
        of_family = [(numbers, part.of_family(family)) for numbers, part in self.parts]
        return CollectiveBounds([(numbers, part) for numbers, part in of_family if len(part.family)], self.reports)

    def contradictions(self, tolerance_ns: int) -> npt.NDArray[np.bool_]:
        """See :meth:`ReportBounds.contradictions`."""
        none = np.zeros(0, dtype=np.bool_)
        return np.concatenate([none, *(part.contradictions(tolerance_ns) for _, part in self.parts)])

    def shared(self) -> Ints:
        """See :meth:`ReportBounds.shared`."""
        both = np.zeros((self.reports, self.reports), dtype=np.int64)
        for numbers, part in self.parts:
            both[np.ix_(numbers, numbers)] += part.shared()
        return both

    def bounds(self, against: int, report: int, line: Line | None = None) -> tuple[Ints, Ints, Ints]:
        """See :meth:`ReportBounds.bounds`; two reports that share no collective have none."""
        parts = [np.zeros((3, 0), dtype=np.int64)]
        for numbers, part in self.parts:
            first, other = np.flatnonzero(numbers == against), np.flatnonzero(numbers == report)
            if len(first) and len(other):
                parts.append(np.stack(part.bounds(int(first[0]), int(other[0]), line)))
        time, low, high = np.concatenate(parts, axis=1)
        return time, low, high


def extents(kernels: CollectiveKernels, matched: Sequence[MatchedCollectives], reports: int) -> CollectiveBounds:
    """What each of so many reports sees of collectives: a part for each run of collectives over the same reports."""
    parts = []
    for matched_collectives in matched:
        for rows, of in over_same_reports(kernels, matched_collectives):
            numbers = np.unique(of).astype(np.int64)
            last, first = (np.empty((len(numbers), len(rows)), dtype=np.int64) for _ in range(2))
            for at, number in enumerate(numbers):
                kernel_rows = rows[:, of == number]
                last[at], first[at] = kernels.start[kernel_rows].max(axis=1), kernels.end[kernel_rows].min(axis=1)
            parts.append((numbers, ReportBounds(kernels.family[rows[:, 0]], last, first)))
    return CollectiveBounds(parts, reports)


@dataclass(frozen=True)
class Aligned:
    """How one report's clock was put on an axis.

    Attributes:
        reference: the report whose own time is the axis; itself, for that one.
        against: the report it was compared with, None for a reference.
        line: what to add to its times, None for a reference.
        residual: how far that may be off.
        inherited_ns: the most that the report it was compared with may be off itself.
        median_residual_ns, most_residual_ns: over the collectives that gave bounds.
        recorded_ns: what the recorded clocks say is to be added, None where they don't.
        recorded_violations: in how many of the collectives that would let a rank end before the last began.
    """

    reference: int
    against: int | None = None
    line: Line | None = None
    residual: Residual | None = None
    inherited_ns: float = 0.0
    median_residual_ns: float = 0.0
    most_residual_ns: float = 0.0
    recorded_ns: int | None = None
    recorded_violations: int | None = None

    @property
    def fits(self) -> bool:
        """Whether some offset and drift lets no rank end a collective before the last began."""
        return self.line is None or self.line.fits

    def residual_ns(self, time_ns: Ints) -> npt.NDArray[np.float64]:
        """How far times of the report may be off on the axis."""
        if self.residual is None:
            return np.zeros(len(time_ns))
        return self.residual.at(time_ns) + self.inherited_ns


def align(seen: CollectiveBounds | ReportBounds, epochs: Sequence[int | None]) -> list[Aligned]:
    """Put reports on one axis, by the collectives that they share.

    Each report is compared with that of the reports already there with which it shares the most collectives; where
    there is none, it is the reference of an axis of its own. What the recorded clocks say is kept where it lets no rank
    end a collective before the last began; else the line farthest from the bounds is taken.

    Parameters:
        seen: collectives whose ranks are known to wait for one another.
        epochs: unix time in ns of each report's time 0, None where it was not recorded.
    """
    shared = seen.shared()
    placed: dict[int, Aligned] = {}
    while len(placed) < len(epochs):
        left = [report for report in range(len(epochs)) if report not in placed]
        pairs = [(-shared[a, b], a, b) for a in placed for b in left if shared[a, b]]
        if pairs:
            _, against, report = min(pairs)
            placed[report] = _against(seen, placed[against], against, report, epochs)
        else:
            placed[left[0]] = Aligned(left[0])
    return [placed[report] for report in range(len(epochs))]


def moved(times: Ints, reports: Numbers, aligned: Sequence[Aligned]) -> Ints:
    """Times on the axis of their report's reference."""
    out: Ints = times.copy()
    for first, count in zip(*runs(reports), strict=True):
        line = aligned[reports[first]].line
        if line is not None:
            out[first : first + count] += line.at(times[first : first + count])
    return out


def residuals(times: Ints, reports: Numbers, aligned: Sequence[Aligned]) -> npt.NDArray[np.float64]:
    """How far times of these reports may be off on the axis of their report's reference, in ns."""
    out = np.zeros(len(times))
    for first, count in zip(*runs(reports), strict=True):
        out[first : first + count] = aligned[reports[first]].residual_ns(times[first : first + count])
    return out


def _against(
    seen: CollectiveBounds | ReportBounds, other: Aligned, against: int, report: int, epochs: Sequence[int | None]
) -> Aligned:
    time, low, high = seen.bounds(against, report, other.line)
    line = fit_line(time, low, high)
    own_epoch_ns, reference_epoch_ns = epochs[report], epochs[other.reference]
    recorded = None if own_epoch_ns is None or reference_epoch_ns is None else own_epoch_ns - reference_epoch_ns
    broken = None if recorded is None else int(((low > recorded) | (high < recorded)).sum())
    if recorded is not None and not broken:
        # What breaks nothing among so many bounds was recorded well.
        margin = float(np.minimum(high - recorded, recorded - low).min())
        line = Line(line.origin_ns, recorded, 0.0, margin, len(time))
    residual = residual_of(line, time, low, high)
    off = residual.at(time) + other.most_residual_ns
    return Aligned(
        reference=other.reference,
        against=against,
        line=line,
        residual=residual,
        inherited_ns=other.most_residual_ns,
        median_residual_ns=float(np.median(off)),
        most_residual_ns=float(off.max()),
        recorded_ns=recorded,
        recorded_violations=broken,
    )
