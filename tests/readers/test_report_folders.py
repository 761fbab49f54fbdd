"""A folder of reports as one input."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nvtxmoe_analysis.readers.find_inputs import reports_of
from tests.ingest.test_many_reports import validation
from tests.support.cli import TWO_GPUS, everything, everything_but_its_path, refused, run
from tests.support.many_captures import reports
from tests.support.sessions import journal, run_of


def made(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True) if name.endswith("_pqtdir") else path.touch()
    return folder


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["b.nsys-rep", "a.nsys-rep"], ["a.nsys-rep", "b.nsys-rep"]),
        (["a.nsys-rep", "a.sqlite"], ["a.sqlite"]),
        (["a.nsys-rep", "a_pqtdir"], ["a_pqtdir"]),
        (["a.nsys-rep", "a.nvtxmoe.sqlite"], ["a.nsys-rep"]),
        (["a.nvtxmoe.sqlite", "b.sqlite"], ["a.nvtxmoe.sqlite", "b.sqlite"]),
        (["renamed/META_DATA_EXPORT.parquet", "b.nsys-rep"], ["b.nsys-rep", "renamed"]),
        (["a/StringIds.parquet", "a.nsys-rep"], ["a"]),
        (["a/StringIds.parquet", "a_pqtdir"], ["a", "a_pqtdir"]),
        (["results/moe_step_activations.parquet", "a.sqlite"], ["a.sqlite"]),
        (["a.nsys-rep", "a.log", "moe_expert_tracking/x.csv", "below/c.nsys-rep"], ["a.nsys-rep"]),
    ],
)
def test_each_report_once(tmp_path: Path, there: list[str], taken: list[str]) -> None:
    folder = made(tmp_path / "reports", *there)
    assert reports_of([folder]) == [folder / name for name in taken]


@pytest.mark.parametrize("there", [[], ["a.log"], ["NVTX_EVENTS.parquet", "a.sqlite"], ["below/a.sqlite"]])
def test_other_folders_stay(tmp_path: Path, there: list[str]) -> None:
    folder = made(tmp_path, *there)
    assert reports_of([folder, tmp_path / "nothing"]) == [folder, tmp_path / "nothing"]


def test_a_session_is_none(tmp_path: Path) -> None:
    journal(tmp_path, run_of())
    (tmp_path / "a.sqlite").touch()
    assert reports_of([tmp_path]) == [tmp_path]


def test_they_are_analysed_as_if_named(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    paths = reports(tmp_path / "reports", 3)
    shutil.copytree(TWO_GPUS, tmp_path / "capture_pqtdir")
    assert run("analyze", tmp_path / "reports", "-o", tmp_path / "folder").code == 0
    assert run("analyze", *paths, "-o", tmp_path / "named").code == 0
    assert everything_but_its_path(tmp_path / "folder") == everything_but_its_path(tmp_path / "named")
    assert [one["path"] for one in validation(tmp_path / "folder")["inputs"]] == [str(path) for path in paths]
    # Results in that folder are no reports: it can be analysed again.
    for _ in range(2):
        assert run("analyze", tmp_path / "reports", "-o", tmp_path / "reports").code == 0
    assert run("analyze", tmp_path / "capture_pqtdir", "-o", tmp_path / "parquet").code == 0


def test_a_folder_of_renamed_parquet_exports(tmp_path: Path) -> None:
    """``nsys export --type parquetdir`` ends the name in _pqtdir; people rename it."""
    shutil.copytree(TWO_GPUS, tmp_path / "reports" / "node 0, Tuesday")
    assert run("analyze", tmp_path / "reports", "-o", tmp_path / "folder").code == 0
    assert run("analyze", TWO_GPUS, "-o", tmp_path / "named").code == 0
    made, named = (everything(tmp_path / name / "moe_expert_tracking") for name in ("folder", "named"))
    assert {name for name in made if made[name] != named[name]} <= {"moe_capture_validation.json"}
    refused(run("inspect", tmp_path / "reports"), "a folder of 1 report", f"Name it: {tmp_path}")


def test_a_report_in_a_folder_that_is_given_too(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    path, _ = reports(tmp_path / "reports", 2)
    refused(run("analyze", tmp_path / "reports", path, "-o", tmp_path / "out"), f"{path}: given twice")


def test_what_wants_one_report_names_those_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    path, _ = reports(tmp_path / "reports", 2)
    line = refused(run("inspect", tmp_path / "reports"), f"{tmp_path / 'reports'}: a folder of 2 reports")
    assert f"Name one, as {path}" in line


def test_sessions_are_named_one_by_one(tmp_path: Path) -> None:
    journal(tmp_path / "all" / "host0", run_of())
    refused(run("analyze", tmp_path / "all", "-o", tmp_path / "out"), "a folder of sessions. Name each session")


def test_a_folder_without_any_says_so(tmp_path: Path) -> None:
    made(tmp_path / "empty", "a.log")
    refused(
        run("analyze", tmp_path / "empty", "-o", tmp_path / "out"), "neither reports nor Parquet files", "name each"
    )
