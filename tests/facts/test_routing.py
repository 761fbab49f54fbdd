"""Features, totals, unions of intervals and the choice of counts, against plain Python on random data."""

from __future__ import annotations

from collections import defaultdict
from math import isclose, sqrt
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe_analysis.attribution.layer_sums import cell_timings, kernel_timings
from nvtxmoe_analysis.attribution.ranges import PHASE_NAMES
from nvtxmoe_analysis.events.meta import Layer, Meta
from nvtxmoe_analysis.events.tables import CountTable, TopkTable
from nvtxmoe_analysis.facts.routing_features import cell_features
from nvtxmoe_analysis.run import routing
from nvtxmoe_analysis.run.routing import cell_order, combine, totals
from scripts.bench.brute_force import busy_ns, launched_by

Row = tuple[int, int, int, list[int]]  # step, layer, rank, counts

COUNTS = st.lists(st.integers(0, 5000), min_size=1, max_size=9)
CELLS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), COUNTS),
    max_size=12,
    unique_by=lambda row: row[:3],
)


def table(rows: list[Row], pid_of_rank: int = 100) -> CountTable:
    """Cells of ranks whose processes are numbered from ``pid_of_rank`` on."""
    width = max((len(counts) for *_, counts in rows), default=0)
    cells = pl.DataFrame(
        [(i, pid_of_rank + r, i, s, n, r, 1, sum(c), len(c)) for i, (s, n, r, c) in enumerate(rows)],
        schema=dict.fromkeys(
            ("row", "pid", "start", "step", "layer", "rank", "num_tokens", "top_k", "num_experts"), pl.Int64
        ),
        orient="row",
    )
    matrix = np.array([c + [0] * (width - len(c)) for *_, c in rows], dtype=np.uint32).reshape(len(rows), width)
    return CountTable(cells, matrix)


def no_topk() -> TopkTable:
    columns = dict.fromkeys(("pid", "step", "layer", "top_k", "first", "tokens", "rank"), pl.Int64)
    empty = np.zeros((0, 0))
    return TopkTable(
        pl.DataFrame(schema=columns), np.zeros(0, np.int32), empty.astype(np.int32), empty.astype(np.float32)
    )


def meta(rank: int, tp_size: int, **layer: Any) -> Meta:
    layers = {n: Layer(n, None, 4, 2, None, **layer) for n in range(4)}
    return Meta(100 + rank, rank, 4, rank % tp_size, tp_size, layers, {})


@pytest.fixture(autouse=True, params=[2, 1 << 15], scope="module")
def chunk(request: pytest.FixtureRequest) -> Any:
    """Rows worked on at a time: results must not depend on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "CHUNK", request.param)
        yield


@given(CELLS)
def test_features(rows: list[Row]) -> None:
    found = cell_features(table(rows)).to_dicts()
    assert len(found) == len(rows)
    for cell, (*_, counts) in zip(found, rows, strict=True):
        mean = sum(counts) / len(counts)
        deviation = sqrt(sum((c - mean) ** 2 for c in counts) / len(counts))
        assert (cell["total"], cell["max_count"], cell["min_count"]) == (sum(counts), max(counts), min(counts))
        assert cell["active_experts"] == sum(c > 0 for c in counts)
        assert cell["mean_count"] == mean
        assert isclose(cell["std_dev"], deviation, rel_tol=1e-12, abs_tol=1e-12)
        assert cell["max_min_ratio"] == (max(counts) / min(counts) if min(counts) else None)
        expected = max(counts) * len(counts) / sum(counts) if sum(counts) else None
        assert cell["max_mean_ratio"] == expected


@given(CELLS)
def test_identities_of_imbalance(rows: list[Row]) -> None:
    for cell, (*_, counts) in zip(cell_features(table(rows)).to_dicts(), rows, strict=True):
        number, mean = len(counts), cell["mean_count"]
        assert isclose(mean * number, cell["total"], abs_tol=1e-9)
        assert isclose(cell["std_dev"] ** 2 + mean**2, sum(c * c for c in counts) / number, rel_tol=1e-9, abs_tol=1e-9)
        # Bhatia and Davis.
        bound = (cell["max_count"] - mean) * (mean - cell["min_count"])
        assert cell["std_dev"] ** 2 <= bound * (1 + 1e-9) + 1e-9
        assert (cell["max_mean_ratio"] is None) == (cell["total"] == 0)
        assert (cell["max_min_ratio"] is None) == (cell["min_count"] == 0)
        if cell["max_mean_ratio"] is not None:
            assert 1 - 1e-12 <= cell["max_mean_ratio"] <= number + 1e-9
        if cell["max_min_ratio"] is not None:
            assert cell["max_min_ratio"] >= cell["max_mean_ratio"] - 1e-12
        assert (cell["std_dev"] == 0) == (len(set(counts)) == 1)


@given(CELLS, st.integers(0, 3))
def test_totals(rows: list[Row], more: int) -> None:
    """Ragged cells, and experts that no cell mentions."""
    naive: dict[int, list[int]] = defaultdict(list)
    for _, layer, _, counts in rows:
        size = max(len(naive[layer]), len(counts))
        padded = [part + [0] * (size - len(part)) for part in (naive[layer], counts)]
        naive[layer] = [a + b for a, b in zip(*padded, strict=True)]
    experts = {layer: len(total) + more for layer, total in sorted(naive.items())}
    found = totals(table(rows), experts)
    assert {layer: total.tolist() for layer, total in found.items()} == {n: t + [0] * more for n, t in naive.items()}


@given(CELLS, st.sampled_from([1, 2, 4]), st.integers(0, 4))
def test_one_copy_of_a_group_counts(rows: list[Row], tp_size: int, cut: int) -> None:
    """However the ranks are spread over reports, the lowest rank of each group is taken, cell by cell."""
    chosen: dict[tuple[int, int, int], Row] = {}
    copies: list[tuple[Row, Row]] = []
    for row in sorted(rows, key=lambda r: r[2]):
        step, layer, rank, _ = row
        first = chosen.setdefault((rank // tp_size, step, layer), row)
        if first is not row:
            copies.append((first, row))
    parts = [[row for row in rows if row[2] < cut], [row for row in rows if row[2] >= cut]]
    metas = [{100 + r: meta(r, tp_size) for r in range(4)}] * 2
    found = combine([table(part) for part in parts], [no_topk()] * 2, metas)
    cells = found.counts.cells.select("group", "step", "layer", "rank").rows()
    wanted = sorted((*key, row[2]) for key, row in chosen.items())
    assert cells == wanted
    numbers = found.counts.cells["num_experts"].to_list()
    read = [found.counts.matrix[i, :n].tolist() for i, n in enumerate(numbers)]
    assert read == [chosen[group, step, layer][3] for group, step, layer, _ in wanted]

    def filled(counts: list[int]) -> list[int]:
        return counts + [0] * (9 - len(counts))

    differing = [(a, b) for a, b in copies if filled(a[3]) != filled(b[3])]
    assert (found.agreement.compared, found.agreement.differing) == (len(copies), len(differing))
    assert (found.agreement.example is None) == (not differing)


@given(
    st.lists(
        st.tuples(
            *[st.integers(-1, 2) | st.sampled_from([-(1 << 40), 1 << 40])] * 4, st.integers(0, 1), st.integers(0, 99)
        ),
        max_size=12,
        unique_by=lambda cell: cell[4:],
    )
)
def test_the_order_of_cells(cells: list[tuple[int, ...]]) -> None:
    """Also of numbers so far apart that no one key holds them."""
    names = ("group", "step", "layer", "rank", "report", "row")
    frame = pl.DataFrame(cells, schema=dict.fromkeys(names, pl.Int64), orient="row")
    assert [cells[at] for at in cell_order(frame)] == sorted(cells)


# Intervals ---------------------------------------------------------------------------------------------------------

SMALL = st.integers(0, 40)
HUGE = st.integers(0, 2**61)


def operations(times: st.SearchStrategy[int]) -> st.SearchStrategy[list[dict[str, Any]]]:
    one = st.fixed_dictionaries(
        {
            "step_row": st.integers(0, 3),
            "layer": st.sampled_from([0, 3, 17]),
            "phase": st.integers(0, len(PHASE_NAMES) - 1),
            "kind": st.integers(0, 2),
            "name": st.integers(1, 3),
            "graph": st.booleans(),
            "start": times,
            "end": times,
        }
    ).map(lambda op: {**op, "start": min(op["start"], op["end"]), "end": max(op["start"], op["end"])})
    return st.lists(one, min_size=1, max_size=30)


def frame(ops: list[dict[str, Any]]) -> pl.DataFrame:
    small = {"step_row": pl.Int32, "layer": pl.Int32, "phase": pl.Int8, "kind": pl.Int8, "graph": pl.Boolean}
    return pl.DataFrame(ops, schema={key: small.get(key, pl.Int64) for key in ops[0]})


@given(st.one_of(operations(SMALL), operations(HUGE)))
def test_time_of_cells(ops: list[dict[str, Any]]) -> None:
    """Sums, unions of intervals and extents, also where times are too far apart to be packed into keys."""
    groups: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for op in ops:
        groups[op["step_row"], op["layer"]].append(op)
    found = cell_timings(frame(ops))
    assert found.select("step_row", "layer").rows() == sorted(groups)
    for row in found.iter_rows(named=True):
        mine = groups[row["step_row"], row["layer"]]
        for kind, name in enumerate(("kernel", "memcpy", "memset")):
            lengths = [op["end"] - op["start"] for op in mine if op["kind"] == kind]
            assert row[f"{name}_count"] == len(lengths)
            if sum(lengths) < 2**53:  # what doubles add exactly: 104 days
                assert row[f"{name}_time_ns"] == sum(lengths)
        assert row["busy_ns"] == busy_ns((op["start"], op["end"]) for op in mine)
        extent = (min(op["start"] for op in mine), max(op["end"] for op in mine))
        assert (row["gpu_start_ns"], row["gpu_end_ns"]) == extent
        assert row["launched_by"] == launched_by({"graph" if op["graph"] else "eager" for op in mine})


@given(operations(SMALL))
def test_time_by_name(ops: list[dict[str, Any]]) -> None:
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for op in ops:
        way = "graph" if op["graph"] else "eager"
        key = (op["step_row"] % 2, op["layer"], PHASE_NAMES[op["phase"]], f"name {op['name']}", way)
        groups[key].append(op["end"] - op["start"])
    ranks = pl.Series("rank", [row % 2 for row in range(4)], dtype=pl.Int64)
    found = kernel_timings(frame(ops), {n: f"name {n}" for n in (1, 2, 3)}, ranks)
    # Grouped by step row's rank, so two rows of one rank come together.
    assert sorted(found.rows()) == sorted((*k, len(ns), sum(ns), min(ns), max(ns)) for k, ns in groups.items())
