"""``nvtxmoe report`` and ``nvtxmoe analyze --report``."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nvtxmoe_analysis.outputs import read
from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.report import advice
from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.findings import findings
from nvtxmoe_analysis.report.ledger import Ledger
from tests.support.cli import TWO_GPUS, analyze, everything, files, refused, run, spawn
from tests.support.report_results import EVIL, Made, write


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A made run's results."""
    made = Made()
    return write(tmp_path / "results", made.tables(), made.documents())


def test_the_page_is_all_that_is_written(results: Path) -> None:
    before = everything(results)
    ran = run("report", results)
    assert (ran.code, ran.err) == (0, "")
    made = {"report.html", "findings.json"}
    assert files(results) - before.keys() == made
    assert {name: content for name, content in everything(results).items() if name not in made} == before
    lines = ran.out.splitlines()
    assert lines[0] == "Is MoE the problem? decode: yes; prefill: not known"
    assert any(line.startswith("1. The experts' matrix products take 60.0 us") for line in lines)
    assert lines[-1] == f"Report: {results / 'report.html'}"


def test_the_inner_folder_does_too(results: Path) -> None:
    assert run("report", results / FOLDER).code == 0
    assert (results / "report.html").exists()


def test_it_replaces_the_page_whole(results: Path) -> None:
    assert run("report", results).code == 0
    first = (results / "report.html").read_bytes()
    (results / "report.html").write_text("older")
    assert run("report", results).code == 0
    assert (results / "report.html").read_bytes() == first
    mask = os.umask(0o022)
    os.umask(mask)
    assert stat.S_IMODE((results / "report.html").stat().st_mode) == 0o666 & ~mask


def test_as_json(results: Path) -> None:
    found = run("report", results, "--json", "--images").json
    assert found["report"] == str(results / "report.html")
    assert len(found["images"]) == 2 * len(found["charts"]) == 22
    assert (found["missing"], any("moe_capacity" in said for said in found["absent"])) == ({}, False)
    assert found["answers"][0]["question"] == "Is MoE the problem?"
    assert json.loads((results / "findings.json").read_text())["findings"] == found["findings"]
    costliest = next(one for one in found["findings"] if one["id"] == "costliest-layer")
    assert costliest["title"].startswith("Layer 3 costs most: ")
    first = costliest["numbers"][0]
    assert (first["file"], first["column"], first["how"], first["where"], first["unit"], first["kind"]) == (
        "moe_layer_correlation.csv", "own_ns", "per_step", {"layer_idx": 3}, "ns", "measured",
    )  # fmt: skip
    assert costliest["numbers"][1]["of"] == [first["text"], costliest["numbers"][2]["text"]]


def test_pictures_are_said(tmp_path: Path) -> None:
    made = Made()
    activations = {"moe_expert_activations": made.activations()}
    results = write(tmp_path / "results", activations, made.documents())
    assert run("report", results, "--images").out.splitlines()[-1] == f"Charts: 2 files {results / 'report-*'}"


def test_names_from_the_capture_do_not_reach_the_terminal(tmp_path: Path) -> None:
    made = Made()
    documents = made.documents()
    documents["moe_straggler"] = {"reason": "\x1b[31mred\x07 [bold]not markup[/bold]"}
    tables = made.tables()
    tables["moe_straggler"] = tables["moe_straggler"].clear()
    ran = run("report", write(tmp_path, tables, documents))
    assert "\x1b" not in ran.out and "\x07" not in ran.out
    assert "No chart stragglers: \\x1b[31mred\\x07 [bold]not markup[/bold]." in ran.out
    assert EVIL not in ran.out


def test_analyze_makes_it_at_once(tmp_path: Path) -> None:
    ran = analyze(TWO_GPUS, tmp_path / "out", "--report")
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
    assert str(tmp_path / "out" / "report.html") in ran.out.replace("\n", "")
    found = run("analyze", TWO_GPUS, "-o", tmp_path / "again", "--report", "--json").json
    assert found["files"][-1] == str(tmp_path / "again" / "report.html")
    analyze(TWO_GPUS, tmp_path / "without")
    assert not (tmp_path / "without" / "report.html").exists()


def test_analyze_finds_and_reads_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is of the findings and tables that ``analyze`` has in memory, and equal to one of the files."""
    searches: list[Ledger] = []

    def counted(ledger: Ledger) -> list[Finding]:
        searches.append(ledger)
        return findings(ledger)

    monkeypatch.setattr(advice, "findings", counted)
    with monkeypatch.context() as patched:
        patched.setattr(read, "read_frame", lambda file, _: pytest.fail(f"{file} was read"))
        analyze(TWO_GPUS, tmp_path, "--report")
    assert len(searches) == 1
    page, found = (tmp_path / "report.html").read_bytes(), (tmp_path / "findings.json").read_bytes()
    assert run("report", tmp_path).code == 0
    assert len(searches) == 2
    assert (tmp_path / "report.html").read_bytes() == page
    assert (tmp_path / "findings.json").read_bytes() == found


def test_no_results(tmp_path: Path) -> None:
    refused(run("report", tmp_path), tmp_path, "no result file in it. Name the DIR of")
    refused(run("report", tmp_path / "nowhere"), tmp_path / "nowhere", "no such folder")
    assert files(tmp_path) == set()


def test_a_folder_that_cannot_be_written(results: Path) -> None:
    (results / "report.html").mkdir()
    refused(run("report", results), results / "report.html", "a folder, where a file would be written")
    assert {name for name in files(results) if "nvtxmoe-" in name} == set()


def test_analyzing_does_not_pay_for_charts(tmp_path: Path) -> None:
    program = (
        "import sys; from nvtxmoe import cli; code = cli.run(sys.argv[1:]);"
        "print('heavy:', sorted({'altair', 'vl_convert', 'jinja2'} & set(sys.modules))); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "analyze", str(TWO_GPUS), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.slow
def test_in_a_process_of_its_own(results: Path) -> None:
    ran = spawn("report", results)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.endswith(f"Report: {results / 'report.html'}\n")
