"""Waits and transfers of the real capture of two GPUs: against plain Python over its rows, and after it was taken apart
into two reports whose clocks disagree."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import sqlite3
from collections import defaultdict
from pathlib import Path

import pytest

from nvtxmoe_analysis.analyze import analyze
from nvtxmoe_analysis.facts.selection import Selection
from tests.support.written_results import Written, written

COLLECTIVES = ("cross_device_reduce_1stage", "ncclDevKernel_AllGather_RING_LL")
TIMED = (
    ("NVTX_EVENTS", ("start", "end")),
    ("CUPTI_ACTIVITY_KIND_RUNTIME", ("start", "end")),
    ("CUPTI_ACTIVITY_KIND_KERNEL", ("start", "end")),
    ("CUPTI_ACTIVITY_KIND_MEMCPY", ("start", "end")),
    ("CUPTI_ACTIVITY_KIND_MEMSET", ("start", "end")),
    ("CUDA_GRAPH_NODE_EVENTS", ("start",)),
)
#: Step, rank and start of a kernel to its wait, transfer and the rank that began last.
Answer = dict[tuple[int, int, int], tuple[int, int, int]]


@pytest.fixture(scope="module")
def whole(golden_2gpu: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return written(tmp_path_factory.mktemp("whole"), golden_2gpu)


def by_hand(path: Path, ranks: dict[int, int]) -> Answer:
    """Of each step the collectives of each process in order; the ranks' i-th are one."""
    connection = sqlite3.connect(path)
    steps: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for pid, start, end in connection.execute(
        "SELECT globalTid >> 24 & 0xFFFFFF, start, end FROM NVTX_EVENTS JOIN StringIds ON id = textId "
        "WHERE value = 'moe.step' ORDER BY start"
    ):
        steps[pid].append((start, end))
    found: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for pid, start, end, call in connection.execute(
        "SELECT k.globalPid >> 24 & 0xFFFFFF, k.start, k.end, r.start FROM CUPTI_ACTIVITY_KIND_KERNEL k "
        "JOIN CUPTI_ACTIVITY_KIND_RUNTIME r ON r.correlationId = k.correlationId AND r.globalTid >> 24 = "
        "k.globalPid >> 24 JOIN StringIds ON id = demangledName WHERE value LIKE ? OR value LIKE ? ORDER BY k.start",
        [f"%{name}%" for name in COLLECTIVES],
    ):
        inside = [number for number, (first, last) in enumerate(steps[pid]) if first <= call < last]
        if inside:
            found[inside[0], ranks[pid]].append((start, end))
    connection.close()
    answer: Answer = {}
    for step in {step for step, _ in found}:
        for together in zip(*(found[step, rank] for rank in sorted(ranks.values())), strict=True):
            last = max(start for start, _ in together)
            latest = [start for start, _ in together].index(last)
            for rank, (start, end) in enumerate(together):
                answer[step, rank, start] = (last - start, end - last, latest)
    return answer


def ranks_of(path: Path) -> dict[int, int]:
    """Rank by process: in the order of their ids, as moe.meta of this capture says."""
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT DISTINCT globalTid >> 24 & 0xFFFFFF FROM NVTX_EVENTS JOIN StringIds ON id = textId "
        "WHERE value = 'moe.step'"
    ).fetchall()
    connection.close()
    pids = sorted(pid for (pid,) in rows)
    return {pid: rank for rank, pid in enumerate(pids)}


def read(found: Written) -> Answer:
    answer = {}
    for row in csv.DictReader(io.StringIO(found.text("moe_collectives"))):
        wait, transfer, last = (int(row[name]) for name in ("wait_ns", "transfer_ns", "last_rank"))
        assert int(row["duration_ns"]) == wait + transfer
        answer[int(row["step"]), int(row["rank"]), int(row["start_ns"])] = (wait, transfer, last)
    return answer


def test_against_plain_python(whole: Written, golden_2gpu: Path) -> None:
    answer = read(whole)
    assert len(answer) == 940
    assert answer == by_hand(golden_2gpu, ranks_of(golden_2gpu))


def test_totals(whole: Written) -> None:
    """Of 588 ms in collectives 581 are waiting: of the prototype's two processes, one launches its steps later."""
    said = whole.json("moe_straggler")
    assert said["reason"] is None
    collectives = said["collectives"]
    assert (collectives["kernels"], collectives["split"], collectives["not_split"]) == (940, 940, [])
    wait, transfer = (sum(row[at] for row in read(whole).values()) / 1e3 for at in (0, 1))
    assert collectives["wait_us"] == pytest.approx(wait, abs=1e-3)
    assert collectives["transfer_us"] == pytest.approx(transfer, abs=1e-3)
    assert collectives["in_layers"]["kernels"] == 2 * 47 * 4
    assert said["clock"]["verdict"] == "agree"
    assert whole.check("clocks_agree")[:2] == (
        "pass",
        "One clock; in 470 collectives no rank ends before the last began.",
    )


def test_cost(whole: Written) -> None:
    """The excess from moe_layer_correlation, cell by cell."""
    own: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    gpu: dict[tuple[str, int], int] = {}
    for row in csv.DictReader(io.StringIO(whole.text("moe_layer_correlation"))):
        own[row["step"], row["layer_idx"]][int(row["rank"])] = int(row["own_ns"])
        gpu[row["step"], int(row["rank"])] = int(row["step_gpu_ns"])
    rows = whole.rows("moe_straggler", "step", "layer_idx", "ranks", "max_own_ns", "excess_ns", "slowest_rank")
    assert len(rows) == len(own) == 188
    for step, layer, ranks, slowest, excess, rank in rows:
        of = own[step, layer]
        assert (int(ranks), int(slowest), float(excess)) == (
            2,
            max(of.values()),
            max(of.values()) - sum(of.values()) / 2,
        )
        assert of[int(rank)] == max(of.values())
    said = whole.json("moe_straggler")["straggler"]
    total = sum(float(row[4]) for row in rows)
    assert said["excess_us"] == pytest.approx(total / 1e3, abs=1e-3)
    assert said["perfect_balance"]["of_steps_pct"] == pytest.approx(100 * total / (sum(gpu.values()) / 2))
    assert said["perfect_balance"]["of_layers_pct"] == pytest.approx(100 * total / sum(int(row[3]) for row in rows))


def taken_apart(path: Path, folder: Path, offset_ns: int, drift: float, recorded_ns: int) -> list[Path]:
    """Each process's rows in a report of its own; the second one's clock reads ``(t - offset) / (1 + drift)``."""
    out = []
    for pid, rank in ranks_of(path).items():
        out.append(folder / f"rank{rank}.sqlite")
        shutil.copy(path, out[-1])
        connection = sqlite3.connect(out[-1])
        for table, columns in TIMED:
            process = "globalPid" if "ACTIVITY_KIND" in table and "RUNTIME" not in table else "globalTid"
            connection.execute(f"DELETE FROM {table} WHERE {process} >> 24 & 0xFFFFFF != ?", [pid])
            if rank:
                moved = ", ".join(f'"{c}" = CAST(ROUND(("{c}" - ?) / ?) AS INTEGER)' for c in columns)
                connection.execute(f"UPDATE {table} SET {moved}", [offset_ns, 1 + drift] * len(columns))
        connection.execute("DELETE FROM PROCESSES WHERE pid != ?", [pid])
        connection.execute("UPDATE TARGET_INFO_SESSION_START_TIME SET utcEpochNs = ?", [recorded_ns * rank])
        connection.commit()
        connection.close()
    return out


@pytest.mark.parametrize(("drift", "off_ns"), [(0.0, 0), (0.0, 3_000_000), (12e-6, -250_000)])
def test_two_reports(whole: Written, golden_2gpu: Path, tmp_path: Path, drift: float, off_ns: int) -> None:
    """The offset comes back from the collectives, and every wait is right but for the residual that is stated."""
    offset = 1_000_000_000
    reports = taken_apart(golden_2gpu, tmp_path, offset, drift, offset + off_ns)
    found = written(tmp_path, *reports)
    said = found.json("moe_straggler")
    clock, second = said["clock"], said["clock"]["by_report"][1]
    residual = 1e3 * second["most_residual_us"]
    assert residual < 10_000
    assert second["median_residual_us"] < 6
    assert second["fits"]
    assert second["collectives"] == 470
    at = second["offset_at_ns"]
    assert abs(second["offset_ns"] - offset - drift * at) <= residual + 2
    assert clock["verdict"] == ("agree" if not off_ns and not drift else "corrected")
    assert second["recorded_violations"] == 0 if not off_ns and not drift else second["recorded_violations"] > 400

    def by_order(one: Written) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
        answer: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        for (step, rank, _), row in sorted(read(one).items()):
            answer[step, rank].append(row)
        return answer

    true, moved = by_order(whole), by_order(found)
    assert true.keys() == moved.keys()
    pairs = [pair for key in true for pair in zip(true[key], moved[key], strict=True)]
    # Durations shrink with the drift: by 1.2 us in a kernel of 99 ms.
    most = residual + 2 + drift * 100_000_000
    assert max(abs(a[at] - b[at]) for a, b in pairs for at in (0, 1)) <= most
    assert said["collectives"]["wait_us"] == pytest.approx(
        whole.json("moe_straggler")["collectives"]["wait_us"], rel=0.01
    )
    assert found.check("clocks_agree")[0] == "pass"


def test_what_filters_leave_is_worked_out_over_the_whole(golden_vllm_ranks: dict[str, Path], tmp_path: Path) -> None:
    """The first collective of every step is attention's, outside layers: none is left when one layer is kept."""
    everything = written(tmp_path / "all", golden_vllm_ranks["tp2"]).json("moe_straggler")["collectives"]
    assert everything["first_of_step"]["kernels"] == 92
    analyze([golden_vllm_ranks["tp2"]], tmp_path / "one", selection=Selection(layers=frozenset({2})))
    document = tmp_path / "one" / "moe_expert_tracking" / "moe_straggler.json"
    one = json.loads(document.read_text())["collectives"]
    assert one["first_of_step"] == {"kernels": 0, "split": 0, "wait_us": 0, "transfer_us": 0, "wait_pct": None}
    assert one["in_layers"]["kernels"] == one["kernels"] == 92


def test_shares_are_of_all_collectives(golden_vllm_ranks: dict[str, Path], tmp_path: Path) -> None:
    found = written(tmp_path, golden_vllm_ranks["dp2"])
    said = found.json("moe_straggler")["collectives"]
    rows = found.rows("moe_collectives", "duration_ns", "wait_ns")
    time = sum(int(duration) for duration, _ in rows)
    assert said["all_us"] == pytest.approx(time / 1e3, abs=1e-3)
    assert said["split_us"] == pytest.approx(sum(int(d) for d, wait in rows if wait) / 1e3, abs=1e-3)
    assert said["split_us"] + said["not_split_us"] == pytest.approx(said["all_us"], abs=2e-3)
    assert said["wait_pct_of_all"] == pytest.approx(100 * sum(int(wait) for _, wait in rows if wait) / time)


def test_the_largest_cell_of_a_layer_is_named(golden_vllm_ranks: dict[str, Path], tmp_path: Path) -> None:
    found = written(tmp_path, golden_vllm_ranks["dp2"])
    rows = found.rows("moe_straggler", "layer_idx", "step", "excess_ns", "slowest_rank")
    for layer in found.json("moe_straggler")["straggler"]["per_layer"]:
        mine = [row for row in rows if int(row[0]) == layer["layer_idx"] and row[2]]
        top = max(mine, key=lambda row: (float(row[2]), -int(row[1])))
        assert layer["largest"]["step"] == int(top[1])
        assert layer["largest"]["excess_us"] == pytest.approx(float(top[2]) / 1e3, abs=1e-3)
        assert layer["largest"]["rank"] == int(top[3])


def test_cells_that_lost_their_gpu_work_are_not_compared(golden_2gpu: Path, tmp_path: Path) -> None:
    """Unknown is null: a rank whose kernels are not there is not infinitely fast."""
    lost = tmp_path / "lost.sqlite"
    shutil.copy(golden_2gpu, lost)
    with sqlite3.connect(lost) as base:
        (pid,) = base.execute("SELECT max(globalPid) FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchone()
        for table in ("KERNEL", "MEMCPY", "MEMSET"):
            with contextlib.suppress(sqlite3.OperationalError):  # trimmed captures have only what they need
                base.execute(f"DELETE FROM CUPTI_ACTIVITY_KIND_{table} WHERE globalPid = ?", (pid,))
    found = written(tmp_path, lost)
    known = found.rows("moe_layer_correlation", "launched_by", "own_ns")
    assert {bool(own) for by, own in known if by == "none"} == {False}
    assert {bool(own) for by, own in known if by != "none"} == {True}
    assert {(ranks, excess, slowest) for ranks, excess, slowest in found.rows(
        "moe_straggler", "ranks", "excess_ns", "slowest_rank"
    )} == {("1", "", "")}  # fmt: skip
    assert found.json("moe_straggler")["straggler"]["cells"] == 0
