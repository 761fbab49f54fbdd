"""GPU operations and NVTX ranges whose times are impossible: told apart by reason, in no sum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe_analysis.attribution.layer_sums import cell_timings
from nvtxmoe_analysis.attribution.ranges import FAR_NS, LONGEST_NS, RANGE_REASONS, classify, flatten, range_reasons
from nvtxmoe_analysis.core.grouping import sums
from nvtxmoe_analysis.core.latest import latest
from tests.attribution.test_attribution import coverage, placed
from tests.support import brute_attribution
from tests.support.constructed_runs import simple
from tests.support.export_builder import Export, Process
from tests.support.written_results import Written, written

YEARS_59_NS = 59 * 365 * 86_400 * 10**9
INT64 = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1), st.sampled_from([-(1 << 63), (1 << 63) - 1, 0, 1, -1]), st.integers(0, 60)
)
Row = dict[str, Any]


def late(row: Row) -> None:
    """Let the kernel overrun the work after it by five seconds."""
    row["end"] = row["start"] + 5 * 10**9


IMPOSSIBLE: list[tuple[str, Callable[[Row], None]]] = [
    ("ends_before_start", lambda row: row.update(end=row["start"] - 500)),
    ("ends_before_start", lambda row: row.update(end=0)),
    ("lasts_an_hour", lambda row: row.update(end=row["start"] + YEARS_59_NS)),
    ("starts_before_launch", lambda row: row.update(start=row["start"] - 200_000, end=row["end"] - 200_000)),
    ("starts_an_hour_after_launch", lambda row: row.update(start=1 << 42, end=(1 << 42) + 100)),
    ("overruns_its_stream", late),
]


def one_bad_kernel(spoil: Callable[[Row], None], step: int | None = 1) -> Export:
    """Three steps of two layers; one kernel more in layer 0 of a step (None: before all steps), spoiled."""
    export = Export()
    worker = Process(export)
    export.now = 10**9
    worker.send_meta()
    bad = [worker.kernel(name="bad")] if step is None else []
    for number in range(3):
        with worker.step(number):
            for layer in range(2):
                with worker.layer(layer):
                    worker.kernel(100 * (layer + 1), name="good")
                    if (number, layer) == (step, 0):
                        bad.append(worker.kernel(name="bad"))
        for layer in range(2):
            worker.counts(number, layer, [3, 3, 0, 0])
            worker.topk(number, layer, [(0, 1)] * 3)
    spoil(bad[0])
    return export


def check_of(found: Written, name: str) -> dict[str, Any]:
    return next(check for check in found.validation["checks"] if check["name"] == name)


@pytest.mark.parametrize(("reason", "spoil"), IMPOSSIBLE)
def test_a_kernel_with_impossible_times_counts_in_no_sum(
    tmp_path: Path, reason: str, spoil: Callable[[Row], None]
) -> None:
    export = one_bad_kernel(spoil)
    bad = next(row for row in export.rows["CUPTI_ACTIVITY_KIND_KERNEL"] if row["demangledName"] == export.string("bad"))
    found = written(tmp_path, export)
    rows = found.rows("moe_layer_timings", "kernel_count", "kernel_time_ns", "busy_ns")
    assert rows == [("1", "100", "100"), ("1", "200", "200")] * 3
    assert set(found.rows("moe_kernel_timings", "kernel_name")) == {("good",)}
    told = found.validation["coverage"]["classes"]["implausible"]
    assert told["reasons"] == {reason: {"operations": 1, "time_ns": bad["end"] - bad["start"]}}
    assert found.validation["verdict"] == "incomplete"
    assert check_of(found, "operation_times")["figures"] == {
        "operations": 7, "implausible": 1, "implausible_in_steps": 1, "reasons": {reason: 1},
    }  # fmt: skip


def test_few_impossible_times_outside_steps_are_a_note(tmp_path: Path) -> None:
    export = one_bad_kernel(lambda row: row.update(end=0), step=None)
    assert check_of(written(tmp_path, export), "operation_times")["status"] == "fail"  # one of seven
    row = export.rows["CUPTI_ACTIVITY_KIND_KERNEL"][1]
    export.rows["CUPTI_ACTIVITY_KIND_KERNEL"] += [dict(row) for _ in range(1000)]
    (tmp_path / "more").mkdir()
    assert check_of(written(tmp_path / "more", export), "operation_times")["status"] == "warn"


def test_clocks_that_differ_are_no_fault_of_single_rows(tmp_path: Path) -> None:
    export = simple()
    for row in export.rows["CUPTI_ACTIVITY_KIND_KERNEL"]:
        row.update(start=row["start"] - 5_000_000, end=row["end"] - 5_000_000)
    found = written(tmp_path, export)
    assert "implausible" not in found.validation["coverage"]["classes"]
    assert check_of(found, "operation_times")["status"] == "fail"
    assert {time for (time,) in found.rows("moe_layer_timings", "kernel_count")} != {"0"}


def test_operations_of_one_replay_and_short_overlaps_are_possible(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    with worker.layer(0):
        worker.create_node(1)
        worker.create_node(2)
    worker.clone_node(11, 1)
    worker.clone_node(12, 2)
    with worker.step(0):
        launch = worker.call("cudaGraphLaunch_v10000")
        worker.kernel(3 * 10**9, correlation=launch, node=11)  # a branch of the graph runs beside the other
        worker.kernel(100, correlation=launch, node=12)
        worker.kernel(10**9, start=export.now + 4 * 10**9)
        worker.kernel(100, start=export.now + 4 * 10**9 + 500)
    found, _, _ = placed(export, tmp_path)
    assert "implausible" not in {place for place, _, _ in coverage(found)}


RANGE_FAULTS: list[tuple[str, Callable[[Row], None]]] = [
    ("ends_before_start", lambda row: row.update(end=row["start"] - 5)),
    ("ends_before_start", lambda row: row.update(end=0)),
    ("lasts_an_hour", lambda row: row.update(end=row["start"] + YEARS_59_NS)),
    ("far_from_other_ranges", lambda row: row.update(start=row["start"] + YEARS_59_NS, end=row["end"] + YEARS_59_NS)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("reason", "spoil"), RANGE_FAULTS)
def test_a_range_with_impossible_times_is_left_out(tmp_path: Path, reason: str, spoil: Callable[[Row], None]) -> None:
    export = simple()
    name = export.string("moe.layer.0")
    layers = [r for r in export.rows["NVTX_EVENTS"] if r["eventType"] == 59 and r["textId"] == name]
    columns = "step", "layer_idx", "kernel_time_ns", "busy_ns"
    before = written(tmp_path, export).rows("moe_layer_timings", *columns)
    spoil(layers[1])
    (tmp_path / "bad").mkdir()
    found = written(tmp_path / "bad", export)
    after = found.rows("moe_layer_timings", *columns)
    assert [row for row in after if row[:2] != ("1", "0")] == [row for row in before if row[:2] != ("1", "0")]
    assert found.validation["verdict"] == "incomplete"
    assert check_of(found, "range_times")["figures"] == {"implausible": 1, "unclosed": 0, "reasons": {reason: 1}}


def test_a_layer_without_an_end_makes_the_capture_incomplete(tmp_path: Path) -> None:
    export = simple()
    next(r for r in export.rows["NVTX_EVENTS"] if r["textId"] == export.string("moe.layer.1"))["end"] = None
    found = written(tmp_path, export)
    assert (found.validation["verdict"], check_of(found, "range_times")["figures"]["unclosed"]) == ("incomplete", 1)


# Against plain Python, with any 64 bits ------------------------------------------------------------------------------


@given(st.lists(st.tuples(INT64, st.one_of(st.none(), INT64)), max_size=12))
def test_reasons_of_any_ranges(rows: list[tuple[int, int | None]]) -> None:
    found = range_reasons(
        np.array([s for s, _ in rows], dtype=np.int64), pl.Series([e for _, e in rows], dtype=pl.Int64)
    )
    starts = sorted(s for s, _ in rows)
    wanted = []
    for start, end in rows:
        if end is not None and end < start:
            wanted.append("ends_before_start")
        elif end is not None and end - start >= LONGEST_NS:
            wanted.append("lasts_an_hour")
        else:
            wanted.append("far_from_other_ranges" if abs(start - starts[len(starts) // 2]) > FAR_NS else "")
    assert [RANGE_REASONS[reason] if reason >= 0 else "" for reason in found] == wanted


LIMITED = st.one_of(st.integers(-(1 << 61), 1 << 62), st.integers(0, 40))


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.sampled_from([3, 9]), LIMITED, st.one_of(st.none(), LIMITED)), max_size=10),
    st.lists(INT64, max_size=10),
)
def test_steps_open_at_any_time(rows: list[tuple[int, int, int | None]], asked: list[int]) -> None:
    """Ranges between the readers' limits, looked up at any times."""
    frame = pl.DataFrame(
        [(i, 1, t, s, e, "moe.step", None) for i, (t, s, e) in enumerate(rows)],
        schema={
            **dict.fromkeys(("row", "pid", "globalTid", "start", "end"), pl.Int64), "name": pl.String,
            "int64Value": pl.Int64,
        },
        orient="row",
    )  # fmt: skip
    segments = flatten(classify(frame, frame.select("row")))
    starts = sorted(s for _, s, _ in rows)
    for tid in (3, 9, 17):
        mine = [
            brute_attribution.Range(s, 1 << 70 if e is None else e, "moe.step", None, i)
            for i, (t, s, e) in enumerate(rows)
            if t == tid and (e is None or 0 < e - s < LONGEST_NS) and abs(s - starts[len(starts) // 2]) <= FAR_NS
        ]
        times = [time for time in asked if not starts or time - starts[0] < 1 << 46]
        found = segments.find(np.full(len(times), tid), np.array(times, dtype=np.int64))
        for time, at in zip(times, found, strict=True):
            want = brute_attribution.state(mine, time)
            assert bool(segments.crossing[at]) == want["crossing"]
            if not want["crossing"]:
                assert int(segments.step[at]) == (-1 if want["step"] is None else want["step"])


@given(st.lists(st.tuples(st.integers(0, 3), INT64, INT64), min_size=1, max_size=25))
def test_busy_time_of_a_cell_depends_on_no_other_cell(rows: list[tuple[int, int, int]]) -> None:
    frame = pl.DataFrame(
        {
            "step_row": pl.Series([s for s, _, _ in rows], dtype=pl.Int32),
            "layer": pl.Series([0] * len(rows), dtype=pl.Int32),
            "phase": pl.Series([0] * len(rows), dtype=pl.Int8),
            "kind": pl.Series([0] * len(rows), dtype=pl.Int8),
            "graph": [False] * len(rows),
            "start": pl.Series([b for _, b, _ in rows], dtype=pl.Int64),
            "end": pl.Series([e for _, _, e in rows], dtype=pl.Int64),
        }
    )
    for row in cell_timings(frame).iter_rows(named=True):
        mine = sorted((b, max(b, e)) for s, b, e in rows if s == row["step_row"])
        busy, reached = 0, mine[0][0]
        for begin, end in mine:
            busy += max(0, end - max(begin, reached))
            reached = max(reached, end)
        assert (row["gpu_start_ns"], row["gpu_end_ns"]) == (mine[0][0], reached)
        assert row["busy_ns"] == min(busy, (1 << 63) - 1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-(1 << 59), 1 << 59)), max_size=15))
def test_sums_are_exact(rows: list[tuple[int, int]]) -> None:
    index, values = (np.array([row[i] for row in rows], dtype=np.int64) for i in range(2))
    found = sums(index, values, 4)
    assert found.tolist() == [sum(value for group, value in rows if group == g) for g in range(4)]


PAIRS = st.lists(st.tuples(st.one_of(st.integers(0, 2), INT64), INT64), max_size=15)


@given(PAIRS, PAIRS)
def test_the_latest_row_before_a_time(rows: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    arrays = (np.array([pair[i] for pair in pairs], dtype=np.int64) for pairs in (rows, asked) for i in range(2))
    wanted = []
    for key, time in asked:
        before = [(t, i) for i, (k, t) in enumerate(rows) if k == key and t <= time]
        wanted.append(max(before)[1] if before else -1)
    assert latest(*arrays).tolist() == wanted
