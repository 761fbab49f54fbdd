"""What a rank's experts got in the real capture of two data-parallel ranks, against plain Python over its rows."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from nvtxmoe.formats import schema
from tests.run.test_local_load_data_parallel import COLUMNS, Loads, loads
from tests.support.naive_step_sums import block_m, tiles
from tests.support.written_results import Written, written

EVENTS = (
    "SELECT e.start, e.globalTid >> 24 & 0xFFFFFF, s.value, e.binaryData FROM NVTX_EVENTS e "
    "JOIN StringIds s ON s.id = e.textId WHERE s.value IN (?, ?, ?, ?) ORDER BY e.start"
)


def real_loads(path: Path) -> tuple[Loads, set[tuple[int, int]]]:
    """From the rows of a capture of two data-parallel ranks, by their own numbers; (rank, step) of idle batches."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute(EVENTS, (schema.META, schema.STEP, schema.IDLE, schema.COUNTS)).fetchall()
    metas = {pid: json.loads(blob[40:]) for _, pid, name, blob in rows if name == schema.META}
    next_number: dict[int, int] = defaultdict(int)
    steps: dict[tuple[int, int], int] = {}
    idle: set[tuple[int, int]] = set()
    counts: dict[tuple[int, int, int], list[int]] = {}
    for _, pid, name, blob in rows:
        rank = metas[pid]["rank"]
        if name == schema.STEP:
            (one,) = np.frombuffer(blob[32:], dtype=schema.STEP_DTYPE)
            assert next_number[rank] == one["step"]  # captured from the first batch on, none is missing
            steps[rank, int(one["step"])] = int(one["num_tokens"])
        elif name == schema.IDLE:
            idle.add((rank, next_number[rank]))
        elif name == schema.COUNTS:
            (cell,) = np.frombuffer(blob[32:], dtype=schema.counts_dtype(32))
            counts[rank, int(cell["step"]), int(cell["layer"])] = cell["counts"].tolist()
            continue
        next_number[rank] += name in (schema.STEP, schema.IDLE)
    layers = {meta["rank"]: {one["layer"]: one for one in meta["layers"]} for meta in metas.values()}
    wanted: Loads = {}
    for rank, number in steps:
        for layer, said in layers[rank].items():
            sent = [counts[other, number, layer] for other in (0, 1) if (other, number) in steps]
            assert len(sent) == 2 or (1 - rank, number) in idle
            tokens = sum(steps.get((other, number), 0) for other in (0, 1))
            mine = [sum(one[expert] for one in sent) for expert in said["local_experts"]]
            active = sum(count > 0 for count in mine)
            of_tiles = tiles(mine, block_m(tokens))
            weight = active * said["expert_bytes"]
            wanted[rank, number, layer] = tuple(map(str, (sum(mine), active, max(mine), weight, of_tiles)))
    return wanted, idle


@pytest.fixture(scope="module")
def real(golden_vllm_ranks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Written:
    return written(tmp_path_factory.mktemp("dp2"), golden_vllm_ranks["dp2"])


def test_the_real_capture(real: Written, golden_vllm_ranks: dict[str, Path]) -> None:
    wanted, idle = real_loads(golden_vllm_ranks["dp2"])
    assert loads(real, *COLUMNS, "local_expert_tiles") == wanted
    assert len(wanted) == 4 * 57
    assert {(1, 27), (1, 28), (1, 29)} <= idle  # rank 0 still had requests
    # Both ranks' experts together got both ranks' assignments.
    both: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for (_, number, layer), (activations, total) in loads(real, "local_activations", "total_activations").items():
        both[number, layer][0] += int(activations)
        both[number, layer][1] += int(total)
    assert all(mine == total for (number, _), (mine, total) in both.items() if number < 27)


def test_ranks_of_the_real_capture_meet_in_steps_of_one_number(real: Written) -> None:
    """That the numbers are those of one batch, the clocks tell: in no exchange does a rank end before both began."""
    said = real.json("moe_straggler")
    assert (said["clock"]["verdict"], said["clock"]["contradictions"]) == ("agree", 0)
    collectives = said["collectives"]
    assert {(one["reason"], one["kernels"]) for one in collectives["not_split"]} == {("rank_not_in_step", 24)}
    assert (collectives["kernels"], collectives["split"]) == (456, 432)
    met: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    rows = real.rows(
        "moe_collectives", "step", "layer_idx", "ordinal", "kernel_name", "start_ns", "duration_ns", "wait_ns", "reason"
    )
    for row in rows:
        met[row[:4]].append(row[4:])
    for place, kernels in met.items():
        if int(place[0]) >= 27:
            assert [reason for *_, reason in kernels] == ["rank_not_in_step"]
            continue
        last = max(int(start) for start, *_ in kernels)
        assert len(kernels) == 2
        assert all(int(wait) == last - int(start) < int(ns) for start, ns, wait, _ in kernels)


def test_the_straggler_of_the_real_capture_has_more_to_do(real: Written) -> None:
    """In decode steps, whose tiles hold all of an expert's tokens, the rank with more active experts takes longer."""
    active = {cell: int(n) for cell, (n,) in loads(real, "local_active_experts").items()}
    rows = real.rows("moe_straggler", "step", "layer_idx", "excess_ns", "slowest_rank")
    cells = [(int(s), int(n), int(slow)) for s, n, excess, slow in rows if excess and 7 <= int(s) < 27]
    unequal = [(s, n, slow) for s, n, slow in cells if active[0, s, n] != active[1, s, n]]
    assert len(unequal) > 50
    agree = sum(active[slow, s, n] > active[1 - slow, s, n] for s, n, slow in unequal)
    assert agree / len(unequal) > 0.9


def test_load_is_among_the_features_of_the_real_capture(real: Written) -> None:
    features = {row for row in real.rows("moe_layer_model", "feature", "reason") if row[0].startswith("local_")}
    assert {feature for feature, _ in features} >= {"local_activations", "local_active_experts"}
    assert not any("not known" in reason for _, reason in features)
