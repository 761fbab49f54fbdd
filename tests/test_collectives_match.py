"""Which kernels of different ranks are one collective, against a plain matching."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe_analysis.collective_match import (
    NO_GROUP,
    NOT_CAPTURED,
    NOT_IN_STEP,
    NUMBERS_DIFFER,
    SPLIT,
    UNKNOWN,
    kernels,
    meet,
)
from nvtxmoe_analysis.rank_groups import SCHEMA

GROUPS = {0: (0, 3), 1: (0, 3), 2: (0, 3), 3: (3, 2), 4: (3, 2), 5: (5, 3)}  # rank 5's others were not captured
kernel = st.tuples(
    st.sampled_from([0, 1, 2, 3, 4, 5, 9, None]),  # rank; 9 is in no group
    st.sampled_from([0, 1, None]),  # step
    st.sampled_from([0, 1, None]),  # layer
    st.sampled_from(["combine", None]),
    st.sampled_from(["a", "b"]),
    st.integers(0, 1000),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(kernel, max_size=60, unique_by=lambda row: (row[0], row[5])))
def test_against_plain_matching(rows: list[tuple[Any, ...]]) -> None:
    names = ("rank", "step", "layer", "phase", "kernel_name", "start")
    types = dict(zip(names, (pl.Int64, pl.Int64, pl.Int64, pl.String, pl.String, pl.Int64), strict=True))
    frame = pl.DataFrame(rows, schema=types, orient="row").with_columns(report=pl.lit(0), end=pl.col("start") + 1)
    groups = pl.DataFrame([(rank, *of) for rank, of in GROUPS.items()], schema=SCHEMA, orient="row")
    found = kernels(frame)
    met, reason = meet(found, np.arange(len(rows)), groups)
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
