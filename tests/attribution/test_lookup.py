"""The index of launch calls, and groups of rows, against plain Python; dense and sparse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe_analysis.attribution import id_index
from nvtxmoe_analysis.attribution.id_index import Index
from nvtxmoe_analysis.core.grouping import dense

pids = st.sampled_from([0, 7, 3579, (1 << 24) - 1])
idents = st.one_of(st.integers(0, 300), st.integers((1 << 32) - 300, (1 << 32) - 1), st.integers(0, 1 << 37))
keys = st.lists(st.tuples(pids, idents), max_size=40)


@pytest.mark.parametrize("blocks_per_row", [0, 1 << 20])
@given(rows=keys, asked=keys)
def test_against_a_dictionary(blocks_per_row: int, rows: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_index, "BLOCKS_PER_ROW", blocks_per_row)
        patch.setattr(id_index, "DENSE_CONSTANT", blocks_per_row)
        index = Index(*(np.array([row[i] for row in rows], dtype=np.int64) for i in range(2)))
    first: dict[tuple[int, int], int] = {}
    for number, key in enumerate(rows):
        first.setdefault(key, number)
    wanted = [*asked, *rows]
    found = index.find(*(np.array([key[i] for key in wanted], dtype=np.int64) for i in range(2)))
    assert found.tolist() == [first.get(key, -1) for key in wanted]
    assert index.repeated == len(rows) - len(first)


def test_ids_that_count_up_are_dense_and_scattered_ones_are_not() -> None:
    ones = np.ones(1000, dtype=np.int64)
    assert Index(ones, np.arange(5000, 6000)).dense
    assert not Index(ones, np.arange(1000) << 26).dense


@pytest.mark.parametrize("distance", [1, 20, 30, 50, 100, 190])
def test_no_distance_of_ids_takes_much_memory(distance: int) -> None:
    rows = 500_000
    index = Index(np.ones(rows, dtype=np.int64), np.arange(rows) * distance)
    size_bytes = sum(array.nbytes for array in vars(index).values() if isinstance(array, np.ndarray))
    assert size_bytes < 50 * rows


@pytest.mark.parametrize(
    "keys", [[], [3], [-17, 4, -17, 0, 900], [-(1 << 63), (1 << 63) - 1, 5], [1 << 40, 7, 1 << 40]]
)
def test_dense_numbers(keys: list[int]) -> None:
    """Few or many values apart, negative ones too."""
    distinct, index = dense(np.array(keys, dtype=np.int64))
    assert distinct.tolist() == sorted(set(keys))
    assert distinct[index].tolist() == keys
