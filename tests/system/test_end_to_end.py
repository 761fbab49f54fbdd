"""Whole ways: a program under a real nsys to the result files, and a GPU program's capture to its own counts."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nvtxmoe.cli import run
from nvtxmoe_analysis.analyze import analyze
from tests.support.cli import TWO_GPUS
from tests.support.nsys_runs import profile_nvtx
from tests.support.paths import GOLDEN, ROOT


def activations(folder: Path) -> dict[int, list[int]]:
    """Counts by layer, from the CSV file."""
    counts: dict[int, list[int]] = defaultdict(list)
    with (folder / "moe_expert_tracking" / "moe_expert_activations.csv").open() as file:
        for row in csv.DictReader(file):
            counts[int(row["layer_idx"])].append(int(row["activation_count"]))
    return dict(counts)


@pytest.fixture(scope="module")
def captured(nsys_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A report of programs/emit_words.py made by the real nsys, and what the program said it emitted."""
    folder = tmp_path_factory.mktemp("nsys")
    report = folder / "run.nsys-rep"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    program = [sys.executable, ROOT / "tests" / "programs" / "emit_words.py"]
    done = profile_nvtx(nsys_path, report, program, env={**os.environ, "PYTHONPATH": path}, cwd=folder)
    said: dict[str, Any] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return report, said


def test_a_report_of_the_real_nsys(
    captured: tuple[Path, dict[str, Any]], nsys_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, said = captured
    assert run(["analyze", str(report), "-o", str(tmp_path), "--nsys", str(nsys_path)]) == 0
    assert "no CUDA activity" in capsys.readouterr().out
    wanted = {int(layer): counts for layer, counts in said["activations"].items()}
    assert activations(tmp_path) == wanted
    validation = json.loads((tmp_path / "moe_expert_tracking" / "moe_capture_validation.json").read_text())
    failed = [check["name"] for check in validation["checks"] if check["status"] == "fail"]
    assert (validation["verdict"], failed) == ("incomplete", ["cuda_tracing"])  # there is no GPU here
    assert [p["rank"] for p in validation["inputs"][0]["processes"]] == [0, 1]
    assert validation["inputs"][0]["payload_encoding"] == "words"
    assert run(["analyze", str(report), "-o", str(tmp_path), "--nsys", str(nsys_path), "--strict"]) == 3


def test_inspect_and_trim_read_the_report_too(
    captured: tuple[Path, dict[str, Any]], nsys_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, said = captured
    small = tmp_path / "small.sqlite"
    assert run(["inspect", str(report), "--nsys", str(nsys_path)]) == 0
    assert run(["trim", str(report), str(small), "--nsys", str(nsys_path)]) == 0
    assert run(["analyze", str(small), "-o", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert activations(tmp_path / "out") == {int(layer): counts for layer, counts in said["activations"].items()}


def test_no_nsys_here(
    captured: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A report without a cache, and no nsys on the machine."""
    report = tmp_path / "moved.nsys-rep"
    report.write_bytes(captured[0].read_bytes())
    monkeypatch.delenv("NVTXMOE_NSYS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["analyze", str(report), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "nsys export --type sqlite --include-blobs=true" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_gpu_program_counted_the_same(golden_program: Path, tmp_path: Path) -> None:
    """32 graph replays and 8 eager steps on an H200, against the program's own totals."""
    said = json.loads((GOLDEN / "h200-graph-program.counts.json").read_text())
    done = analyze([golden_program], tmp_path)
    assert done.complete
    assert list(activations(tmp_path).values()) == said["counts"]
    layers = done.results.layers
    assert len(layers) == said["steps"] * len(said["counts"])
    by_way = dict(layers.group_by("launched_by").len().rows())
    assert by_way == {"eager": 8 * 4, "graph": 32 * 4}
    # The same kernels run either way, so a graph cell has as many as an eager one.
    assert layers.group_by("layer").agg(pl.col("kernel_count").n_unique())["kernel_count"].to_list() == [1] * 4
    kernels = done.results.kernels
    assert set(kernels.drop_nulls("layer_idx")["phase"]) == {"route", "experts", "combine", "other"}
    coverage = done.validation["coverage"]
    assert coverage["placed_pct_of_step_time"] == 100.0
    assert coverage["classes"]["unplaced"]["operations"] == 0


def test_a_folder_of_parquet_files_gives_what_sqlite_gives(golden_2gpu: Path, tmp_path: Path) -> None:
    """The same reference figures from Parquet (tests/golden/README.md), and the same files as from SQLite."""
    parquet, sqlite = analyze([TWO_GPUS], tmp_path / "parquet"), analyze([golden_2gpu], tmp_path / "sqlite")
    layers = parquet.results.layers
    sums = [int(layers[c].sum()) for c in ("kernel_count", "kernel_time_ns", "memcpy_count", "memcpy_time_ns")]
    assert [len(layers), *sums] == [376, 3_408, 14_442_661, 1_128, 1_204_533]
    classes = parquet.validation["coverage"]["classes"]
    assert (classes["in_step"]["operations"], classes["outside_steps"]["operations"]) == (7_396, 33_220)
    for one, other in zip(parquet.files, sqlite.files, strict=True):
        if one.name not in ("moe_capture_validation.json", "findings.json"):  # both name the capture
            assert one.read_bytes() == other.read_bytes()
    found, others = (
        json.loads((tmp_path / name / "findings.json").read_text())["findings"] for name in ("parquet", "sqlite")
    )
    for finding in (*found, *others):
        del finding["next_step"]  # its command has the capture's path
    assert found == others
