"""Which kernels of different ranks are one collective, against a plain matching."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe_analysis.metrics.clocks.align import NO_END, NO_START, ReportBounds, extents
from nvtxmoe_analysis.metrics.collectives import match as match_module
from nvtxmoe_analysis.metrics.collectives.match import (
    NO_GROUP,
    NOT_CAPTURED,
    NOT_IN_STEP,
    NUMBERS_DIFFER,
    SPLIT,
    UNKNOWN,
    CollectiveKernels,
    MatchedCollectives,
    kernels,
    match,
)
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.outputs import collectives
from nvtxmoe_analysis.run.parallel_groups import SCHEMA

GROUPS = {0: (0, 3), 1: (0, 3), 2: (0, 3), 3: (3, 2), 4: (3, 2), 5: (5, 3)}  # rank 5's others were not captured
kernel = st.tuples(
    st.sampled_from([0, 1, 2, 3, 4, 5, 9, None]),  # rank; 9 is in no group
    st.sampled_from([0, 1, None]),  # step
    st.sampled_from([0, 1, None]),  # layer
    st.sampled_from(["combine", None]),
    st.sampled_from(["a", "b"]),
    st.integers(0, 1000),
)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(kernel, max_size=60, unique_by=lambda row: (row[0], row[5])))
def test_against_plain_matching(rows: list[tuple[Any, ...]]) -> None:
    """Also when the steps are matched one after the other: then the collectives come in the same order."""
    names = ("rank", "step", "layer", "phase", "kernel_name", "start")
    types = dict(zip(names, (pl.Int64, pl.Int64, pl.Int64, pl.String, pl.String, pl.Int64), strict=True))
    frame = pl.DataFrame(rows, schema=types, orient="row").with_columns(report=pl.lit(0), end=pl.col("start") + 1)
    groups = pl.DataFrame([(rank, *of) for rank, of in GROUPS.items()], schema=SCHEMA, orient="row")
    found = kernels(frame)
    met, reason = match(found, np.arange(len(rows)), groups)
    places: dict[Any, dict[int, list[int]]] = {}
    in_step: dict[Any, set[int]] = {}
    for at in sorted(range(len(rows)), key=lambda at: rows[at][5]):
        rank, step, layer, phase, name, _ = rows[at]
        if rank in GROUPS and step is not None:
            key = (GROUPS[rank], step, layer, phase if layer is not None else None, name)
            places.setdefault(key, {}).setdefault(rank, []).append(at)
            in_step.setdefault(key[:2], set()).add(rank)
    wanted = [SPLIT] * len(rows)
    together = []
    for at, (rank, step, *_) in enumerate(rows):
        if rank is None or step is None:
            wanted[at] = UNKNOWN
        elif rank not in GROUPS:
            wanted[at] = NO_GROUP
        elif rank == 5:
            wanted[at] = NOT_CAPTURED
    for key, by_rank in places.items():
        (group, size), step = key[0], key[1]
        if group == 5:
            continue
        if len(by_rank) == size and len({len(mine) for mine in by_rank.values()}) == 1:
            together += [tuple(ats) for ats in zip(*(by_rank[rank] for rank in sorted(by_rank)), strict=True)]
            continue
        for mine in by_rank.values():
            for at in mine:
                wanted[at] = NOT_IN_STEP if len(in_step[key[:2]]) < size else NUMBERS_DIFFER
    assert reason.tolist() == wanted
    assert sorted(tuple(row) for one in met for row in one.rows.tolist()) == sorted(together)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(match_module, "KERNELS_AT_ONCE", 1)
        parts, of_parts = match(found, np.arange(len(rows)), groups)
    assert of_parts.tolist() == wanted
    assert [one.rows.tolist() for one in parts] == [one.rows.tolist() for one in met]


@pytest.mark.parametrize("at_once", [1, 1 << 18])
def test_collectives_come_by_group_then_step(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """In the input they come by step: ranks 0 and 1 meet, and 2 and 3; the last step has two kernels, later first."""
    monkeypatch.setattr(match_module, "KERNELS_AT_ONCE", at_once)
    rows = [(rank, step, 100 * step + rank) for step in range(2) for rank in range(4)]
    rows += [(rank, 2, start + rank) for start in (400, 300) for rank in range(4)]
    frame = pl.DataFrame(rows, schema=["rank", "step", "start"], orient="row").with_columns(
        report=0, layer=0, phase=pl.lit("combine"), kernel_name=pl.lit("a"), end=pl.col("start") + 1
    )
    groups = pl.DataFrame([(rank, rank // 2 * 2, 2) for rank in range(4)], schema=SCHEMA, orient="row")
    found = kernels(frame)
    assert found.ordinal.tolist() == [0] * 8 + [1] * 4 + [0] * 4
    (met,), reason = match(found, np.arange(len(rows)), groups)
    assert set(reason.tolist()) == {SPLIT}
    assert met.rows.tolist() == [[0, 1], [4, 5], [12, 13], [8, 9], [2, 3], [6, 7], [14, 15], [10, 11]]


@settings(max_examples=60)
@given(st.lists(st.tuples(kernel, st.integers(0, 2), st.booleans()), max_size=30))
def test_order_of_the_table(rows: list[tuple[tuple[Any, ...], int, bool]]) -> None:
    """moe_collectives is sorted as polars would sort it, nulls last."""
    names = {"rank": pl.Int64, "step": pl.Int64, "layer": pl.Int64, "phase": pl.String, "kernel_name": pl.String}
    frame = pl.DataFrame(
        [(*one, ordinal, kept) for one, ordinal, kept in rows],
        schema={**names, "start": pl.Int64, "ordinal": pl.Int64, "kept": pl.Boolean},
        orient="row",
    )
    rest = ("wait_ns", "transfer_ns", "last_rank", "group_kind", "group", "ranks", "reason", "inferred")
    split = SimpleNamespace(frame=frame.with_columns(end=pl.col("start"), **dict.fromkeys(rest)))
    table = collectives.build(cast(RunMetrics, SimpleNamespace(collective_split=split, several_ranks=True)))
    keys = ["step", "layer", "kernel_name", "ordinal", "phase", "rank"]
    wanted = frame.filter("kept").select(keys).sort(keys, nulls_last=True)
    assert table.rename({"layer_idx": "layer"}).select(keys).equals(wanted)


@settings(max_examples=100)
@given(st.data())
def test_what_reports_see_against_dense_tables(data: st.DataObject) -> None:
    """Collectives of groups of several sizes over any reports, as kept by report and in tables of all reports."""
    reports = data.draw(st.integers(1, 4))
    number = st.integers(0, reports - 1)
    sizes = data.draw(st.lists(st.integers(1, 3), max_size=3, unique=True))
    met: list[MatchedCollectives] = []
    report: list[int] = []
    family: list[int] = []
    for size in sizes:
        # Neighbours are often over the same reports.
        runs = data.draw(
            st.lists(st.tuples(st.lists(number, min_size=size, max_size=size), st.integers(1, 3)), max_size=4)
        )
        first = len(report)
        for of, count in runs:
            report += of * count
            family += [
                one for one in data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)) for _ in of
            ]
        met.append(MatchedCollectives(np.arange(first, len(report)).reshape(-1, size)))
    start = np.array(data.draw(st.lists(st.integers(0, 100), min_size=len(report), max_size=len(report))), np.int64)
    end = start + np.array(
        data.draw(st.lists(st.integers(0, 90), min_size=len(report), max_size=len(report))), np.int64
    )
    of_report, of_family, none = np.array(report, np.int64), np.array(family, np.int64), np.zeros(len(report), np.int64)
    found = CollectiveKernels(of_report, none, none, none, of_family, none, start, end)
    rows = [row for one in met for row in one.rows]
    last, early = (np.full((reports, len(rows)), no) for no in (NO_START, NO_END))
    for at, row in enumerate(rows):
        for own in set(of_report[row].tolist()):
            mine = row[of_report[row] == own]
            last[own, at], early[own, at] = start[mine].max(), end[mine].min()
    dense = ReportBounds(np.array([of_family[row[0]] for row in rows], np.int64), last, early)
    seen = extents(found, met, reports)
    assert seen.families() == sorted(set(family))
    for sparse, whole in [(seen, dense), *((seen.of_family(one), dense.of_family(one)) for one in seen.families())]:
        shared = sparse.shared()
        assert shared.tolist() == whole.shared().tolist()
        assert sparse.contradictions(5).tolist() == whole.contradictions(5).tolist()
        for against, other in np.argwhere(shared):
            theirs = whole.bounds(int(against), int(other))
            assert np.array_equal(sparse.bounds(int(against), int(other)), theirs)
