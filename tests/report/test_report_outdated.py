"""A report beside newer tables: written again by the commands, marked by everything else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.analyze import analyze
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.ingest.task import Task, read
from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.recipes import write_reports
from nvtxmoe_analysis.report.outdated import NOTICE, mark_outdated
from nvtxmoe_analysis.report.result import page_of
from tests.support.cli import run
from tests.support.constructed_runs import simple

OLD = b"<!doctype html>\n<html><head></head><body>\n<h1>Of earlier results</h1>\r\n</body></html>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An older page where results would be written."""
    (tmp_path / "report.html").write_bytes(OLD)
    return tmp_path


def test_the_notice_stands_at_the_top_and_the_rest_is_untouched(folder: Path) -> None:
    assert mark_outdated(folder / FOLDER)
    marked = (folder / "report.html").read_bytes()
    assert marked.replace(NOTICE, b"") == OLD
    assert marked.index(NOTICE) == marked.index(b"<body>") + len(b"<body>")
    assert mark_outdated(folder / FOLDER)  # once is enough
    assert (folder / "report.html").read_bytes() == marked
    assert b"nvtxmoe report DIR" in NOTICE


def test_findings_that_cannot_be_written_are_not_those_of_earlier_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = simple().save(tmp_path / "run.sqlite")
    analyze([export], tmp_path)
    assert (tmp_path / "findings.json").is_file()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nvtxmoe_analysis.analyze.write_findings", full)
    with pytest.raises(OSError, match="No space"):
        analyze([export], tmp_path, selection=Selection(first_step=1))
    assert not (tmp_path / "findings.json").exists()


@pytest.mark.parametrize("content", [None, b"notes of mine", b"\xff\xfe"])
def test_what_is_no_page_is_left_alone(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.html").write_bytes(content)
    assert not mark_outdated(tmp_path / FOLDER)
    assert (tmp_path / "report.html").read_bytes() == content if content else not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_marked_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(NvtxmoeError, match="cannot write the notice that it is outdated: No space left"):
        mark_outdated(folder / FOLDER)
    monkeypatch.undo()
    assert (folder / "report.html").read_bytes() == OLD


def test_the_page_of_a_folder_without_the_inner_one_is_in_it(tmp_path: Path) -> None:
    assert page_of(tmp_path) == tmp_path / "report.html"
    assert page_of(tmp_path / FOLDER) == tmp_path / "report.html"


def test_tables_written_by_a_program_mark_the_page(folder: Path) -> None:
    source = simple().save(folder / "run.sqlite")
    analyze([source], folder)
    assert (folder / "report.html").read_bytes() == OLD.replace(b"<body>", b"<body>" + NOTICE)


def test_tables_written_by_a_recipe_mark_the_page(folder: Path) -> None:
    source = simple().save(folder / "run.sqlite")
    facts = read(Task(source, source, Selection()))
    write_reports([facts], folder, recipe="moe_expert_sum", filters={})
    assert NOTICE in (folder / "report.html").read_bytes()


def test_tables_written_by_a_command_write_the_page_again(folder: Path) -> None:
    source = simple().save(folder / "run.sqlite")
    ran = run("analyze", source, "-o", folder)
    assert ran.code == 0
    page = (folder / "report.html").read_bytes()
    assert NOTICE not in page and b"Of earlier results" not in page
    assert str(folder / "report.html") in ran.out.replace("\n", "")


def test_a_page_that_could_not_be_written_again_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise NvtxmoeError("altair is missing", remedy="Install it")

    monkeypatch.setattr("nvtxmoe_analysis.report.report", broken)
    ran = run("analyze", simple().save(folder / "run.sqlite"), "-o", folder)
    assert (ran.code, "altair is missing" in ran.err) == (2, True)
    assert NOTICE in (folder / "report.html").read_bytes()


def test_the_page_says_how_old_its_tables_are(tmp_path: Path) -> None:
    ran = run("analyze", simple().save(tmp_path / "run.sqlite"), "-o", tmp_path)
    assert ran.code == 0
    for file in (tmp_path / FOLDER).iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))  # 2001-09-09 01:46:40 UTC
    os.utime(tmp_path / FOLDER / "moe_capacity.csv", (1_000_086_400, 1_000_086_400))
    assert run("report", tmp_path).code == 0
    head = (tmp_path / "report.html").read_text().split("<main>")[0]
    assert "result files of 2001-09-10 01:46 UTC" in head
