"""Which step, layer and phase is open on a thread at a time: push/pop ranges as disjoint segments.

Ranges are half-open, start <= t < end. Each thread's ranges are flattened once into segments in which the set of
open ranges does not change; a lookup is then one binary search. Where ranges cross instead of nesting, the part
that both cover is ambiguous: it is marked so, not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe_analysis.attribution.micro_batch_threads import with_steps
from nvtxmoe_analysis.attribution.range_kinds import IDLE, LAYER, NONE, PHASE, STEP
from nvtxmoe_analysis.attribution.unusual_ranges import number_crossing, open_ranges
from nvtxmoe_analysis.core.arrays import Bools, Ints

#: Phase codes; 0 is in a layer but in no phase of it.
PHASE_NAMES = ("other", *schema.PHASES, "collective")

TIME_BITS = 47  # 39 hours in nanoseconds
#: Threads that a packed key can hold.
MOST_THREADS = 1 << (62 - TIME_BITS)
#: A closed range lasts less than an hour.
LONGEST_NS = 3_600_000_000_000
#: A range begins less than this (9.8 hours) before or after the median of all ranges, so that TIME_BITS hold the times
#: of all.
FAR_NS = 1 << 45

#: Why a range is left out, in the order in which a range is judged.
RANGE_REASONS = ("ends_before_start", "lasts_an_hour", "far_from_other_ranges")
#: Ranges inside one another that are worked out level by level; deeper ones, which no capture has, one by one.
DEEPEST = 32
MOST_LAYER = (1 << 31) - 1  # payloads carry it as i4


@dataclass(frozen=True)
class Segments:
    """What is open when, for all threads of an export.

    Attributes:
        tids: sorted globalTids that have ranges.
        keys: int64 [segments], thread index and start time packed; sorted.
        step: row of the step in ``Events.steps``, or -1.
        layer: layer number, or -1.
        phase: index into PHASE_NAMES (0 outside a layer too).
        idle: inside ``moe.idle``.
        crossing: two ranges that cover the segment cross.
        crossings: number of ranges that cross another.
        implausible: number of ranges left out, by RANGE_REASONS.
        unclosed: number of ranges, other than moe.step, that have no end.
    """

    tids: Ints
    keys: Ints
    origin_ns: int
    step: npt.NDArray[np.int32]
    layer: npt.NDArray[np.int32]
    phase: npt.NDArray[np.int8]
    idle: Bools
    crossing: Bools
    crossings: int
    implausible: Mapping[str, int] = field(default_factory=dict)
    unclosed: int = 0

    def find(self, tid: Ints, time_ns: Ints) -> npt.NDArray[np.int32]:
        """Segment open on each thread at each time. Segment 0 is the empty one."""
        if len(self.tids) == 0:
            return np.zeros(len(tid), dtype=np.int32)
        thread = np.searchsorted(self.tids, tid)
        thread[thread == len(self.tids)] = 0
        known = self.tids[thread] == tid
        keys = (thread.astype(np.int64) << TIME_BITS) | relative_ns(time_ns, self.origin_ns)
        segment = np.searchsorted(self.keys, keys, side="right") - 1
        return np.where(known, segment, 0).astype(np.int32)

    def start_ns(self, segment: npt.NDArray[np.int32]) -> Ints:
        """When each segment begins (ns); of segment 0, which has no beginning, it means nothing."""
        start: Ints = (self.keys[segment] & ((1 << TIME_BITS) - 1)) - 1 + self.origin_ns
        return start


def relative_ns(time_ns: Ints, origin_ns: int) -> Ints:
    """Times (any 64 bits) after an origin, from 1; what is earlier is 0, and what TIME_BITS can't hold the most."""
    least, latest = max(origin_ns - 1, _INT64.min), min(origin_ns + (1 << TIME_BITS) - 2, _INT64.max)
    relative: Ints = np.clip(time_ns, least, latest) - origin_ns + 1
    return relative


_INT64 = np.iinfo(np.int64)


def classify(ranges: pl.DataFrame, steps: pl.DataFrame) -> pl.DataFrame:
    """Add ``kind``, ``layer``, ``phase`` and ``step_row`` to ``Events.ranges``; ranges of other names are left out.

    Threads that run a micro-batch get the step of their process as a range of their own.
    """
    names = pl.col("name")
    is_layer = names.str.starts_with(schema.LAYER_PREFIX)
    phases = {schema.PHASE_PREFIX + p: i for i, p in enumerate(PHASE_NAMES) if i}
    kinds = {schema.IDLE: IDLE, schema.STEP: STEP, **dict.fromkeys(phases, PHASE)}
    numbered = names.str.strip_prefix(schema.LAYER_PREFIX).cast(pl.Int64, strict=False)
    by_row = steps.select("row", pl.int_range(pl.len(), dtype=pl.Int64).alias("step_row"))
    classified = (
        ranges.with_columns(
            kind=pl.when(is_layer).then(LAYER).otherwise(names.replace_strict(kinds, default=None)),
            phase=names.replace_strict(phases, default=0, return_dtype=pl.Int8),
            layer=pl.when(is_layer)
            .then(pl.coalesce("int64Value", numbered))
            .when(names.is_in(list(phases)))
            .then("int64Value")
            .otherwise(NONE)
            .fill_null(NONE)
            .clip(NONE, MOST_LAYER),
        )
        .filter(pl.col("kind").is_not_null())
        .join(by_row, on="row", how="left", maintain_order="left")
        .with_columns(pl.col("step_row").fill_null(NONE))
    )
    return with_steps(classified, step=STEP, layer=LAYER)


def flatten(ranges: pl.DataFrame) -> Segments:
    """Flatten classified ranges (see :func:`classify`) into segments.

    A range still open at the end of the capture lasts for ever. Ranges of no length contain nothing. Ranges with
    impossible times (RANGE_REASONS) are left out and counted.

    Raises:
        NvtxmoeError: ranges of MOST_THREADS threads or more.
    """
    reason = range_reasons(ranges["start"].to_numpy(), ranges["end"])
    numbers = np.bincount(reason[reason >= 0], minlength=len(RANGE_REASONS)).tolist()
    implausible = {name: number for name, number in zip(RANGE_REASONS, numbers, strict=True) if number}
    if implausible:
        ranges = ranges.filter(pl.Series(reason < 0))
    origin_ns = int(ranges["start"].min() or 0)  # type: ignore[arg-type]
    last_ns = (1 << TIME_BITS) - 3
    ordered = (
        ranges.with_columns(
            s=pl.col("start") - origin_ns,
            e=(pl.col("end") - origin_ns).fill_null(last_ns).clip(upper_bound=last_ns),
        )
        .filter(pl.col("e") > pl.col("s"))
        .sort(["globalTid", "s", "e", "kind", "row"], descending=[False, False, True, False, False])
    )
    tids = ordered["globalTid"].unique().sort().to_numpy()
    if len(tids) >= MOST_THREADS:
        raise NvtxmoeError(f"damaged: NVTX ranges of {len(tids):,} threads", remedy="Export the report again")
    thread = np.searchsorted(tids, ordered["globalTid"].to_numpy()).astype(np.int64)
    # Times start at 1, so that the state before a thread's first range is found at its time 0.
    opens = (thread << TIME_BITS) | (ordered["s"].to_numpy() + 1)
    closes = (thread << TIME_BITS) | (ordered["e"].to_numpy() + 1)
    walk = _boundaries(opens, closes)
    bounds, level, index, is_open = walk
    state = _fold(ordered, level, index, is_open, len(bounds))
    crossings = _walk_unusual(ordered, opens, closes, walk, state)
    # Of several boundaries at one time only the state after the last one lasts.
    lasting = np.append(bounds[1:] != bounds[:-1], True) if len(bounds) else np.zeros(0, dtype=np.bool_)
    return Segments(
        tids=tids,
        keys=np.concatenate([np.array([np.iinfo(np.int64).min]), bounds[lasting]]),
        origin_ns=origin_ns,
        step=_with_empty(state.step[lasting], NONE, np.int32),
        layer=_with_empty(state.layer[lasting], NONE, np.int32),
        phase=_with_empty(state.phase[lasting], 0, np.int8),
        idle=_with_empty(state.idle[lasting], 0, np.bool_),
        crossing=_with_empty(state.crossing[lasting], 0, np.bool_),
        crossings=crossings,
        implausible=implausible,
        unclosed=len(ranges.filter(pl.col("end").is_null() & (pl.col("kind") != STEP))),
    )


def range_reasons(start: Ints, end: pl.Series) -> npt.NDArray[np.int8]:
    """Why each range's times are impossible: index into RANGE_REASONS, -1 if they are possible.

    Parameters:
        start: ns, any 64 bits. end: likewise; null for a range without end.
    """
    reason = np.full(len(start), -1, dtype=np.int8)
    if not len(start):
        return reason
    # Differences of any two times fit unsigned 64 bits.
    middle = np.sort(start)[len(start) // 2]
    reason[np.where(start > middle, _distance(middle, start), _distance(start, middle)) > FAR_NS] = 2
    closed = end.is_not_null().to_numpy()
    stop = end.fill_null(0).to_numpy()
    reason[closed & (_distance(start, stop) >= LONGEST_NS)] = 1
    reason[closed & (stop < start)] = 0
    return reason


def _distance(first: npt.NDArray[Any] | np.int64, last: npt.NDArray[Any] | np.int64) -> npt.NDArray[np.uint64]:
    """``last - first`` modulo 2^64."""
    distance: npt.NDArray[np.uint64] = np.asarray(last).astype(np.uint64) - np.asarray(first).astype(np.uint64)
    return distance


@dataclass
class _State:
    step: Ints
    layer: Ints
    phase: Ints
    idle: Bools
    crossing: Bools


def _boundaries(opens: Ints, closes: Ints) -> tuple[Ints, Ints, Ints, Bools]:
    """Boundaries in time order: key, nesting level of the range, its index, whether it opens.

    At one time closes come first, inner before outer, then opens, outer before inner: the order in which they
    are put together here, kept by a stable sort.
    """
    number = len(opens)
    order = np.argsort(np.concatenate([closes[::-1], opens]), kind="stable")
    is_open = order >= number
    index = np.where(is_open, order - number, number - 1 - order)
    keys = np.where(is_open, opens[index], closes[index])
    depth = np.cumsum(np.where(is_open, 1, -1))
    level = np.where(is_open, depth, depth + 1)
    return keys, level, index, is_open


def _crossing_clusters(level: Ints, index: Ints, is_open: Bools) -> Ints:
    """Cluster numbers (see :func:`_clusters`) in which ranges cross.

    The depth rises and falls by one, so at each level opens and closes alternate. Ranges nest exactly when each
    such pair is one range: the first range to close that is not the innermost closes a level too deep.
    """
    order = np.lexsort((np.arange(len(level)), level))
    opened, closed = order[0::2], order[1::2]
    wrong = opened[index[opened] != index[closed]]
    clusters: Ints = np.unique(_clusters(level, is_open)[wrong])
    return clusters


def _clusters(level: Ints, is_open: Bools) -> Ints:
    """Number of the outermost range (or chain of crossing ones) that each boundary belongs to."""
    number: Ints = np.cumsum(is_open & (level == 1))
    return number


def _fold(ordered: pl.DataFrame, level: Ints, index: Ints, is_open: Bools, number: int) -> _State:
    """State after each boundary, from the outermost open range to the innermost."""
    kind = ordered["kind"].to_numpy()
    layer = ordered["layer"].to_numpy()
    phase = ordered["phase"].to_numpy().astype(np.int64)
    step_row = ordered["step_row"].to_numpy()
    depth = np.where(is_open, level, level - 1)
    state = _State(
        step=np.full(number, NONE, dtype=np.int64),
        layer=np.full(number, NONE, dtype=np.int64),
        phase=np.zeros(number, dtype=np.int64),
        idle=np.zeros(number, dtype=np.bool_),
        crossing=np.zeros(number, dtype=np.bool_),
    )
    position = np.arange(number)
    for current in range(1, min(int(level.max(initial=0)), DEEPEST) + 1):
        latest = np.maximum.accumulate(np.where(is_open & (level == current), position, -1))
        inside = np.flatnonzero((depth >= current) & (latest >= 0))
        covering = index[latest[inside]]
        _apply(state, inside, kind[covering], layer[covering], phase[covering], step_row[covering])
    return state


def _apply(state: _State, at: Ints, kind: Ints, layer: Ints, phase: Ints, step_row: Ints) -> None:
    """Let ranges of one nesting level take effect on the states at these positions."""
    is_step, is_layer, is_phase = kind == STEP, kind == LAYER, kind == PHASE
    state.step[at[is_step]] = step_row[is_step]
    state.idle[at[kind == IDLE]] = True
    state.layer[at[is_layer]] = layer[is_layer]
    state.phase[at[is_layer]] = 0
    # A phase names its layer, so that it counts where no layer range stands around it.
    known = is_phase & (layer >= 0)
    state.layer[at[known]] = layer[known]
    state.phase[at[is_phase]] = phase[is_phase]


def _walk_unusual(
    ordered: pl.DataFrame, opens: Ints, closes: Ints, walk: tuple[Ints, Ints, Ints, Bools], state: _State
) -> int:
    """Where ranges cross or lie deep, work out each segment from all ranges that cover it; the number that cross."""
    _, level, index, is_open = walk
    cluster = _clusters(level, is_open)
    deep = np.unique(cluster[level > DEEPEST])
    # All such clusters at once: between two of them no range is open.
    at = np.flatnonzero(np.isin(cluster, np.union1d(_crossing_clusters(level, index, is_open), deep)))
    if not len(at):
        return 0
    members, range_of = np.unique(index[at], return_inverse=True)
    ranges = ordered[members]
    kind, layer = ranges["kind"].to_numpy(), ranges["layer"].to_numpy()
    phase, step_row = ranges["phase"].to_numpy().astype(np.int64), ranges["step_row"].to_numpy()
    of_step, of_layer, of_phase, idle, crossing = open_ranges(range_of, is_open[at], kind, layer, closes[members])
    state.step[at] = np.where(of_step == NONE, NONE, step_row[of_step])
    state.idle[at] = idle
    state.layer[at] = np.where(of_layer == NONE, NONE, layer[of_layer])
    state.phase[at] = np.where((of_phase == NONE) | (kind[of_phase] == LAYER), 0, phase[of_phase])
    state.crossing[at] = crossing
    return number_crossing(opens[members], closes[members])


def _with_empty(values: npt.NDArray[Any], empty: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
    extended: npt.NDArray[Any] = np.concatenate([np.array([empty]), values]).astype(dtype)
    return extended
