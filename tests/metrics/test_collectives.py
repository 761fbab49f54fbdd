"""moe_collectives of constructed runs: planted waits, groups, and kernels that can't be split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nvtxmoe_analysis.facts.selection import Selection
from tests.support.collective_simulation import GATHER, REDUCE, SPLIT, Run, expected, not_split, uneven
from tests.support.export_builder import Export, Process
from tests.support.written_results import literal, written


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("ranged", [True, False])
def test_planted_waits(tmp_path: Path, ranks: int, ranged: bool) -> None:
    """Every wait and transfer comes back to the nanosecond, in layers and outside, ranges around them or inferred."""
    tails = (4040, 4000, 4070, 4010)  # the one that began last is not the one that ends last
    run = Run([range(ranks)], uneven, gather=True, ranged=ranged, tail_ns=lambda step, layer, rank: tails[rank])
    found = written(tmp_path, *run.build())
    assert found.rows("moe_collectives", *SPLIT) == expected(run.met)
    inferred = {(layer, flag) for layer, flag in found.rows("moe_collectives", "layer_idx", "inferred")}
    assert inferred == {("", "false"), *((str(n), str(not ranged).lower()) for n in range(2))}
    assert set(found.rows("moe_collectives", "group_kind", "group", "ranks", "reason")) == {
        ("expert", "0", str(ranks), "")
    }
    assert found.check("clocks_agree")[0] == "pass"
    assert found.verdict == "complete"


def test_whole_table(tmp_path: Path) -> None:
    """Rank 1 begins 700 ns after rank 0; both are done 4000 and 4010 ns after that."""
    run = Run([[0, 1]], lambda step, layer, rank: 5000 + 700 * rank, steps=1, layers=1, name="ncclKernel_AllGather_x")
    found = written(tmp_path, *run.build())
    assert found.text("moe_collectives") == literal("""
        step,layer_idx,ordinal,kernel_name,inferred,rank,start_ns,duration_ns,wait_ns,transfer_ns,last_rank,phase,group_kind,group,ranks,reason
        0,0,0,ncclKernel_AllGather_x,false,0,1006000,4700,700,4000,1,collective,expert,0,2,
        0,0,0,ncclKernel_AllGather_x,false,1,1006700,4010,0,4010,1,collective,expert,0,2,
        """)


def test_totals(tmp_path: Path) -> None:
    run = Run([range(3)], uneven, gather=True)
    found = written(tmp_path, *run.build())
    said = found.json("moe_straggler")["collectives"]
    wait, transfer = (sum(sum(getattr(m, what).values()) for m in run.met) for what in ("wait", "transfer"))
    assert (said["kernels"], said["split"], said["not_split"]) == (27, 27, [])
    assert said["wait_us"] == pytest.approx(wait / 1e3)
    assert said["transfer_us"] == pytest.approx(transfer / 1e3)
    assert said["wait_pct"] == pytest.approx(100 * wait / (wait + transfer))
    outside = [m for m in run.met if m.layer is None]
    assert said["outside_layers"]["wait_us"] == pytest.approx(sum(sum(m.wait.values()) for m in outside) / 1e3)
    first = [m for m in run.met if m.layer == 0]
    assert said["first_of_step"]["kernels"] == 9
    assert said["first_of_step"]["wait_us"] == pytest.approx(sum(sum(m.wait.values()) for m in first) / 1e3)
    assert (said["launched_eagerly"]["kernels"], said["launched_by_graphs"]["kernels"]) == (27, 0)
    assert [(one["kernel_name"], one["kernels"]) for one in said["by_kernel"]] == [(REDUCE, 18), (GATHER, 9)]
    last = [m.last_rank for m in run.met]
    assert {one["rank"]: one["collectives"] for one in said["last_rank"]} == {r: last.count(r) for r in set(last)}


def test_one_rank(tmp_path: Path) -> None:
    """Nothing to compare with: empty tables, and the document says why."""
    found = written(tmp_path, *Run([[0]], uneven).build())
    assert len(found.text("moe_collectives").splitlines()) == len(found.text("moe_straggler").splitlines()) == 1
    assert found.json("moe_straggler") == {
        "reason": "Only rank 0 was captured: there is no other to compare it with.",
        "ranks": [0],
        "groups": [{"group": 0, "ranks": [0], "ranks_in_group": 1}],
        "straggler": None,
        "collectives": None,
        "clock": None,
    }
    assert found.check("clocks_agree")[0] == "not_applicable"


def test_one_rank_of_a_group(tmp_path: Path) -> None:
    run = Run([[0], [1]], uneven)
    found = written(tmp_path, run.build()[0])
    assert found.json("moe_straggler")["reason"].startswith("Only rank 0 was captured")
    assert found.json("moe_straggler")["groups"] == [{"group": 0, "ranks": [0], "ranks_in_group": 2}]


def test_ranks_without_a_collective(tmp_path: Path) -> None:
    """They work together, as moe.meta says, and nothing shows that they meet: the excess is there, no waits."""
    found = written(tmp_path, *Run([range(2)], uneven, name="a_kernel_like_any").build())
    assert len(found.text("moe_collectives").splitlines()) == 1
    said = found.json("moe_straggler")
    assert (said["collectives"]["kernels"], said["clock"]["verdict"]) == (0, "nothing_to_compare")
    assert (said["straggler"]["cells"], said["straggler"]["wait_us_a_rank"]) == (6, None)
    assert said["straggler"]["per_layer"][0]["wait_us"] is None
    assert found.check("clocks_agree")[0] == "not_applicable"


def test_selection_narrows_rows_not_what_is_compared(tmp_path: Path) -> None:
    """Left-out ranks still tell how long the kept ones waited; layers asked for leave out what is tied to none."""
    run = Run([range(2)], uneven, gather=True)
    exports = run.build()

    def rows(**chosen: Any) -> list[tuple[str, ...]]:
        return written(tmp_path, *exports, selection=Selection(**chosen)).rows("moe_collectives", *SPLIT)

    assert rows(ranks=frozenset({1})) == expected(run.met, {1})
    assert rows(layers=frozenset({1})) == expected([m for m in run.met if m.layer == 1])
    assert rows(first_step=1, last_step=1) == expected([m for m in run.met if m.step == 1])


# What can't be split ------------------------------------------------------------------------------------------------


def kernel_rows(export: Export, name: str, pid: int) -> list[dict[str, Any]]:
    """Kernels of one name and process, in order."""
    ident = export.strings[name]
    rows = export.rows["CUPTI_ACTIVITY_KIND_KERNEL"]
    return [row for row in rows if row["demangledName"] == ident and row["globalPid"] >> 24 & 0xFFFFFF == pid]


def test_numbers_that_differ(tmp_path: Path) -> None:
    """Rank 1's kernel of step 1, layer 0 became another one: neither rank's can be matched there, all others can."""
    run = Run([range(2)], uneven)
    (export,) = run.build()
    kernel_rows(export, REDUCE, 101)[2]["demangledName"] = export.string("something_else")
    found = written(tmp_path, export)
    rest = [m for m in run.met if (m.step, m.layer) != (1, 0)]
    assert [row for row in found.rows("moe_collectives", *SPLIT) if row[4]] == expected(rest)
    assert not_split(found) == {"numbers_differ": 1}


def test_one_more_on_one_rank(tmp_path: Path) -> None:
    """Which of rank 1's two is rank 0's one can't be told."""
    run = Run([range(2)], uneven)
    (export,) = run.build()
    row = kernel_rows(export, REDUCE, 101)[2]
    export.add("CUPTI_ACTIVITY_KIND_KERNEL", **{**row, "start": row["end"] + 10, "end": row["end"] + 20})
    assert not_split(written(tmp_path, export)) == {"numbers_differ": 3}


def test_phases_of_a_layer_are_told_apart(tmp_path: Path) -> None:
    """One name before the experts and after them: what is missing in dispatch does not shift what is in combine."""
    export = Export()
    for rank in range(2):
        worker = Process(export, pid=100 + rank, rank=rank, world_size=2, tp_size=2, layers=1)
        worker.send_meta()
        with worker.step(0), worker.layer(0):
            with worker.phase("dispatch", 0):
                if rank:
                    worker.kernel(4000, GATHER, start=50_000)
            with worker.phase("combine", 0):
                worker.kernel(5000 - 1000 * rank, GATHER, start=90_000 + 1000 * rank)
        worker.counts(0, 0, [2, 2, 1, 1])
    found = written(tmp_path, export)
    assert found.rows("moe_collectives", "rank", "phase", "ordinal", "wait_ns", "reason") == [
        ("0", "combine", "0", "1000", ""),
        ("1", "combine", "0", "0", ""),
        ("1", "dispatch", "0", "", "numbers_differ"),
    ]


def test_order_that_differs_outside_layers(tmp_path: Path) -> None:
    """Two collectives after the layers; in step 1 rank 1 ran them the other way round."""
    run = Run([range(2)], uneven, gather=True, layers=1)
    (export,) = run.build()
    other = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(x)"
    for pid in (100, 101):
        for step, row in enumerate(kernel_rows(export, GATHER, pid)):
            again = export.add("CUPTI_ACTIVITY_KIND_KERNEL", **{**row, "demangledName": export.string(other)})
            again.update(start=row["end"] + 5, end=row["end"] + 4005)
            if step == 1 and pid == 101:
                again["demangledName"], row["demangledName"] = row["demangledName"], again["demangledName"]
    found = written(tmp_path, export)
    assert not_split(found) == {"order_differs": 4}
    rows = found.rows("moe_collectives", "step", "layer_idx", "reason")
    assert {row for row in rows if row[2]} == {("1", "", "order_differs")}
    assert found.json("moe_straggler")["collectives"]["split"] == 6 + 8


def test_a_rank_that_is_not_in_the_step(tmp_path: Path) -> None:
    """Rank 1 was idle: its step's range is an idle one."""
    run = Run([range(2)], uneven)
    (export,) = run.build()
    steps = [row for row in export.rows["NVTX_EVENTS"] if row["textId"] == export.strings["moe.step"]]
    (mine,) = [row for row in steps if row["globalTid"] & 0xFFFFFF == 101][1:2]
    mine.update(textId=export.string("moe.idle"), binaryData=None)
    found = written(tmp_path, export)
    assert not_split(found) == {"rank_not_in_step": 2}
    assert {(r, s) for r, s, why in found.rows("moe_collectives", "rank", "step", "reason") if why} == {("0", "1")}


def test_a_rank_that_was_not_captured(tmp_path: Path) -> None:
    run = Run([[0, 1], [2]], uneven)
    found = written(tmp_path, run.build()[0])
    assert not_split(found) == {"rank_not_captured": 12}
    assert found.check("clocks_agree")[0] == "not_applicable"


@pytest.mark.parametrize(
    ("name", "ranged", "reason"),
    [
        ("ncclDevKernel_Broadcast_RING_LL(x)", False, "not_known_to_wait"),
        ("ncclDevKernel_Reduce_Sum_bf16_RING_LL(x)", False, "not_known_to_wait"),
        # In ranges of a layer it is vLLM's exchange of unequal parts: a broadcast from every rank in one kernel.
        ("ncclDevKernel_Broadcast_RING_LL(x)", True, None),
        ("ncclDevKernel_Reduce_Sum_bf16_RING_LL(x)", True, None),
        ("ncclDevKernel_SendRecv(x)", True, "not_known_to_wait"),
        ("void deep_ep::internode_ll::combine<true>(void *)", True, "not_known_to_wait"),
        ("void deep_ep::intranode::dispatch<8>(int4 *)", True, None),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(x)", False, None),
        ("ncclSymkDevKernel_AllReduce_AGxLL_R_sum_bf16(x)", True, None),
    ],
)  # fmt: skip
def test_kernels_that_need_not_wait(tmp_path: Path, name: str, ranged: bool, reason: str | None) -> None:
    """Of a broadcast a sender may end before the receiver begins: no wait is claimed."""
    found = written(tmp_path, *Run([range(2)], uneven, name=name, ranged=ranged).build())
    assert not_split(found) == ({reason: 12} if reason else {})
    (kernel,) = found.json("moe_straggler")["collectives"]["by_kernel"]
    assert (kernel["kernel_name"], kernel["split"]) == (name, 0 if reason else 12)


def test_kernels_that_do_not_meet(tmp_path: Path) -> None:
    """Rank 1 runs its own a millisecond later, always: these are not one collective."""
    run = Run([range(2)], uneven)
    (export,) = run.build()
    for row in kernel_rows(export, REDUCE, 101):
        row.update(start=row["start"] + 1_000_000, end=row["end"] + 1_000_000)
    found = written(tmp_path, export)
    assert not_split(found) == {"not_simultaneous": 12}
    status, message, figures = found.check("clocks_agree")
    assert (status, figures["verdict"], figures["not_simultaneous_kernels"]) == ("warn", "contradicted", 12)
    assert "ends before the last began" in message


def test_one_collective_that_contradicts(tmp_path: Path) -> None:
    """Of 200, one: it alone is left out, and the check warns."""
    run = Run([range(2)], uneven, steps=100)
    (export,) = run.build()
    row = kernel_rows(export, REDUCE, 100)[50]
    row["end"] = row["start"] + 5  # rank 1 is far slower there
    rank_1 = kernel_rows(export, REDUCE, 101)[50]
    rank_1.update(start=row["start"] + 2000, end=row["start"] + 6000)
    found = written(tmp_path, export)
    assert not_split(found) == {"ends_before_last_start": 2}
    assert found.json("moe_straggler")["clock"]["contradictions"] == 1
    assert found.check("clocks_agree")[0] == "warn"


def test_clocks_of_gpus_may_be_off_a_little(tmp_path: Path) -> None:
    """nsys converts each GPU's time: half a microsecond of contradiction is that, and there is nothing to transfer."""
    run = Run([range(2)], uneven, steps=1, layers=1)
    (export,) = run.build()
    first, second = (kernel_rows(export, REDUCE, pid)[0] for pid in (100, 101))
    first["end"] = second["start"] - 500
    found = written(tmp_path, export)
    rows = found.rows("moe_collectives", "rank", "wait_ns", "transfer_ns")
    assert rows == [("0", str(first["end"] - first["start"]), "0"), ("1", "0", "4010")]


# Groups -------------------------------------------------------------------------------------------------------------


def test_data_parallel_engines(tmp_path: Path) -> None:
    """Two engines of two ranks: the experts' collective is everybody's, vLLM's own reduction the engine's."""
    run = Run(
        [range(4)], uneven, tp_size=2, name=GATHER, meta=lambda rank: {"dp_size": 2, "dp_rank": rank // 2}, steps=4
    )
    (export,) = run.build()
    wanted = expected(run.met)
    for pid in range(100, 104):
        # Before each gather the engine's own reduction: engine 1 is 50 us later, so the engines do not meet in it.
        for row in kernel_rows(export, GATHER, pid):
            later = 50_000 * ((pid - 100) // 2)
            start = row["start"] - 90_000 + later
            again = export.add("CUPTI_ACTIVITY_KIND_KERNEL", **{**row, "demangledName": export.string(REDUCE)})
            again.update(start=start + 100 * (pid % 2), end=start + 3100)
    found = written(tmp_path, export)
    rows = found.rows("moe_collectives", *SPLIT, "group_kind", "group", "ranks")
    assert [row[:7] for row in rows if row[2] == GATHER] == wanted
    assert {row[7:] for row in rows if row[2] == GATHER} == {("expert", "0", "4")}
    reductions = [row for row in rows if row[2] == REDUCE]
    assert {(row[3], row[7:]) for row in reductions} == {
        (str(rank), ("tensor", str(rank // 2 * 2), "2")) for rank in range(4)
    }
    assert not_split(found) == {}


def test_names_of_tensor_parallel_groups(tmp_path: Path) -> None:
    """vLLM's own reduction is an engine's, also where the engines happen to run it at one time."""
    run = Run([range(4)], uneven, tp_size=2, name=REDUCE, meta=lambda rank: {"dp_size": 2, "dp_rank": rank // 2})
    found = written(tmp_path, *run.build())
    assert set(found.rows("moe_collectives", "rank", "group_kind", "group", "reason")) == {
        (str(rank), "tensor", str(rank // 2 * 2), "") for rank in range(4)
    }


def test_names_that_all_kinds_of_groups_use(tmp_path: Path) -> None:
    """NCCL's name does not tell the group: the widest one in which the kernels meet is taken."""
    run = Run(
        [range(4)], uneven, tp_size=2, name=GATHER, meta=lambda rank: {"dp_size": 2, "dp_rank": rank // 2}, steps=4
    )
    (export,) = run.build()
    for pid in (102, 103):  # engine 1 as a whole is later: only the ranks of an engine meet
        for row in kernel_rows(export, GATHER, pid):
            row.update(start=row["start"] + 90_000, end=row["end"] + 90_000)
    found = written(tmp_path, export)
    assert set(found.rows("moe_collectives", "rank", "group_kind", "group", "ranks", "reason")) == {
        (str(rank), "tensor", str(rank // 2 * 2), "2", "") for rank in range(4)
    }
