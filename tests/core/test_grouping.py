"""Orders and groups of rows by integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe_analysis.core import grouping
from nvtxmoe_analysis.core.grouping import order_within

ROWS = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(0, 5), st.integers(-(2**63), 2**63 - 1)), min_size=0, max_size=60
)


@given(ROWS, st.booleans())
def test_rows_are_ordered_as_lexsort_orders_them(rows: list[tuple[int, int, int]], by_time: bool) -> None:
    """Whether or not they come in order of the second column."""
    columns = np.array(sorted(rows, key=lambda row: row[1:]) if by_time else rows, dtype=np.int64).reshape(-1, 3)
    key, second, third = columns.T
    assert order_within(key, second, third).tolist() == np.lexsort((third, second, key)).tolist()


def test_many_keys_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    key, time = random.integers(0, 50, 400), np.sort(random.integers(0, 90, 400))
    few = order_within(key, time)
    monkeypatch.setattr(grouping, "FEW_KEYS", 3)
    assert order_within(key, time).tolist() == few.tolist() == np.lexsort((time, key)).tolist()
