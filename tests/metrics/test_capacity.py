"""moe_capacity: counted by hand, and against a plain simulation that fills slots one assignment at a time."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.outputs.capacity import capacity, factors
from tests.support import naive_analysis
from tests.support.cli import RESULTS, analyze, refused, run
from tests.support.constructed_runs import simple
from tests.support.export_builder import Export, Process
from tests.support.sessions import journal, run_of
from tests.support.written_results import Written, literal, written

STEM = "moe_capacity"
COLUMNS = ("cells", "assignments", "slots", "over_capacity", "empty_slots", "cells_over")
DEFAULT = (1.0, 1.25, 1.5, 2.0)


def small_run() -> Export:
    """Top-2 of 4 experts: even routing gives 1.5 an expert in steps of 3 tokens, 4 in the step of 8."""
    export = Export()
    worker = Process(export)
    worker.send_meta()
    for step, tokens in ((0, 3), (1, 8), (2, 0)):
        with worker.step(step, tokens=tokens):
            worker.kernel()
    worker.counts(0, 0, [3, 2, 1, 0])
    worker.counts(0, 1, [2, 2, 1, 1])
    worker.counts(1, 0, [8, 4, 4, 0], tokens=8)
    worker.counts(2, 0, [0, 0, 0, 0], tokens=0)
    return export


def test_by_hand(tmp_path: Path) -> None:
    """Capacities of layer 0: 2, 2, 3, 3 in step 0, and 4, 5, 6, 8 in step 1. A step without tokens has none."""
    assert written(tmp_path, small_run()).text(STEM) == literal("""
        layer_idx,capacity_factor,cells,assignments,slots,over_capacity,over_capacity_pct,empty_slots,empty_slots_pct,cells_over
        0,1,2,22,24,5,22.7272727,7,29.1666667,2
        0,1.25,2,22,28,4,18.1818182,10,35.7142857,2
        0,1.5,2,22,36,2,9.09090909,16,44.4444444,1
        0,2,2,22,44,0,0,22,50,0
        1,1,1,6,8,0,0,2,25,0
        1,1.25,1,6,8,0,0,2,25,0
        1,1.5,1,6,12,0,0,6,50,0
        1,2,1,6,12,0,0,6,50,0
        ,1,3,28,32,5,17.8571429,9,28.125,2
        ,1.25,3,28,36,4,14.2857143,12,33.3333333,2
        ,1.5,3,28,48,2,7.14285714,22,45.8333333,1
        ,2,3,28,56,0,0,28,50,0
        """)


def test_layers_with_different_numbers_of_experts(tmp_path: Path) -> None:
    """Experts that a layer does not have are no slots."""
    export = Export()
    worker = Process(export, layers=2)
    worker.send_meta()
    worker.counts(0, 0, [6, 0, 0, 0, 0, 0])
    worker.counts(0, 1, [6, 0])
    found = written(tmp_path, export).rows(STEM, "layer_idx", "slots", "over_capacity", "empty_slots")
    assert (found[0], found[4]) == (("0", "6", "5", "5"), ("1", "6", "3", "3"))


def test_a_capacity_past_what_the_counts_need(tmp_path: Path) -> None:
    """Counts of 8 bits, and 400 slots an expert."""
    export = Export()
    worker = Process(export, layers=1)
    worker.send_meta()
    worker.counts(0, 0, [255, 145, 200, 200], tokens=400)
    found = written(tmp_path, export).rows(STEM, "slots", "over_capacity", "empty_slots")
    assert (found[0], found[3]) == (("800", "55", "55"), ("1600", "0", "800"))


def test_no_tokens_and_no_counts(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export, layers=1)
    worker.send_meta()
    worker.counts(0, 0, [0, 0, 0, 0], tokens=0)
    rows = written(tmp_path, export).text(STEM).splitlines()
    assert rows[1] == "0,1,0,0,0,0,,0,,0"
    (tmp_path / "none").mkdir()
    export = Export()
    Process(export).send_meta()
    assert written(tmp_path / "none", export).rows(STEM, "slots") == []


# Against a simulation ------------------------------------------------------------------------------------------------


def ceiling(factor: float, assignments: int, experts: int) -> int:
    """In decimals, as the factor is written."""
    exact = Decimal(repr(factor)) * assignments / experts
    return int(exact.to_integral_value(ROUND_CEILING))


def simulated(counts: list[int], factor: float) -> dict[str, int]:
    """Assignments come one by one; each takes a free slot of its expert or is over."""
    limit = ceiling(factor, sum(counts), len(counts))
    free = [limit] * len(counts)
    over = 0
    for expert, number in enumerate(counts):
        for _ in range(number):
            if free[expert]:
                free[expert] -= 1
            else:
                over += 1
    return {
        "cells": int(sum(counts) > 0), "assignments": sum(counts), "slots": limit * len(counts),
        "over_capacity": over, "empty_slots": sum(free), "cells_over": int(over > 0),
    }  # fmt: skip


def assert_simulated(found: Written, cells: list[tuple[int, list[int]]], chosen: tuple[float, ...]) -> None:
    """``cells`` are (layer, counts)."""
    table = pl.read_csv(found.folder / f"{STEM}.csv")
    layers = sorted({layer for layer, _ in cells})
    assert table.select("layer_idx", "capacity_factor").rows() == [(n, f) for n in (*layers, None) for f in chosen]
    for row in table.iter_rows(named=True):
        mine = [counts for layer, counts in cells if row["layer_idx"] in (layer, None)]
        parts = [simulated(counts, row["capacity_factor"]) for counts in mine]
        assert {name: row[name] for name in COLUMNS} == {name: sum(part[name] for part in parts) for name in COLUMNS}
        assert row["over_capacity_pct"] == pytest.approx(100 * row["over_capacity"] / row["assignments"], rel=1e-8)
        assert row["empty_slots_pct"] == pytest.approx(100 * row["empty_slots"] / row["slots"], rel=1e-8)
        # What is served is served in slots.
        assert row["assignments"] - row["over_capacity"] == row["slots"] - row["empty_slots"]


@pytest.mark.slow
@pytest.mark.parametrize("most", [20, 300, 70_000])
def test_random_counts(tmp_path: Path, most: int) -> None:
    """Of 8, 16 and 32 bits; capacities past the largest number of the type among them."""
    rng = np.random.default_rng(most)
    export = Export()
    worker = Process(export, layers=2, experts=8, top_k=1)
    worker.send_meta()
    cells = []
    for step in range(6):
        for layer in range(2):
            counts = (rng.integers(0, most, 8) * rng.integers(0, 2, 8)).tolist()
            counts[step] = most
            worker.counts(step, layer, counts, tokens=sum(counts))
            cells.append((layer, counts))
    found = written(tmp_path, export, capacity_factors=[1.1, 7.3])
    assert_simulated(found, cells, (1.0, 1.1, 1.25, 1.5, 2.0, 7.3))


def test_the_two_gpu_capture(golden_2gpu: Path, tmp_path: Path) -> None:
    """Counts by brute force, each group's once."""
    answer = naive_analysis.read(golden_2gpu)
    cells = [(key[2], list(answer.answer.cells[key].counts)) for key in answer.counted]
    assert_simulated(written(tmp_path, golden_2gpu), cells, DEFAULT)


@given(st.integers(0, 10**6), st.integers(1, 512), st.sampled_from([1.0, 1.1, 1.25, 1.3, 1.7, 2.0, 0.3, 2.55, 1000.0]))
def test_capacity_is_exact(assignments: int, experts: int, factor: float) -> None:
    """Where floats would round up once too often: 1.1 x 50 is 55.00000000000001 there."""
    found = capacity(np.array([assignments]), np.array([experts]), factor)
    assert found.tolist() == [ceiling(factor, assignments, experts)]


def test_floats_would_not_do() -> None:
    assert math.ceil(1.1 * (500 / 10)) == 56
    assert capacity(np.array([500]), np.array([10]), 1.1).tolist() == [55]


# Which factors, which cells ------------------------------------------------------------------------------------------


def test_factors_of_the_command(tmp_path: Path) -> None:
    source = small_run().save(tmp_path / "small.sqlite")
    more = ("--capacity-factor", "0.5", "--capacity-factor", "1.5", "--capacity-factor", "1.1")
    analyze(source, tmp_path / "out", *more)
    table = pl.read_csv(tmp_path / "out" / RESULTS / f"{STEM}.csv")
    assert table.filter(layer_idx=0)["capacity_factor"].to_list() == [0.5, 1, 1.1, 1.25, 1.5, 2]
    half = table.row(0, named=True)  # capacities 1 and 2 of four experts: 1 + 1 + 1 and 2 + 2 + 2 of 22 are served
    assert (half["slots"], half["over_capacity"], half["empty_slots"]) == (12, 13, 3)


@pytest.mark.parametrize("factor", ["0", "-1", "1001", "inf", "x"])
def test_factors_that_are_none(tmp_path: Path, factor: str) -> None:
    source = simple().save(tmp_path / "run.sqlite")
    ran = run("analyze", source, "-o", tmp_path / "out", "--capacity-factor", factor)
    refused(ran, "--capacity-factor")
    assert not (tmp_path / "out").exists()


def test_a_factor_that_is_not_a_number(tmp_path: Path) -> None:
    source = simple().save(tmp_path / "run.sqlite")
    ran = run("analyze", source, "-o", tmp_path / "out", "--capacity-factor", "nan")
    refused(ran, "nan is no capacity factor. Give one up to 1000, as 1.1")
    assert not (tmp_path / "out").exists()
    with pytest.raises(NvtxmoeError, match="-1 is no capacity factor"):
        factors([-1.0])


def test_they_are_stated(tmp_path: Path) -> None:
    found = written(tmp_path, simple(), capacity_factors=[3])
    assert found.validation["options"]["capacity_factors"] == [*DEFAULT, 3.0]


def test_filters_and_copies(tmp_path: Path) -> None:
    """Tensor-parallel copies count once; filters narrow."""
    ranks: list[Any] = [simple(rank=rank, pid=100 + rank, world_size=2, tp_size=2) for rank in range(2)]
    one = written(tmp_path, simple()).text(STEM)
    assert written(tmp_path, *ranks).text(STEM) == one
    found = written(tmp_path, simple(), selection=Selection(last_step=0, layers=frozenset({1})))
    assert found.rows(STEM, "layer_idx", "cells")[0] == ("1", "1")


def test_direct_mode(tmp_path: Path) -> None:
    journal(tmp_path, run_of())
    assert written(tmp_path, tmp_path).rows(STEM, "layer_idx", "cells")[0] == ("0", "3")
