"""`analyze` on the real captures: the reference figures, every table against brute force, and files kept whole.

``pytest tests/system/test_golden.py --update-golden`` rewrites tests/golden/expected.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from nvtxmoe_analysis.readers import nsys_tables
from scripts.bench.tile_capture import tile_capture
from tests.support import naive_analysis
from tests.support.paths import GOLDEN
from tests.support.written_results import PARQUET_ONLY, TABLES, Written, file_set, written

CASES = ("h100-1gpu-graphs", "h100-1gpu-graphs.parquetdir", "h100-2gpu-ep2-graphs")
HEAD = 40  # lines of a large file that are kept

#: tests/golden/README.md: cells, kernels, ns, copies, ns, operations in steps outside layers, outside steps.
REFERENCE = {
    "h100-1gpu-graphs": (184, 1300, 9_029_262, 552, 601_830, 3044, 21_632),
    "h100-2gpu-ep2-graphs": (376, 3408, 14_442_661, 1128, 1_204_533, 7396, 33_220),
}


@pytest.fixture(scope="module")
def captures(golden_1gpu: Path, golden_1gpu_parquet: Path, golden_2gpu: Path) -> dict[str, Path]:
    return dict(zip(CASES, (golden_1gpu, golden_1gpu_parquet, golden_2gpu), strict=True))


@pytest.fixture(scope="module")
def analysed(captures: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    return {case: written(tmp_path_factory.mktemp("golden"), path) for case, path in captures.items()}


@pytest.fixture(scope="module")
def runs(captures: dict[str, Path]) -> dict[str, naive_analysis.Run]:
    one, two = naive_analysis.read(captures[CASES[0]]), naive_analysis.read(captures[CASES[2]])
    return {CASES[0]: one, CASES[1]: one, CASES[2]: two}


def whole_sum(found: Written, *columns: str) -> tuple[int, ...]:
    columns_of_cells = zip(*found.rows("moe_layer_timings", *columns), strict=True)
    return tuple(sum(map(int, cells)) for cells in columns_of_cells)


@pytest.mark.parametrize("case", CASES)
def test_reference_figures(case: str, analysed: dict[str, Written]) -> None:
    found = analysed[case]
    cells, kernels, kernel_ns, copies, copy_ns, in_steps, outside = REFERENCE[case.removesuffix(".parquetdir")]
    assert len(found.rows("moe_layer_timings", "rank")) == cells
    assert len(found.rows("moe_layer_correlation", "rank")) == cells
    columns = ("kernel_count", "kernel_time_ns", "memcpy_count", "memcpy_time_ns", "memset_count", "memset_time_ns")
    assert whole_sum(found, *columns) == (kernels, kernel_ns, copies, copy_ns, 0, 0)
    classes = found.validation["coverage"]["classes"]
    assert {name: one["operations"] for name, one in classes.items()} == {
        "in_layer": kernels + copies,
        "in_step": in_steps,
        "outside_steps": outside,
        "unplaced": 0,
    }
    assert classes["in_layer"]["kinds"] == {
        "kernel": {"operations": kernels, "time_ns": kernel_ns},
        "memcpy": {"operations": copies, "time_ns": copy_ns},
    }
    assert classes["unplaced"] == {"operations": 0, "time_ns": 0, "kinds": {}, "reasons": {}}
    assert (found.verdict, found.validation["reasons"]) == ("complete", [])
    assert found.validation["coverage"]["placed_pct_of_step_time"] == 100.0


@pytest.mark.parametrize("case", CASES)
def test_phases(case: str, analysed: dict[str, Written], captures: dict[str, Path]) -> None:
    """The prototype's own copies lie in the layer but in no phase, the gate's GEMM too; vLLM's are in experts."""
    operations: Counter[tuple[str, bool]] = Counter()
    rows = [
        row for row in analysed[case].rows("moe_kernel_timings", "phase", "kernel_name", "count", "layer_idx") if row[3]
    ]
    for phase, name, count, _ in rows:
        operations[phase, name.startswith("[CUDA memcpy")] += int(count)
    copies = {"h100-2gpu-ep2-graphs": (752, 376)}.get(case, (368, 184))
    assert (operations["other", True], operations["experts", True]) == copies
    # Nothing in dispatch, combine and shared, though those ranges are there.
    assert {phase for phase, _ in operations} == {"other", "route", "experts"}
    gemms = [(phase, int(count)) for phase, name, count, _ in rows if name.startswith(("nvjet", "void gemv"))]
    assert {phase for phase, _ in gemms} == {"other"}
    # One gate a cell.
    assert sum(count for _, count in gemms) == len(analysed[case].rows("moe_layer_timings", "rank"))


@pytest.mark.parametrize("case", [CASES[0], CASES[2]])
def test_shared_ranges_occur_twice_a_layer(case: str, captures: dict[str, Path]) -> None:
    connection = sqlite3.connect(captures[case])
    counts = dict(
        connection.execute(
            "SELECT CASE WHEN value LIKE 'moe.layer.%' THEN 'layer' ELSE value END AS name, count(*) FROM NVTX_EVENTS"
            " JOIN StringIds ON id = textId WHERE eventType = 59 AND value LIKE 'moe.%' GROUP BY name"
        ).fetchall()
    )
    connection.close()
    assert counts["moe.shared"] == 2 * counts["layer"]
    assert counts["moe.experts"] == counts["moe.dispatch"] == counts["moe.combine"] == counts["layer"]


def test_reduction_runs_after_the_layer(analysed: dict[str, Written]) -> None:
    """Without moe.collective it counts outside layers: 9 a step and rank, of 47 steps and two ranks."""
    first = analysed[CASES[2]].validation["coverage"]["in_step_outside_layers_names"][0]
    assert first["name"].startswith("void vllm::cross_device_reduce_1stage<")
    assert first["operations"] == 9 * 47 * 2


#: Tables that plain Python makes again. The others are compared so in their own tests.
BRUTE: dict[str, Callable[[naive_analysis.Run], str]] = {
    "moe_expert_activations": naive_analysis.activations,
    "moe_expert_coselection": naive_analysis.coselection,
    "moe_routing_weights_hist": naive_analysis.routing_weights,
    "moe_load_imbalance": naive_analysis.load_imbalance,
    "moe_layer_timings": naive_analysis.layer_timings,
    "moe_kernel_timings": naive_analysis.kernel_timings,
    "moe_layer_correlation": naive_analysis.layer_correlation,
}


@pytest.mark.parametrize("stem", BRUTE)
@pytest.mark.parametrize("case", CASES)
def test_tables_equal_brute_force(
    case: str, stem: str, analysed: dict[str, Written], runs: dict[str, naive_analysis.Run]
) -> None:
    assert analysed[case].text(stem).splitlines() == BRUTE[stem](runs[case]).splitlines()


@pytest.mark.parametrize("case", CASES)
def test_summary_equals_brute_force(
    case: str, analysed: dict[str, Written], runs: dict[str, naive_analysis.Run]
) -> None:
    found, wanted = analysed[case].json("moe_summary"), naive_analysis.summary(runs[case])
    assert list(found) == list(wanted)
    for layer, numbers in wanted.items():
        assert found[layer] == pytest.approx(numbers, rel=1e-12)
        assert list(found[layer]) == list(numbers)


def test_tensor_parallel_copies_count_once(analysed: dict[str, Written], runs: dict[str, naive_analysis.Run]) -> None:
    found = analysed[CASES[2]]
    both = naive_analysis.Run(runs[CASES[2]].answer, first_ranks=(0, 1), top_k=4)
    halves = [count // 2 for counts in naive_analysis.expert_totals(both).values() for count in counts]
    assert [int(count) for (count,) in found.rows("moe_expert_activations", "activation_count")] == halves
    assert sum(halves) == 4 * 4192 * 4  # layers x tokens x top-k
    assert {rank for (rank,) in found.rows("moe_load_imbalance", "rank")} == {"0"}
    assert {rank for (rank,) in found.rows("moe_routing_weights_hist", "rank")} == {"0"}
    assert len(found.rows("moe_load_imbalance", "rank")) == 188
    # Times are every rank's own.
    assert Counter(found.rows("moe_layer_timings", "rank")) == {("0",): 188, ("1",): 188}


def test_sqlite_and_parquet_give_the_same_files(analysed: dict[str, Written]) -> None:
    one, other = analysed[CASES[0]], analysed[CASES[1]]
    names = {f.name for f in one.folder.iterdir()}
    assert names == {f.name for f in other.folder.iterdir()} == file_set("csv")
    for name in names - {"moe_capture_validation.json"}:
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
    first, second = one.validation, other.validation
    (sqlite,), (parquet,) = first.pop("inputs"), second.pop("inputs")
    assert first == second
    differing = {key for key in sqlite if sqlite[key] != parquet[key]}
    assert differing == {"path", "kind", "size_bytes"}


def test_a_report_a_rank_gives_the_same(
    analysed: dict[str, Written], captures: dict[str, Path], tmp_path: Path
) -> None:
    """The two workers' rows in an export each, on one clock."""
    halves = [_only_process(captures[CASES[2]], tmp_path / f"{pid}.sqlite", pid) for pid in (2084, 2085)]
    found = written(tmp_path, *reversed(halves))
    for name in (*TABLES, "moe_summary.json"):
        assert found.text(name) == analysed[CASES[2]].text(name), name
    for name in PARQUET_ONLY:
        assert found.frame(name).equals(analysed[CASES[2]].frame(name)), name
    assert found.verdict == "complete"
    assert [i["processes"][0]["rank"] for i in found.validation["inputs"]] == [0, 1]
    assert found.validation["coverage"] == analysed[CASES[2]].validation["coverage"]


def _only_process(capture: Path, path: Path, pid: int) -> Path:
    shutil.copy(capture, path)
    connection = sqlite3.connect(path)
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table in (
        nsys_tables.NVTX,
        nsys_tables.RUNTIME,
        nsys_tables.GRAPH_NODES,
        nsys_tables.KERNEL,
        nsys_tables.MEMCPY,
        nsys_tables.MEMSET,
    ):
        if table.name in present:
            ident = "globalTid" if "globalTid" in table.columns else "globalPid"
            connection.execute(f"DELETE FROM {table.name} WHERE ({ident} >> 24) & 0xFFFFFF != {pid}")
    connection.commit()
    connection.close()
    return path


@pytest.mark.parametrize("case", [CASES[0], CASES[2]])
def test_files_are_as_kept(case: str, analysed: dict[str, Written], update_golden: bool) -> None:
    found = analysed[case]
    kept = {name: found.text(name) for name in ("moe_summary.json", "moe_expert_activations.csv")}
    for stem in TABLES[1:]:
        kept[f"{stem}.head.csv"] = "".join(found.text(stem).splitlines(keepends=True)[:HEAD])
    validation: dict[str, Any] = {k: v for k, v in found.validation.items() if k not in ("options", "inputs")}
    kept["moe_capture_validation.json"] = json.dumps(validation, indent=2) + "\n"
    folder = GOLDEN / "expected" / case
    if update_golden:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, text in kept.items():
            (folder / name).write_text(text)
    assert {f.name: f.read_text() for f in folder.iterdir()} == kept


# A larger export: three data-parallel processes with colliding ids, two tiles each --------------------------------

PROCESSES, KERNELS = 3, 30_000


@pytest.fixture(scope="module")
def tiled(golden_1gpu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiled")
    tile_capture(golden_1gpu, folder, KERNELS, 1.4, PROCESSES, 0, {"sqlite", "parquet"}, topk_every=2)
    return folder


@pytest.mark.parametrize("name", ["tiled.sqlite", "tiled_pqtdir"])
def test_tiled_capture_equals_its_truth(tiled: Path, tmp_path: Path, name: str) -> None:
    found = written(tmp_path, tiled / name)
    truth = json.loads((tiled / "truth.json").read_text())
    assert found.verdict == "complete"

    cells = pl.read_csv(found.folder / "moe_layer_timings.csv")
    true_cells = pl.read_parquet(tiled / "truth_cells.parquet").sort("rank", "step", "layer_idx")
    assert len(cells) == truth["count_cells"] == PROCESSES * 2 * 184
    assert_frame_equal(cells.select(true_cells.columns), true_cells)

    kernels = pl.read_csv(found.folder / "moe_kernel_timings.csv").drop_nulls("layer_idx")
    key = ["rank", "layer_idx", "phase", "name", "launched_by"]
    copy = pl.col("kind") == "memcpy"
    true_kernels = pl.read_parquet(tiled / "truth_kernels.parquet").with_columns(
        pl.when(copy).then(pl.format("[CUDA memcpy {}]", "name")).otherwise("name").alias("name")
    )
    assert_frame_equal(
        kernels.rename({"kernel_name": "name"}).select(*key, "count", "total_ns").sort(key),
        true_kernels.select(*key, "count", "total_ns").sort(key),
    )

    activations = pl.read_csv(found.folder / "moe_expert_activations.csv")
    true_activations = pl.read_parquet(tiled / "truth_activations.parquet")
    assert_frame_equal(activations.select(true_activations.columns), true_activations)

    classes = found.validation["coverage"]["classes"]
    said = {"in_step_outside_layers": "in_step"}
    for where, numbers in truth["coverage"].items():
        one = classes[said.get(where, where)]
        assert {"operations": one["operations"], "ns": one["time_ns"]} == numbers, where

    weights = pl.read_csv(found.folder / "moe_routing_weights_hist.csv")
    assert len(weights) == truth["topk_tokens"] * 4
    assert weights["rank"].unique().sort().to_list() == [0, 1, 2]
    # Data-parallel ranks stand side by side: each its own rows.
    imbalance = pl.read_csv(found.folder / "moe_load_imbalance.csv")
    assert imbalance.select("rank", "step", "layer_idx").n_unique() == len(imbalance) == truth["count_cells"]
