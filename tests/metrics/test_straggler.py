"""moe_straggler: the slowest rank's own work against the mean's, on runs whose answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.metrics import straggler, straggler_totals
from nvtxmoe_analysis.metrics.straggler import once_a_step_ns, stragglers
from nvtxmoe_analysis.metrics.straggler_totals import waiting
from nvtxmoe_analysis.metrics.wait_transfer import split
from nvtxmoe_analysis.run.parallel_groups import EXPERT, SCHEMA, rank_groups
from tests.support.collective_simulation import GATHER, Run, uneven
from tests.support.export_builder import Export, Process
from tests.support.written_results import literal, written

#: Own work in ns by step, layer and rank.
PLANTED = {(0, 0): (5000, 7000), (0, 1): (9000, 3000), (1, 0): (4000, 4000), (1, 1): (2000, 6001)}


def planted(step: int, layer: int, rank: int) -> int:
    return PLANTED[step, layer][rank]


def test_whole_table(tmp_path: Path) -> None:
    """Ranks wait for the slowest since they last met. So the mean rank's wait is the layer's excess, but for the 10 ns
    by which the first reduction ends later on rank 1."""
    found = written(tmp_path, *Run([[0, 1]], planted, steps=2).build())
    assert found.text("moe_straggler") == literal("""
        step,layer_idx,group,ranks,ranks_in_group,mean_own_ns,max_own_ns,excess_ns,slowest_rank,collectives,wait_ns,transfer_ns
        0,0,0,2,2,6000,7000,1000,1,1,2000,8010
        0,1,0,2,2,6000,9000,3000,0,1,5990,8010
        1,0,0,2,2,4000,4000,0,0,1,0,8010
        1,1,0,2,2,4000.5,6001,2000.5,1,1,4011,8010
        """)


def test_document(tmp_path: Path) -> None:
    """By hand: max is 7 + 9 + 4 + 6.001 us, mean 6 + 6 + 4 + 4.0005. In step 0 the ranks' own work is 14 and 10, in
    step 1 6 and 10.001: did they meet once a step they would lose 2 and 2.0005."""
    found = written(tmp_path, *Run([[0, 1]], planted, steps=2).build())
    said = found.json("moe_straggler")
    assert (said["reason"], said["ranks"]) == (None, [0, 1])
    assert said["groups"] == [{"group": 0, "ranks": [0, 1], "ranks_in_group": 2}]
    cost = said["straggler"]
    assert (cost["cells"], cost["cells_not_of_all_ranks"]) == (4, 0)
    assert cost["mean_own_us"] == pytest.approx(20.0005, abs=1e-3)
    assert (cost["max_own_us"], cost["excess_us"]) == (26.001, pytest.approx(6.0005, abs=1e-3))
    # A step's GPU time is own work, waits and transfers: both ranks' are the same but for 10 ns of an end.
    gpu = [14_000 + 2 * 4000 + 2000, 10_000 + 2 * 4010 + 5990]
    gpu_1 = [6000 + 2 * 4000 + 4011, 10_001 + 2 * 4010]
    balance = cost["perfect_balance"]
    assert balance["steps_gpu_us"] == pytest.approx((sum(gpu) + sum(gpu_1)) / 2 / 1e3, abs=1e-3)
    assert balance["saves_us"] == cost["excess_us"]
    assert balance["of_layers_pct"] == pytest.approx(100 * 6000.5 / 26_001)
    assert balance["of_steps_pct"] == pytest.approx(100 * 6000.5 / ((sum(gpu) + sum(gpu_1)) / 2))
    assert balance["saves_us_if_ranks_met_once_a_step"] == pytest.approx(4.0005, abs=1e-3)
    assert balance["bound"].startswith("upper")
    assert cost["wait_us_a_rank"] == pytest.approx((2000 + 5990 + 4011) / 2e3, abs=1e-3)
    assert cost["excess_of_wait_pct"] == pytest.approx(100 * 6000.5 / (12_001 / 2))
    assert cost["slowest_rank"] == [
        {"rank": 0, "cells": 2, "pct": 50.0},
        {"rank": 1, "cells": 2, "pct": 50.0},
    ]
    assert cost["per_step"] == {
        "steps": 2,
        "excess_us": {"p50": 3.0, "p90": 3.8, "p99": 3.98, "max": 4.0},
    }
    first, second = cost["per_layer"]
    assert (first["layer_idx"], first["cells"], first["excess_us"], first["collectives"]) == (0, 2, 1.0, 2)
    assert first["of_layer_pct"] == pytest.approx(100 / 11)
    assert (first["wait_us"], first["wait_us_a_rank"]) == (2.0, 1.0)
    assert second["excess_us"] == pytest.approx(5.0005, abs=1e-3)
    assert second["slowest_rank"] == {"rank": 0, "cells": 1, "pct": 50.0}


def test_steps_quantiles(tmp_path: Path) -> None:
    """Step s loses s us: linearly interpolated between steps."""
    run = Run([[0, 1]], lambda step, layer, rank: 1000 + 2000 * step * rank, steps=5, layers=1)
    said = written(tmp_path, *run.build()).json("moe_straggler")["straggler"]["per_step"]
    assert said == {"steps": 5, "excess_us": {"p50": 2.0, "p90": 3.6, "p99": 3.96, "max": 4.0}}


def test_what_comes_before_the_layers_is_no_excess(tmp_path: Path) -> None:
    """Rank 1 is launched 300 us late, and works as long as rank 0: all of the waiting is for that."""
    run = Run([[0, 1]], lambda *_: 5000, before_ns=lambda step, rank: 1000 + 300_000 * rank, steps=2, layers=1)
    cost = written(tmp_path, *run.build()).json("moe_straggler")["straggler"]
    assert (cost["excess_us"], cost["excess_of_wait_pct"], cost["wait_us_a_rank"]) == (0.0, 0.0, 300.0)


def test_collectives_are_no_own_work(tmp_path: Path) -> None:
    """Also one in a phase of the layer that is not moe.collective: dispatch of tokens."""
    export = Export()
    for rank in range(2):
        worker = Process(export, pid=100 + rank, rank=rank, world_size=2, tp_size=2, layers=1, meta={"ep_size": 2})
        worker.send_meta()
        with worker.step(0), worker.layer(0):
            with worker.phase("dispatch", 0):
                worker.kernel(10_000 - 3000 * rank, GATHER, start=50_000 + 3000 * rank)
            with worker.phase("experts", 0):
                worker.kernel(2000 + 1000 * rank, "fused", start=70_000)
        worker.counts(0, 0, [2, 2, 1, 1])
    found = written(tmp_path, export)
    assert found.text("moe_straggler").splitlines()[1:] == ["0,0,0,2,2,2500,3000,500,1,1,3000,14000"]


def test_each_group_for_itself(tmp_path: Path) -> None:
    """Two tensor-parallel engines without anything in common: the slow engine is not the fast one's straggler."""
    run = Run([range(4)], lambda step, layer, rank: 1000 * (rank + 1), steps=1, layers=1, tp_size=2,
              meta=lambda rank: {"ep_size": 1, "dp_size": 1})  # fmt: skip
    found = written(tmp_path, *run.build())
    key = ("group", "ranks", "mean_own_ns", "max_own_ns", "excess_ns", "slowest_rank")
    assert found.rows("moe_straggler", *key) == [
        ("0", "2", "1500", "2000", "500", "1"),
        ("2", "2", "3500", "4000", "500", "3"),
    ]


def test_engines_that_share_experts(tmp_path: Path) -> None:
    """Data-parallel ranks with tokens of their own: one expert-parallel group of four."""
    run = Run([range(4)], lambda step, layer, rank: 1000 * (rank + 1), steps=1, layers=1, tp_size=2, name=GATHER,
              meta=lambda rank: {"dp_size": 2})  # fmt: skip
    found = written(tmp_path, *run.build())
    assert found.rows("moe_straggler", "group", "ranks", "mean_own_ns", "excess_ns", "slowest_rank") == [
        ("0", "4", "2500", "1500", "3")
    ]


def test_a_rank_whose_step_is_missing(tmp_path: Path) -> None:
    """What the slowest of all did is not known: no excess, and it is counted."""
    run = Run([[0, 1]], planted, steps=2)
    (export,) = run.build()
    steps = [row for row in export.rows["NVTX_EVENTS"] if row["textId"] == export.strings["moe.step"]]
    steps[1].update(textId=export.string("moe.idle"), binaryData=None)
    ident = export.strings["moe.counts"]
    export.rows["NVTX_EVENTS"] = [
        row
        for row in export.rows["NVTX_EVENTS"]
        if row["textId"] != ident or row["globalTid"] & 0xFFFFFF == 100 or row["start"] > steps[3]["start"]
    ]
    found = written(tmp_path, export)
    rows = found.rows("moe_straggler", "step", "layer_idx", "ranks", "ranks_in_group", "excess_ns", "slowest_rank")
    assert rows == [
        ("0", "0", "1", "2", "", ""),
        ("0", "1", "1", "2", "", ""),
        ("1", "0", "2", "2", "0", "0"),
        ("1", "1", "2", "2", "2000.5", "1"),
    ]
    cost = found.json("moe_straggler")["straggler"]
    assert (cost["cells"], cost["cells_not_of_all_ranks"], cost["excess_us"]) == (2, 2, pytest.approx(2.0005, abs=1e-3))


def test_ranks_that_are_left_out(tmp_path: Path) -> None:
    found = written(tmp_path, *Run([[0, 1]], planted, steps=1).build(), selection=Selection(ranks=frozenset({1})))
    columns = ("layer_idx", "ranks", "ranks_in_group", "excess_ns", "collectives", "wait_ns")
    assert found.rows("moe_straggler", *columns) == [("0", "1", "2", "", "1", "0"), ("1", "1", "2", "", "1", "5990")]
    cost = found.json("moe_straggler")["straggler"]
    assert (cost["cells"], cost["excess_us"], cost["perfect_balance"]["of_steps_pct"]) == (0, 0.0, None)


def test_selected_layers_and_steps(tmp_path: Path) -> None:
    exports = Run([[0, 1]], planted, steps=2).build()
    chosen = Selection(layers=frozenset({1}), first_step=1)
    found = written(tmp_path, *exports, selection=chosen)
    assert found.rows("moe_straggler", "step", "layer_idx", "excess_ns") == [("1", "1", "2000.5")]
    assert found.json("moe_straggler")["collectives"]["kernels"] == 2


def test_formats(tmp_path: Path) -> None:
    found = written(tmp_path, *Run([[0, 1]], planted, steps=2).build(), formats=("csv", "parquet"))
    table = pl.read_parquet(found.folder / "moe_straggler.parquet")
    floats = {"mean_own_ns", "excess_ns"}
    assert table.schema == {name: pl.Float64 if name in floats else pl.Int64 for name in table.columns}
    assert table["excess_ns"].to_list() == [1000.0, 3000.0, 0.0, 2000.5]


# Groups of ranks ----------------------------------------------------------------------------------------------------


def groups_of(**sizes: Any) -> dict[str, list[tuple[int, int]]]:
    """Group and size of each rank, by kind."""
    world = sizes.pop("world_size")
    tp_size = sizes.pop("tp_size", 1)
    metas = [
        Process(Export(), pid=rank, rank=rank, world_size=world, tp_size=tp_size, meta=sizes) for rank in range(world)
    ]
    read = [
        Meta(pid=rank, rank=rank, world_size=world, tp_rank=0, tp_size=tp_size, layers={}, raw=one.meta)
        for rank, one in enumerate(metas)
    ]
    return {kind: frame.sort("rank").select("group", "size").rows() for kind, frame in rank_groups(read).items()}


def test_groups_of_ranks() -> None:
    # Tensor parallelism, with experts divided or spread: the same ranks.
    assert groups_of(world_size=2, tp_size=2, ep_size=1)[EXPERT] == [(0, 2), (0, 2)]
    assert groups_of(world_size=2, tp_size=2, ep_size=2)[EXPERT] == [(0, 2), (0, 2)]
    # Two pipeline stages of two ranks.
    assert groups_of(world_size=4, tp_size=2, ep_size=2)[EXPERT] == [(0, 2), (0, 2), (2, 2), (2, 2)]
    # Two data-parallel engines of two ranks, then the same in two stages.
    both = groups_of(world_size=4, tp_size=2, ep_size=4, dp_size=2)
    assert both[EXPERT] == [(0, 4)] * 4
    assert both["data"] == [(0, 2), (1, 2), (0, 2), (1, 2)]
    assert both["tensor"] == [(0, 2), (0, 2), (2, 2), (2, 2)]
    staged = groups_of(world_size=8, tp_size=2, ep_size=4, dp_size=2)
    assert [group for group, _ in staged[EXPERT]] == [0, 0, 2, 2, 0, 0, 2, 2]
    # Without expert parallelism vLLM divides every expert over all engines.
    assert groups_of(world_size=2, dp_size=2, ep_size=1)[EXPERT] == [(0, 2), (0, 2)]
    # moe.meta without dp_size: what expert parallelism has beyond tensor parallelism.
    assert groups_of(world_size=4, tp_size=2, ep_size=4)[EXPERT] == [(0, 4)] * 4
    # Expert parallelism over a part of the engines.
    assert groups_of(world_size=4, ep_size=2, dp_size=4)[EXPERT] == [(0, 2), (0, 2), (2, 2), (2, 2)]
    # Values that make no sense are unknown.
    assert groups_of(world_size=2, tp_size=2, ep_size="x", dp_size=0)[EXPERT] == [(0, 2), (0, 2)]


# Against a plain computation ----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 4)),
        st.one_of(st.none(), st.integers(0, 10**6)),
        max_size=60,
    )
)
def test_against_plain_python(times: dict[tuple[int, int, int], int | None]) -> None:
    """Ranks 0 to 2 and 3 to 4 are groups; any (step, layer, rank) may be absent or unknown."""
    layers = pl.DataFrame(
        [(rank, step, layer, ns) for (step, layer, rank), ns in times.items()],
        schema={"rank": pl.Int64, "step": pl.Int64, "layer_idx": pl.Int64, "own_ns": pl.Int64},
        orient="row",
    )
    groups = pl.DataFrame([(0, 0, 3), (1, 0, 3), (2, 0, 3), (3, 3, 2), (4, 3, 2)], schema=SCHEMA, orient="row")
    nothing = pl.DataFrame(schema={**dict.fromkeys(("report", "rank", "step", "layer", "start", "end"), pl.Int64),
                                   "phase": pl.String, "kernel_name": pl.String})  # fmt: skip
    met = split(nothing, {EXPERT: groups}, [0]).frame
    cells = stragglers(layers, groups, met)
    wanted = {}
    own: dict[tuple[int, int], dict[int, int]] = {}
    for step in range(4):
        for layer in range(3):
            for group, ranks in ((0, (0, 1, 2)), (3, (3, 4))):
                known = {r: ns for r in ranks if (ns := times.get((step, layer, r))) is not None}
                if not known:
                    continue
                mean, most = sum(known.values()) / len(known), max(known.values())
                whole = len(known) == len(ranks)
                slowest = min(r for r, ns in known.items() if ns == most)
                cost = (most - mean, slowest) if whole else (None, None)
                wanted[step, layer, group] = (len(known), mean, most, *cost)
                for rank, ns in known.items() if whole else ():
                    of = own.setdefault((step, group), {})
                    of[rank] = of.get(rank, 0) + ns
    columns = ("step", "layer_idx", "group", "ranks", "mean_own_ns", "max_own_ns", "excess_ns", "slowest_rank")
    found = {row[:3]: row[3:] for row in cells.select(columns).iter_rows()}
    assert found.keys() == wanted.keys()
    for key, row in found.items():
        assert row == pytest.approx(wanted[key])
    once = sum(max(of.values()) - sum(of.values()) / len(of) for of in own.values())
    assert once_a_step_ns(layers, groups, cells) == pytest.approx(once)
    assert once <= sum(row[3] for row in wanted.values() if row[3] is not None) + 1e-6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(straggler, "ROWS_AT_ONCE", 1)
        assert stragglers(layers, groups, met).equals(cells)
        assert once_a_step_ns(layers, groups, cells) == pytest.approx(once)


KERNEL = st.tuples(
    st.sampled_from([0, 1, 2, 3, None]),  # rank; 0 and 1 work together, 2 and 3 likewise
    st.sampled_from([0, 1, None]),  # step
    st.sampled_from([0, None]),  # layer
    st.booleans(),  # graph
    st.sampled_from(["a", "b"]),
    st.sampled_from([None, "no_group"]),  # reason
    st.integers(0, 20),  # start
    st.integers(0, 20),  # wait
    st.integers(0, 20),  # transfer
    st.integers(0, 1),  # which of the two was the last
    st.booleans(),  # kept
)


@settings(max_examples=60)
@given(st.lists(KERNEL, max_size=12))
def test_waiting_in_parts(rows: list[tuple[Any, ...]]) -> None:
    """The document's totals do not depend on how many kernels are looked at at a time; nor do they lose any."""
    names = ["rank", "step", "layer", "graph", "kernel_name", "reason", "start", "wait_ns", "transfer_ns"]
    names += ["last", "kept"]
    types: dict[str, Any] = dict.fromkeys(names, pl.Int64)
    types |= {"graph": pl.Boolean, "kept": pl.Boolean, "kernel_name": pl.String, "reason": pl.String}
    split_up = pl.col("reason").is_null()
    group = pl.col("rank") // 2 * 2
    frame = pl.DataFrame(rows, schema=types, orient="row").with_columns(
        end=pl.col("start") + pl.col("wait_ns") + pl.col("transfer_ns"),
        wait_ns=pl.when(split_up).then("wait_ns"),
        transfer_ns=pl.when(split_up).then("transfer_ns"),
        group_kind=pl.when(split_up).then(pl.lit(EXPERT)),
        group=pl.when(split_up).then(group),
        ranks=pl.when(split_up).then(pl.lit(2, pl.Int64)),
        last_rank=pl.when(split_up).then(group + pl.col("last")),
    )
    whole = waiting(frame)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(straggler_totals, "ROWS_AT_ONCE", 2)
        assert waiting(frame) == whole
    kept = [dict(zip(names, row, strict=True)) for row in rows if row[-1]]
    begun = {(row[0], row[1]): min(r[6] for r in rows if r[:2] == row[:2]) for row in rows}
    first = [row for row in kept if row["start"] == begun[row["rank"], row["step"]]]
    for key, those in {
        "in_layers": [row for row in kept if row["layer"] is not None],
        "first_of_step": first,
        "launched_by_graphs": [row for row in kept if row["graph"]],
    }.items():
        done = [row for row in those if row["reason"] is None]
        said = whole[key]
        assert (said["kernels"], said["split"]) == (len(those), len(done))
        assert said["wait_us"] == pytest.approx(sum(row["wait_ns"] for row in done) / 1e3)
        assert said["transfer_us"] == pytest.approx(sum(row["transfer_ns"] for row in done) / 1e3)
    assert sum(one["kernels"] for one in whole["by_kernel"]) == whole["kernels"] == len(kept)


def test_a_layer_is_not_its_excess_alone(tmp_path: Path) -> None:
    """The sum of what layers lose is never below what steps lose, on a run like any."""
    cost = written(tmp_path, *Run([range(4)], uneven, steps=6, layers=3).build()).json("moe_straggler")["straggler"]
    balance = cost["perfect_balance"]
    assert 0 < balance["saves_us_if_ranks_met_once_a_step"] <= balance["saves_us"]
