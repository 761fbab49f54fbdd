"""Exports whose tables have the names of another version, or whose GPU work is absent: what is said of them."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from tests.support.cli import analyze, run
from tests.support.export_builder import Export, simple_run

REMEDY = "which this nvtxmoe does not read"


def built(tmp_path: Path, *statements: str) -> Path:
    export = Export()
    worker = simple_run(export)
    with worker.step(9):
        for layer in range(worker.layers):
            with worker.layer(layer):
                worker.kernel()
                worker.memcpy()
    for layer in range(worker.layers):
        worker.counts(9, layer, [3, 3, 0, 0])
    path = export.save(tmp_path / "built.sqlite")
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return path


def test_ranges_under_another_name(tmp_path: Path) -> None:
    path = built(tmp_path, "ALTER TABLE NVTX_EVENTS RENAME TO NVTX_EVENTS_V2")
    ran = run("analyze", path, "-o", tmp_path / "out")
    assert (ran.code, ran.out) == (2, "")
    assert f"no table NVTX_EVENTS, but NVTX_EVENTS_V2, {REMEDY}" in " ".join(ran.err.split())


@pytest.mark.parametrize("copies", [True, False])
def test_kernels_under_another_name(tmp_path: Path, copies: bool) -> None:
    """With copies, which are read, too: the time of kernels is unknown, and their table is named."""
    path = built(
        tmp_path,
        "ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL RENAME TO CUPTI_ACTIVITY_KIND_KERNEL_V2",
        *([] if copies else ["DELETE FROM CUPTI_ACTIVITY_KIND_MEMCPY"]),
    )
    ran = analyze(path, tmp_path / "out")
    assert ran.code == 0
    assert "Capture incomplete" in ran.out
    text = " ".join(ran.out.split())
    assert f"The export has CUPTI_ACTIVITY_KIND_KERNEL_V2, {REMEDY}" in text
    assert ("GPU time is unknown: the capture has no GPU operation." in text) == (not copies)


def test_no_gpu_time_is_unknown_and_not_zero(tmp_path: Path) -> None:
    """The command that was run is not advised again where the capture was asked to trace CUDA."""
    path = built(
        tmp_path,
        "DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL",
        "DELETE FROM CUPTI_ACTIVITY_KIND_MEMCPY",
        "DELETE FROM CUPTI_ACTIVITY_KIND_RUNTIME",
        "CREATE TABLE META_DATA_CAPTURE (name TEXT NOT NULL, value TEXT)",
        "INSERT INTO META_DATA_CAPTURE VALUES ('COMMON_ANALYSIS_SETTINGS:COLLECT_CUDA_TRACE', 'true')",
    )
    ran = run("analyze", path, "-o", tmp_path / "out", "--json")
    found = json.loads(ran.out)
    assert (found["verdict"], found["in_layer_ns"], found["in_layer_pct"]) == ("incomplete", None, None)
    (reason,) = [reason for reason in found["reasons"] if "no CUDA activity" in reason]
    assert "The capture was asked to trace CUDA" in reason
    assert "nsys profile -t" not in reason
    assert "0.0 us of kernels" not in analyze(path, tmp_path / "again").out
