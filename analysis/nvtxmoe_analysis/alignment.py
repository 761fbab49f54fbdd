"""The reports' clocks on one axis: which report is moved against which, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvtxmoe_analysis.clocks import Line, Residual, fit_line, residual_of
from nvtxmoe_analysis.collective_match import Kernels, Met

Ints = npt.NDArray[np.int64]

#: Last start and first end of a report that has no kernel in a collective.
NO_START, NO_END = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True)
class Extents:
    """Collectives as each report sees them.

    Attributes:
        family: int64 [collectives].
        last_start, first_end: int64 [reports, collectives], ns of the report's own time, over its ranks; NO_START and
            NO_END where none of its ranks take part.
    """

    family: Ints
    last_start: Ints
    first_end: Ints

    def of_families(self, families: Ints) -> Extents:
        """Those of some families."""
        mine = np.isin(self.family, families)
        return Extents(self.family[mine], self.last_start[:, mine], self.first_end[:, mine])

    def contradictions(self, tolerance_ns: int) -> npt.NDArray[np.bool_]:
        """Collectives in which, within one report, a rank ended so long before the last began."""
        present = self.last_start != NO_START
        early = np.where(present, self.last_start, 0) - np.where(present, self.first_end, 0) > tolerance_ns
        return np.asarray(early.any(axis=0))

    def shared(self) -> Ints:
        """How many collectives each two reports share: int64 [reports, reports]."""
        has = (self.last_start != NO_START).astype(np.int64)
        both: Ints = has @ has.T
        return both

    def bounds(self, against: int, report: int, line: Line | None = None) -> tuple[Ints, Ints, Ints]:
        """Bounds of the offset between two reports, as ``clocks.fit_line`` takes them.

        Parameters:
            line: what to add to the times of ``against`` first.
        """
        both = (self.last_start[against] != NO_START) & (self.last_start[report] != NO_START)
        last, first = self.last_start[against][both], self.first_end[against][both]
        if line is not None:
            last, first = last + line.at(last), first + line.at(first)
        own_last, own_first = self.last_start[report][both], self.first_end[report][both]
        return own_last, last - own_first, first - own_last


def extents(found: Kernels, met: Sequence[Met], reports: int) -> Extents:
    """What each of so many reports sees of collectives."""
    parts: list[tuple[Ints, Ints, Ints]] = []
    for one in met:
        of, start, end = found.report[one.rows], found.start[one.rows], found.end[one.rows]
        last = np.stack([np.where(of == r, start, NO_START).max(axis=1) for r in range(reports)])
        first = np.stack([np.where(of == r, end, NO_END).min(axis=1) for r in range(reports)])
        parts.append((found.family[one.rows[:, 0]], last, first))
    none = np.zeros((reports, 0), dtype=np.int64)
    parts.append((none[0], none, none))
    return Extents(*(np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)))


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


def align(seen: Extents, epochs: Sequence[int | None]) -> list[Aligned]:
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


def moved(times: Ints, reports: Ints, aligned: Sequence[Aligned]) -> Ints:
    """Times on the axis of their report's reference."""
    out: Ints = times.copy()
    for report, one in enumerate(aligned):
        if one.line is not None:
            at = reports == report
            out[at] += one.line.at(times[at])
    return out


def _against(seen: Extents, other: Aligned, against: int, report: int, epochs: Sequence[int | None]) -> Aligned:
    time, low, high = seen.bounds(against, report, other.line)
    line = fit_line(time, low, high)
    mine, theirs = epochs[report], epochs[other.reference]
    recorded = None if mine is None or theirs is None else mine - theirs
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
