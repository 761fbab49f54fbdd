"""Putting the clocks of two reports on one axis, by causality.

Every rank's kernel of a collective ends after the last rank's has begun. Seen from two reports, that bounds what has
to be added to the times of one to get those of the other, from both sides: with a the one that stays and b the one
that is moved, ``last start in a - first end in b <= offset <= first end in a - last start in b``. Clocks also run at
slightly different speeds, so the offset is a line in time. Of all lines between the bounds the one farthest from
them is taken. How far another line that fits can be from it, at a time, is the residual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats, Ints

Bounds = tuple[Floats, Floats]

#: Two clocks never run apart faster than this, as a share: the most that NTP and adjtime slew a clock by.
MOST_DRIFT = 500e-6
#: Times may contradict causality by so much: nsys converts each GPU's own time to the host's.
TOLERANCE_NS = 1_000
#: Steps of a search; its interval shrinks by a third or a half at each.
SEARCH_STEPS = 60
#: At how many times the residual is worked out.
RESIDUALS = 17


@dataclass(frozen=True)
class Line:
    """What to add to a report's times.

    Attributes:
        origin_ns, offset_ns: the offset at this time of the report that is moved.
        drift: by how much the offset grows, as a share of time.
        margin_ns: distance to the nearest bound; negative when no line fits.
        bounds: how many collectives gave bounds.
    """

    origin_ns: int
    offset_ns: int
    drift: float
    margin_ns: float
    bounds: int

    @property
    def fits(self) -> bool:
        """Whether the bounds leave a line, but for the tolerance."""
        return self.margin_ns >= -TOLERANCE_NS

    def at(self, time_ns: Ints) -> Ints:
        """The offset at these times of the report that is moved."""
        grown = np.rint(self.drift * (time_ns - self.origin_ns)).astype(np.int64)
        offset: Ints = self.offset_ns + grown
        return offset


@dataclass(frozen=True)
class Residual:
    """How far a line may be off.

    It is convex in time, so that values between the times at which it was worked out are no higher than a straight
    line between them says.

    Attributes:
        time_ns: of the report that is moved, rising; reach_ns: at these times.
    """

    time_ns: Ints
    reach_ns: Floats

    def at(self, time_ns: Ints) -> Floats:
        """The residual at times within the span of the bounds, in ns."""
        origin = self.time_ns[0]
        reach: Floats = np.interp(time_ns - origin, self.time_ns - origin, self.reach_ns)
        return reach


def fit_line(time_ns: Ints, low: Ints, high: Ints) -> Line:
    """The line that stays farthest from bounds.

    Parameters:
        time_ns: when each bound holds, in the time of the report that is moved; at least one.
        low, high: bounds of the offset at these times.
    """
    tube = _Tube(time_ns, low, high)
    # Where lines of different drift are about as good, the one with the least.
    drift = _highest(lambda b: tube.margin(b) - 1e-6 * abs(b) * tube.end, -MOST_DRIFT, MOST_DRIFT) if tube.end else 0.0
    offset = (_least(tube.above, drift, 0.0) - _least(tube.below, -drift, 0.0)) / 2
    return Line(tube.origin, tube.base + round(offset), drift, tube.margin(drift), len(time_ns))


def residual_of(line: Line, time_ns: Ints, low: Ints, high: Ints) -> Residual:
    """How far other lines between the bounds can be from one: from that of :func:`fit_line`, or any that keeps to them.

    Where no line fits, the bounds are moved apart by as much as it takes.
    """
    tube = _Tube(time_ns, low, high)
    slack = max(0.0, -line.margin_ns)
    first, last = _feasible(lambda b: tube.margin(b) + slack, line.drift) if tube.end else (0.0, 0.0)
    offset = float(line.offset_ns - tube.base)
    times: Ints = np.unique(np.sort(time_ns)[np.linspace(0, len(time_ns) - 1, RESIDUALS).round().astype(np.int64)])

    def reach(at: float) -> float:
        largest = _highest(lambda b: _least(tube.above, b, at), first, last)
        least = _highest(lambda b: _least(tube.below, -b, at), first, last)
        chosen = offset + line.drift * at
        return slack + max(_least(tube.above, largest, at) - chosen, _least(tube.below, -least, at) + chosen)

    return Residual(times, np.array([reach(float(at - tube.origin)) for at in times]))


class _Tube:
    """Bounds as floats about an origin: of the offset from above, and of its negative."""

    def __init__(self, time_ns: Ints, low: Ints, high: Ints) -> None:
        order = np.argsort(time_ns, kind="stable")
        self.origin, self.base = int(time_ns[order[0]]), int(low[order[0]])
        t = (time_ns[order] - self.origin).astype(np.float64)
        self.end = float(t[-1])
        self.above = _nearest(t, (high[order] - self.base).astype(np.float64))
        self.below = _nearest(t, (self.base - low[order]).astype(np.float64))

    def margin(self, drift: float) -> float:
        """Distance of the best line of a drift to the nearest bound."""
        return (_least(self.above, drift, 0.0) + _least(self.below, -drift, 0.0)) / 2


def _nearest(t: Floats, bound: Floats) -> Bounds:
    """Those upper bounds that can be the nearest one to a line of drift up to MOST_DRIFT; ``t`` rises."""
    left, right = bound - MOST_DRIFT * t, bound + MOST_DRIFT * t
    before = np.minimum.accumulate(np.append(np.inf, left[:-1]))
    after = np.minimum.accumulate(np.append(right[1:], np.inf)[::-1])[::-1]
    # Of equal ones the last is kept.
    in_reach = (left <= before) & (right < after)
    return t[in_reach], bound[in_reach]


def _least(bounds: Bounds, drift: float, at: float) -> float:
    """The highest that a line of this drift can lie at a time without passing an upper bound."""
    t, bound = bounds
    return float((bound - drift * (t - at)).min())


def _highest(function: Callable[[float], float], first: float, last: float) -> float:
    """Where a concave function is highest, by ternary search; 0 where it is as high there."""
    low, high = first, last
    for _ in range(SEARCH_STEPS):
        third = (high - low) / 3
        if function(low + third) < function(high - third):
            low += third
        else:
            high -= third
    middle = (low + high) / 2
    return 0.0 if first <= 0 <= last and function(0.0) >= function(middle) else middle


def _feasible(margin: Callable[[float], float], best: float) -> tuple[float, float]:
    """The drifts about ``best`` up to which a concave margin is not negative."""
    ends: list[float] = []
    for edge in (-MOST_DRIFT, MOST_DRIFT):
        inside, outside = best, edge
        holds = margin(edge) >= 0
        for _ in range(0 if holds else SEARCH_STEPS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if margin(middle) >= 0 else (inside, middle)
        ends.append(edge if holds else inside)
    return ends[0], ends[1]
