"""Features of cells: entropy, Gini, tiles and the rank's own experts, by hand and against plain Python."""

from __future__ import annotations

from itertools import product
from math import log2
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe_analysis.events.meta import Layer, Meta
from nvtxmoe_analysis.events.tables import CountTable
from nvtxmoe_analysis.facts import routing_features
from nvtxmoe_analysis.facts.routing_features import unevenness
from nvtxmoe_analysis.metrics.expert_tiles import block_sizes, count_tiles
from nvtxmoe_analysis.metrics.local_load import local_load

COUNTS = st.lists(st.integers(0, 5000), min_size=1, max_size=9)
ROWS = st.lists(COUNTS, max_size=12)


@pytest.fixture(autouse=True, params=[2, 1 << 15], scope="module")
def chunk(request: pytest.FixtureRequest) -> Any:
    """Rows worked on at a time: results must not depend on it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("facts.routing_features", "metrics.expert_tiles", "metrics.local_load"):
            patch.setattr(f"nvtxmoe_analysis.{module}.CHUNK", request.param)
        yield


def table(rows: list[list[int]], dtype: Any = np.uint32, **columns: list[int]) -> CountTable:
    """Cells of process 100, layer 0, a step each; as many experts as a row is long."""
    width = max(map(len, rows), default=0)
    cells = pl.DataFrame(
        {
            "pid": [100] * len(rows),
            "step": list(range(len(rows))),
            "layer": [0] * len(rows),
            "num_tokens": [sum(row) for row in rows],
            "num_experts": [len(row) for row in rows],
            **columns,
        },
        schema=dict.fromkeys(("pid", "step", "layer", "num_tokens", "num_experts"), pl.Int64),
    )
    matrix = np.array([row + [0] * (width - len(row)) for row in rows], dtype=dtype).reshape(len(rows), width)
    return CountTable(cells, matrix)


@pytest.mark.parametrize(
    ("counts", "entropy", "gini"),
    [
        ([5, 5, 5, 5], 2.0, 0.0),
        ([7, 0, 0, 0], 0.0, 0.75),  # 1 - 1/n
        ([3, 1, 0, 0], 0.811278124459133, 0.625),  # differences 2, 3, 3, 1, 1, 0: 2 x 10 / (2 x 4 x 4)
        ([9], 0.0, 0.0),
        ([0, 0], None, None),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_by_hand(counts: list[int], entropy: float | None, gini: float | None, dtype: Any) -> None:
    assert unevenness(table([counts], dtype)).rows() == [(pytest.approx(entropy), pytest.approx(gini))]


@given(ROWS)
def test_unevenness(rows: list[list[int]]) -> None:
    """The definitions, by all pairs of experts; cells of several numbers of experts in one matrix."""
    found = unevenness(table(rows)).rows()
    assert len(found) == len(rows)
    for (entropy, gini), counts in zip(found, rows, strict=True):
        total, number = sum(counts), len(counts)
        if not total:
            assert (entropy, gini) == (None, None)
            continue
        assert entropy == pytest.approx(-sum(c / total * log2(c / total) for c in counts if c), abs=1e-12)
        pairs = sum(abs(a - b) for a, b in product(counts, counts))
        assert gini == pytest.approx(pairs / (2 * number * total), abs=1e-12)
        assert 0 <= entropy <= log2(number) + 1e-12
        assert 0 <= gini <= 1 - 1 / number + 1e-12


def test_counts_beyond_the_table_of_logarithms() -> None:
    large = routing_features.MOST_TABLED * 3
    found = unevenness(table([[large, large, 2 * large]])).rows()
    assert found == [(pytest.approx(1.5), pytest.approx(1 / 6))]


def test_no_cells() -> None:
    assert unevenness(table([])).shape == (0, 2)
    assert count_tiles(table([]), np.zeros(0, dtype=np.int64)).tolist() == []


# Tiles -------------------------------------------------------------------------------------------------------------


def meta(*layers: Layer, rank: int = 0, tp_size: int = 1, world_size: int = 1, **raw: Any) -> dict[int, Meta]:
    """moe.meta of process 100 + rank."""
    said = {"ep_size": 1, **raw}
    return {100 + rank: Meta(100 + rank, rank, world_size, rank % tp_size, tp_size, {n.layer: n for n in layers}, said)}


@given(ROWS, st.integers(1, 70))
def test_tiles(rows: list[list[int]], block: int) -> None:
    """ceil(count / block) over the experts, for powers of two and others."""
    found = count_tiles(table(rows), np.full(len(rows), block))
    assert found.tolist() == [sum((c + block - 1) // block for c in counts) for counts in rows]


def test_tiles_of_several_blocks() -> None:
    assert count_tiles(table([[1, 16, 17], [1, 16, 17]], np.uint8), np.array([16, 3])).tolist() == [4, 1 + 6 + 6]


def test_block_sizes() -> None:
    """What moe.meta says; else the default by the cell's tokens, labelled so."""
    tokens = [0, 1, 32, 33, 96, 97, 512, 513, 8192, 40]
    cells = table([[0]] * len(tokens)).cells.with_columns(
        num_tokens=pl.Series(tokens), layer=pl.Series([0] * 9 + [1]), top_k=pl.lit(2)
    )
    found = block_sizes(cells, meta(Layer(0, None, 4, 2, None), Layer(1, None, 4, 2, None, block_m=48)))
    assert found["block_m"].to_list() == [16, 16, 16, 32, 32, 64, 64, 128, 128, 48]
    assert found["block_m_source"].to_list() == ["default"] * 9 + ["moe.meta"]
    # Of a process that announced nothing too.
    assert block_sizes(cells, {})["block_m_source"].to_list() == ["default"] * 10


def test_a_small_batch_has_a_tile_per_assignment() -> None:
    """tokens x top-k x 4 <= experts, if the process has no map of experts and moe.meta does not give block_m."""
    cells = table([[0] * 32] * 3).cells.with_columns(
        num_tokens=pl.Series([1, 2, 3]), top_k=pl.lit(4), num_experts=pl.lit(32)
    )
    layer = Layer(0, None, 32, 4, None)
    assert block_sizes(cells, meta(layer))["rows_per_tile"].to_list() == [1, 1, 16]
    assert block_sizes(cells, meta(layer, ep_size=None))["rows_per_tile"].to_list() == [1, 1, 16]
    for sorted_run in (meta(layer, ep_size=2, world_size=2), meta(layer, ep_size=None, world_size=2), {}):
        assert block_sizes(cells, sorted_run)["rows_per_tile"].to_list() == [16, 16, 16]
    told = meta(Layer(0, None, 32, 4, None, block_m=64))
    assert block_sizes(cells, told)["rows_per_tile"].to_list() == [64, 64, 64]
    assert block_sizes(cells, meta(layer))["block_m"].to_list() == [16, 16, 16]


# The rank's own experts --------------------------------------------------------------------------------------------

ROW = [5, 0, 2, 1]


def local(
    metas: dict[int, Meta], rows: list[list[int]] | None = None, physical: CountTable | None = None
) -> list[tuple[int | None, ...]]:
    counts = table(rows or [ROW])
    return local_load(counts, physical or table([]), metas, pl.Series([2] * len(counts))).rows()


UNKNOWN = (None,) * 5
WHOLE = (8, 3, 5, 3 + 1 + 1)


@pytest.mark.parametrize(
    ("metas", "wanted"),
    [
        # Without expert parallelism a rank holds all.
        (meta(Layer(0, None, 4, 2, None, expert_bytes=10)), (4, *WHOLE, 30)),
        (meta(Layer(0, None, 4, 2, None), tp_size=2, world_size=2), (4, *WHOLE, None)),
        (meta(Layer(0, None, 4, 2, (0, 1, 2, 3)), tp_size=2, world_size=2), (4, *WHOLE, None)),
        # With it, those that moe.meta names.
        (meta(Layer(0, None, 4, 2, (1, 2), expert_bytes=10), tp_size=2, world_size=2, ep_size=2), (2, 2, 1, 2, 1, 10)),
        (meta(Layer(0, None, 4, 2, (1,)), tp_size=2, world_size=2, ep_size=2), (1, 0, 0, 0, 0, None)),
        (meta(Layer(0, None, 4, 2, ()), tp_size=2, world_size=2, ep_size=2), (0, 0, 0, 0, 0, None)),
        (meta(Layer(0, None, 4, 2, None), tp_size=2, world_size=2, ep_size=2), (None, *UNKNOWN)),
        # An expert that the counts do not have.
        (meta(Layer(0, None, 9, 2, (3, 7)), tp_size=2, world_size=2, ep_size=2), (2, 1, 1, 1, 1, None)),
        # Tokens of other data-parallel ranks come too.
        (meta(Layer(0, None, 4, 2, (0, 1)), world_size=2, ep_size=2, dp_size=2), (2, *UNKNOWN)),
        (meta(Layer(0, None, 4, 2, (0, 1)), world_size=2, ep_size=2), (2, *UNKNOWN)),
        (meta(Layer(0, None, 4, 2, None), world_size=2, dp_size=2), (4, *UNKNOWN)),
        # A rank that says nothing of its size, or of the layer.
        (meta(Layer(0, None, 4, 2, None), world_size=2, ep_size=None), (None, *UNKNOWN)),
        (meta(Layer(1, None, 4, 2, None)), (None, *UNKNOWN)),
        ({}, (None, *UNKNOWN)),
        # EPLB: local_experts are physical ones, and moe.counts has logical ones.
        (meta(Layer(0, None, 4, 2, (0, 1, 4)), tp_size=2, world_size=2, ep_size=2, eplb=True), (3, *UNKNOWN)),
    ],
)
def test_local_load(metas: dict[int, Meta], wanted: tuple[int | None, ...]) -> None:
    assert local(metas) == [wanted]


def test_local_load_of_physical_experts() -> None:
    """Three of six slots; the second cell has no moe.physical, and another process's does not count."""
    layer = Layer(0, None, 4, 2, (1, 2, 5), expert_bytes=7)
    metas = meta(layer, tp_size=2, world_size=2, ep_size=2, eplb=True)
    physical = table([[9] * 6, [3, 0, 2, 1, 1, 1]], pid=[101, 100], step=[1, 0])
    assert local(metas, [ROW, ROW], physical) == [(3, 3, 2, 2, 2, 14), (3, *UNKNOWN)]
    assert local(meta(layer, tp_size=2, world_size=2, ep_size=2), [ROW], physical)[0][:3] == (3, 2, 1)


@given(ROWS, st.sets(st.integers(0, 8)))
def test_local_load_of_random_cells(rows: list[list[int]], held: set[int]) -> None:
    metas = meta(Layer(0, None, 9, 2, tuple(held), expert_bytes=3), tp_size=2, world_size=2, ep_size=2)
    wanted = []
    for counts in rows:
        mine = [c for expert, c in enumerate(counts) if expert in held]
        active = sum(c > 0 for c in mine)
        wanted.append((len(held), sum(mine), active, max(mine, default=0), sum((c + 1) // 2 for c in mine), 3 * active))
    found = local_load(table(rows), table([]), metas, pl.Series([2] * len(rows), dtype=pl.Int64))
    assert found.rows() == wanted
