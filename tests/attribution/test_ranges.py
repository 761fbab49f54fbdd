"""Flattening of ranges, against a brute force over every one of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe_analysis.attribution import ranges as ranges_module
from nvtxmoe_analysis.attribution.ranges import PHASE_NAMES, Segments, classify, flatten
from nvtxmoe_analysis.attribution.unusual_ranges import Open, number_crossing, open_ranges
from nvtxmoe_analysis.core.arrays import Ints
from tests.support import brute_attribution

NAMES = ["moe.idle", "moe.step", "moe.layer.0", "moe.layer.1", "moe.experts", "moe.route", "moe.collective"]
TIDS = [3, (1 << 48) | (7 << 24) | 9]

Row = tuple[int, int, int | None, str, int]


def segments_of(rows: list[Row]) -> tuple[Segments, pl.DataFrame]:
    """Flatten (tid, start, end, name, layer value) rows."""
    ranges = pl.DataFrame(
        [
            (i, 1, t, s, e, n, v if n not in {"moe.idle", "moe.step"} else None)
            for i, (t, s, e, n, v) in enumerate(rows)
        ],
        schema={
            "row": pl.Int64, "pid": pl.Int64, "globalTid": pl.Int64, "start": pl.Int64, "end": pl.Int64,
            "name": pl.String, "int64Value": pl.Int64,
        },
        orient="row",
    )  # fmt: skip
    steps = ranges.filter(pl.col("name") == "moe.step").select("row")
    return flatten(classify(ranges, steps)), steps


def check(rows: list[Row], times: list[int]) -> None:
    """Compare every (thread, time) with the brute force."""
    segments, steps = segments_of(rows)
    step_rows = steps["row"].to_list()
    for tid in {*TIDS, 12345}:
        mine = [
            brute_attribution.Range(
                s, 1 << 60 if e is None else e, n, v if n not in {"moe.idle", "moe.step"} else None, i
            )
            for i, (t, s, e, n, v) in enumerate(rows)
            if t == tid and (e is None or e > s)
        ]
        found = segments.find(np.full(len(times), tid), np.array(times))
        for time, at in zip(times, found, strict=True):
            want = brute_attribution.state(mine, time)
            assert bool(segments.crossing[at]) == want["crossing"], (tid, time)
            if want["crossing"]:
                continue
            step = int(segments.step[at])
            assert (None if step < 0 else step_rows[step]) == want["step"], (tid, time)
            layer = int(segments.layer[at])
            assert (None if layer < 0 else layer) == want["layer"], (tid, time)
            assert PHASE_NAMES[segments.phase[at]] == (want["phase"] or "other"), (tid, time)
            assert bool(segments.idle[at]) == want["idle"], (tid, time)


def layer_of(name: str, value: int) -> int:
    return int(name.rsplit(".", 1)[1]) if name.startswith("moe.layer.") else value


anything = st.lists(
    st.tuples(
        st.sampled_from(TIDS), st.integers(0, 30), st.one_of(st.none(), st.integers(0, 32)),
        st.sampled_from(NAMES), st.integers(0, 2),
    ).map(lambda r: (r[0], r[1], r[2], r[3], layer_of(r[3], r[4]))),
    max_size=12,
)  # fmt: skip


@given(anything)
def test_any_ranges_crossing_or_not(rows: list[Row]) -> None:
    check(rows, list(range(-1, 36)))


@st.composite
def nested(draw: st.DrawFn, start: int = 0, end: int = 40, depth: int = 4) -> list[Row]:
    """Ranges that nest, as push and pop make them."""
    rows: list[Row] = []
    at = start
    while depth and at < end and draw(st.booleans()):
        first = draw(st.integers(at, end - 1))
        last = draw(st.integers(first, end))
        name = draw(st.sampled_from(NAMES))
        rows.append((TIDS[0], first, last, name, layer_of(name, draw(st.integers(0, 2)))))
        rows += draw(nested(first, last, depth - 1))
        at = last
    return rows


@given(nested())
def test_nested_ranges_never_cross(rows: list[Row]) -> None:
    assert segments_of(rows)[0].crossings == 0
    check(rows, list(range(-1, 42)))


def test_the_number_of_crossing_ranges() -> None:
    rows: list[Row] = [
        (3, 0, 10, "moe.step", 0),
        (3, 5, 15, "moe.layer.1", 1),  # crosses the step
        (3, 20, 30, "moe.step", 0),
        (3, 22, 25, "moe.layer.0", 0),
    ]
    segments, _ = segments_of(rows)
    assert segments.crossings == 2
    find = segments.find(np.full(5, 3), np.array([4, 5, 12, 22, 26]))
    assert segments.crossing[find].tolist() == [False, True, False, False, False]
    assert segments.step[find].tolist() == [0, 0, -1, 1, 1]
    assert segments.layer[find].tolist() == [-1, 1, 1, 0, -1]


def test_a_range_open_at_the_end_lasts() -> None:
    segments, _ = segments_of([(3, 5, None, "moe.step", 0), (3, 7, 9, "moe.layer.1", 1)])
    find = segments.find(np.full(4, 3), np.array([4, 8, 9, 1 << 45]))
    assert segments.step[find].tolist() == [-1, 0, 0, 0]
    assert segments.layer[find].tolist() == [-1, 1, -1, -1]


def test_no_ranges_at_all() -> None:
    segments, _ = segments_of([])
    assert segments.find(np.array([3]), np.array([5])).tolist() == [0]
    assert segments.step[0] == -1


def test_a_step_holds_for_threads_that_run_its_micro_batches() -> None:
    """Such a thread has layers and no step; a thread with steps of its own keeps them, and so does another process."""
    process = 7 << 24
    main, first, second, other = process | 1, process | 2, process | 3, (8 << 24) | 1
    rows: list[Row] = [
        (main, 100, 200, "moe.step", 0),
        (first, 110, 120, "moe.layer.0", 0),
        (first, 112, 118, "moe.experts", 0),
        (second, 125, 130, "moe.layer.0", 0),
        (main, 300, 400, "moe.step", 0),
        (first, 310, 320, "moe.layer.1", 1),
        (second, 250, 260, "moe.layer.1", 1),  # between steps
        (other, 110, 120, "moe.layer.0", 0),
    ]
    segments, _ = segments_of(rows)

    def at(tid: int, time: int) -> tuple[int, int]:
        (found,) = segments.find(np.array([tid]), np.array([time]))
        return int(segments.step[found]), int(segments.layer[found])

    assert [at(first, time) for time in (105, 115, 121, 199, 200, 311)] == [
        (0, -1), (0, 0), (0, -1), (0, -1), (-1, -1), (1, 1),
    ]  # fmt: skip
    assert [at(second, time) for time in (126, 255, 350)] == [(0, 0), (-1, 1), (-1, -1)]
    assert at(other, 115) == (-1, 0)
    assert [at(main, time) for time in (115, 350)] == [(0, -1), (1, -1)]
    assert segments.crossings == 0


@given(nested())
def test_deep_ranges_are_worked_out_as_shallow_ones_are(rows: list[Row]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges_module, "DEEPEST", 1)
        check(rows, list(range(-1, 42)))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=12))
def test_the_number_of_crossing_ranges_against_every_pair(spans: list[tuple[int, int]]) -> None:
    spans = sorted((start, start + length) for start, length in spans)
    wanted = sum(any(a < c < b < d or c < a < d < b for c, d in spans) for a, b in spans)
    starts, ends = (np.array([span[at] for span in spans], np.int64) for at in (0, 1))
    assert number_crossing(starts, ends) == wanted


@pytest.mark.timeout(300)  # pair by pair this takes hours
def test_very_many_crossing_ranges() -> None:
    number = 20_000
    rows: list[Row] = [(3, at, at + number, "moe.layer.1", 1) for at in range(number)]
    segments, _ = segments_of(rows)
    assert segments.crossings == number
    assert segments.crossing[segments.find(np.full(2, 3), np.array([number // 2, 0]))].tolist() == [True, False]


def test_many_crossings_apart_from_each_other_are_worked_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    number = 1_000
    rows: list[Row] = [
        row
        for at in range(0, 40 * number, 40)
        for row in ((3, at, at + 20, "moe.layer.1", 1), (3, at + 10, at + 30, "moe.layer.2", 2))
    ]
    walks: list[int] = []

    def counted(index: Ints, *columns: Any) -> Open:
        walks.append(len(index))
        return open_ranges(index, *columns)

    monkeypatch.setattr(ranges_module, "open_ranges", counted)
    segments, _ = segments_of(rows)
    assert walks == [4 * number]
    assert segments.crossings == 2 * number
    at = segments.find(np.full(5, 3), 40 * (number // 2) + np.array([5, 15, 25, 35, 45]))
    assert segments.layer[at].tolist() == [1, 2, 2, -1, 1]
    assert segments.crossing[at].tolist() == [False, True, False, False, False]


@pytest.mark.timeout(300)  # level by level this takes minutes
def test_very_deep_ranges() -> None:
    number = 50_000
    rows: list[Row] = [(3, at, 2 * number - at, "moe.step" if at == 7 else "moe.layer.1", 1) for at in range(number)]
    segments, _ = segments_of(rows)
    assert segments.crossings == 0
    found = segments.find(np.full(3, 3), np.array([6, number, 2 * number]))
    assert segments.step[found].tolist() == [-1, 0, -1]
    assert segments.layer[found].tolist() == [1, 1, -1]
