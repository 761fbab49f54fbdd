"""FIFOs and devices where a file would be read: refused in one line, never waited for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nvtxmoe.capture.startup.settings import load
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.profile.interpreter import python_of
from nvtxmoe.sizing.model_config import read_config
from nvtxmoe_analysis.core.file_set import COMMIT
from tests.support.cli import RESULTS, TWO_GPUS, Ran, analyze, refused, spawn
from tests.support.constructed_runs import simple

#: Seconds after which a command is taken to wait for ever.
LONGEST_S = 120


def refuses_at_once(place: Path, *arguments: object) -> None:
    ran: Ran = spawn(*arguments, timeout=LONGEST_S)
    refused(ran, f"{place}: a FIFO, where a file would be read. Remove or rename it")


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
@pytest.mark.parametrize("command", [("analyze",), ("inspect",), ("trim", "{}/out.sqlite")])
def test_beside_a_database(tmp_path: Path, suffix: str, command: tuple[str, ...]) -> None:
    source = simple().save(tmp_path / "x.sqlite")
    os.mkfifo(fifo := tmp_path / f"x.sqlite{suffix}")
    more = ("-o", tmp_path / "results") if command == ("analyze",) else ()
    name, *rest = (part.format(tmp_path) for part in command)
    refuses_at_once(fifo, name, source, *rest, *more)


def test_a_table_of_a_parquet_folder(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(TWO_GPUS, folder)
    (folder / "NVTX_EVENTS.parquet").unlink()
    os.mkfifo(fifo := folder / "NVTX_EVENTS.parquet")
    refuses_at_once(fifo, "analyze", folder, "-o", tmp_path / "results")
    refuses_at_once(fifo, "trim", folder, tmp_path / "out.sqlite")


def test_a_result_file(tmp_path: Path) -> None:
    """It counts as missing."""
    analyze(TWO_GPUS, tmp_path)
    results = tmp_path / RESULTS
    (results / "moe_summary.json").unlink()
    os.mkfifo(results / "moe_summary.json")
    refused(spawn("compare", results, results, timeout=LONGEST_S), f"{results}: no moe_summary.json")


def test_the_commit_of_a_result_folder(tmp_path: Path) -> None:
    analyze(TWO_GPUS, tmp_path)
    os.mkfifo(fifo := tmp_path / RESULTS / COMMIT)
    refuses_at_once(fifo, "report", tmp_path / RESULTS)


def test_beside_the_database_of_results(tmp_path: Path) -> None:
    analyze(TWO_GPUS, tmp_path, "--sqlite", tmp_path / "r.db")
    os.mkfifo(fifo := tmp_path / "r.db-journal")
    refuses_at_once(fifo, "analyze", TWO_GPUS, "-o", tmp_path, "--sqlite", tmp_path / "r.db")


def test_files_of_settings_models_and_programs(tmp_path: Path) -> None:
    os.mkfifo(fifo := tmp_path / "config.json")
    with pytest.raises(NvtxmoeError, match="a FIFO, where a file would be read"):
        load({"NVTXMOE_CONFIG": str(fifo)})
    assert read_config(tmp_path) is None
    fifo.chmod(0o755)
    assert python_of([str(fifo)]) is None
