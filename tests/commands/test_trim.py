"""`nvtxmoe trim`: every figure survives, nothing private does."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from nvtxmoe import cli
from nvtxmoe.commands.demo import CAPTURE
from nvtxmoe_analysis.analyze import analyze
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.open import open_export
from nvtxmoe_analysis.trimming.trim import select
from tests.support.cli import RESULTS, TWO_GPUS, run
from tests.support.export_builder import Export, Process, simple_run
from tests.support.trimmed_exports import MARKER, cloned, content, figures, holds, plant, plant_parquet, trimmed


@pytest.fixture(scope="module", params=["one GPU", "two GPUs", "Parquet"])
def planted(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    golden_1gpu: Path,
    golden_2gpu: Path,
    golden_1gpu_parquet: Path,
) -> Path:
    """A capture with private things in it, as people have them."""
    folder = tmp_path_factory.mktemp("planted")
    if request.param == "Parquet":
        return plant_parquet(golden_1gpu_parquet, folder / "capture")
    return plant(golden_1gpu if request.param == "one GPU" else golden_2gpu, folder / "capture.sqlite")


# Figures --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.sqlite", "out"])
def test_every_figure_survives_and_nothing_private(planted: Path, tmp_path: Path, name: str) -> None:
    assert holds(planted, MARKER)
    out = tmp_path / name
    done = trimmed(planted, out)
    assert figures(out) == figures(planted)
    assert not holds(out, MARKER)
    assert not holds(out, "sem_wait")
    assert done.bytes_after < done.bytes_before or planted.is_dir() != out.is_dir()
    assert done.rows_after < done.rows_before


@pytest.mark.parametrize("name", ["out.sqlite", "out"])
def test_twice_gives_the_same(planted: Path, tmp_path: Path, name: str) -> None:
    once, twice = tmp_path / name, tmp_path / "again" / name
    twice.parent.mkdir()
    trimmed(planted, once)
    done = trimmed(once, twice)
    assert content(once) == content(twice)
    assert all(before == after for before, after in done.rows.values())


def test_the_same_through_the_other_format(golden_2gpu: Path, tmp_path: Path) -> None:
    trimmed(golden_2gpu, tmp_path / "folder")
    trimmed(tmp_path / "folder", tmp_path / "back.sqlite")
    trimmed(tmp_path / "back.sqlite", tmp_path / "again")
    assert content(tmp_path / "folder") == content(tmp_path / "again")
    trimmed(golden_2gpu, tmp_path / "straight.sqlite")
    assert (tmp_path / "back.sqlite").read_bytes() == (tmp_path / "straight.sqlite").read_bytes()


#: tests/golden/README.md: kernels and copies in layers, (number, ns); operations in steps outside layers; outside.
REFERENCE = {
    "one": ((1300, 9_029_262), (552, 601_830), 3044, 21_632),
    "two": ((3408, 14_442_661), (1128, 1_204_533), 7396, 33_220),
}


def test_golden_captures_have_the_reference_figures(
    golden_1gpu: Path, golden_1gpu_parquet: Path, golden_2gpu: Path
) -> None:
    for name, path in (("one", golden_1gpu), ("one", golden_1gpu_parquet), ("two", golden_2gpu), ("two", TWO_GPUS)):
        found = figures(path)
        by_class: dict[tuple[int, int], tuple[int, int]] = {(c, k): (n, t) for c, _, k, n, t in found["coverage"]}
        in_step, outside = (sum(n for (c, _), (n, _) in by_class.items() if c == code) for code in (1, 2))
        assert (by_class[0, 0], by_class[0, 1], in_step, outside) == REFERENCE[name]
        assert len(found["counts"]) == (184 if name == "one" else 376)
        assert all(launch[-1] for launch in found["launches"])  # has_work


def test_what_is_trimmed_already_says_why_its_copy_is_larger(tmp_path: Path) -> None:
    """Parquet files are compressed, a SQLite file is not."""
    as_sqlite, as_parquet = (
        run("trim", TWO_GPUS, tmp_path / "two.sqlite").out,
        run("trim", TWO_GPUS, tmp_path / "two").out,
    )
    assert (
        " rows kept: there was nothing to trim" in as_sqlite and " rows kept: there was nothing to trim" in as_parquet
    )
    assert "SQLite files are not compressed" in as_sqlite and "SQLite" not in as_parquet
    assert (tmp_path / "two.sqlite").stat().st_size > sum(map(len, content(TWO_GPUS).values()))


def test_the_demo_capture_is_small_and_has_nothing_else() -> None:
    files = content(CAPTURE)
    assert sum(map(len, files.values())) < 3_000_000
    assert {Path(name).stem for name in files} <= {table.name for table in nsys_tables.ALL}
    rows = select(open_export(CAPTURE))
    assert {table.name for table in rows} == {Path(name).stem for name in files}
    assert all(
        len(kept) == pq.read_metadata(CAPTURE / f"{table.name}.parquet").num_rows for table, kept in rows.items()
    )


def test_launches_without_work_and_stream_captures_survive(tmp_path: Path) -> None:
    export = Export()
    worker = simple_run(export, steps=2)
    with worker.step(2), worker.layer(0):
        worker.call()  # its kernel is lost
        worker.call("cudaMemcpyAsync_v3020", returned=1)  # failed
        worker.call("cudaStreamSynchronize_v3020")
        captured = worker.call()
        end = export.rows["CUPTI_ACTIVITY_KIND_RUNTIME"][captured - 1]["end"]
        worker.create_node(1)["start"] = end - 1  # a stream capture took it
    worker.call()  # between steps
    worker.create_node(2)
    worker.clone_node(12, 2)
    with worker.step(3):
        launch = worker.call("cudaGraphLaunch_v10000")
        worker.kernel(correlation=launch, node=12)
        worker.kernel(correlation=launch, node=99)  # never created
    worker.create_node(3)  # of no use
    source = export.save(tmp_path / "built.sqlite")
    done = trimmed(source, tmp_path / "out.sqlite")
    expected = figures(source)
    assert figures(tmp_path / "out.sqlite") == expected
    assert [launch[-1] for launch in expected["launches"]].count(False) == 1
    assert expected["nodes_unresolved"] == 1
    calls = len(export.rows["CUPTI_ACTIVITY_KIND_RUNTIME"])
    assert done.rows["CUPTI_ACTIVITY_KIND_RUNTIME"] == (calls, calls - 2)
    assert done.rows["CUDA_GRAPH_NODE_EVENTS"] == (5, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.sqlite", "out"])
@pytest.mark.parametrize("encoding", ["binary", "words"])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_clones_of_clones_give_the_same_tables(tmp_path: Path, depth: int, encoding: str, name: str) -> None:
    source = cloned(depth, encoding).save(tmp_path / "built.sqlite")
    done = trimmed(source, tmp_path / name)
    before, after = done.rows["CUDA_GRAPH_NODE_EVENTS"]
    assert before - after == 2 * (1 + 2 * depth)  # a node of no use and two rows of each clone, in two processes
    whole, small = tmp_path / "of-the-whole", tmp_path / "of-the-trimmed"
    for folder, path in ((whole, source), (small, tmp_path / name)):
        analyze([path], folder)
    tables = sorted(path.name for path in (whole / RESULTS).glob("*.csv"))
    assert "moe_layer_timings.csv" in tables
    for table in tables:
        assert (whole / RESULTS / table).read_bytes() == (small / RESULTS / table).read_bytes(), table
    times = pl.read_csv(whole / RESULTS / "moe_layer_timings.csv").filter(rank=0).sort("step", "layer_idx")
    assert times["kernel_time_ns"].to_list() == [100, 200] * 3
    checks = [
        {check["name"]: check["status"] for check in json.loads(file.read_text())["checks"]}
        for file in ((folder / RESULTS / "moe_capture_validation.json") for folder in (whole, small))
    ]
    assert checks[0] == checks[1]


def test_ids_that_collide_between_processes(tmp_path: Path) -> None:
    export = Export()
    simple_run(export, pid=100, rank=0, world_size=2)
    other = Process(export, pid=200, rank=1, world_size=2)
    other.send_meta()
    for _ in range(30):
        other.call("cudaEventRecord_v3020")  # with the numbers of the first one's launches
    source = export.save(tmp_path / "built.sqlite")
    done = trimmed(source, tmp_path / "out")
    assert figures(tmp_path / "out") == figures(source)
    before, after = done.rows["CUPTI_ACTIVITY_KIND_RUNTIME"]
    assert before - after == 30


def test_a_domain_without_events(tmp_path: Path) -> None:
    export = Export()
    Process(export).kernel()
    source = export.save(tmp_path / "built.sqlite")
    for name in ("out.sqlite", "out"):
        trimmed(source, tmp_path / name)
        trimmed(tmp_path / name, tmp_path / f"again-{name}")
        assert figures(tmp_path / f"again-{name}") == figures(source)


# The command ----------------------------------------------------------------------------------------------------------


def test_command(golden_2gpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shared.sqlite"
    assert cli.run(["trim", str(golden_2gpu), str(out)]) == 0
    assert (
        capsys.readouterr().out == f"{out}: 3.9 MB -> 3.9 MB, 89,797 of 89,797 rows kept: there was nothing to trim\n"
    )
    assert cli.run(["trim", "--json", str(golden_2gpu), str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows_after"] == 89_797
    assert found["tables"]["CUPTI_ACTIVITY_KIND_KERNEL"] == {"before": 40_601, "after": 40_601}
    assert found["bytes_after"] == out.stat().st_size


def test_command_errors(
    payload_encodings: Path, golden_1gpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["trim", str(payload_encodings), str(tmp_path / "out.sqlite")]) == 2
    assert "no events of the NVTX domain nvtxmoe" in capsys.readouterr().err
    assert cli.run(["trim", str(golden_1gpu), str(golden_1gpu)]) == 2
    assert "input and output are the same" in capsys.readouterr().err
    assert not (tmp_path / "out.sqlite").exists()
