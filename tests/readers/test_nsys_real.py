"""Exporting reports: the real nsys on a real capture."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvtxmoe.formats import schema
from nvtxmoe_analysis.readers.nsys_export import export_report
from tests.programs import emit_words
from tests.support.nsys_runs import profile_nvtx
from tests.support.nsys_stand_in import environment, failure
from tests.support.paths import ROOT

PROGRAM = ROOT / "tests" / "programs" / "emit_words.py"


def profile(nsys: Path, report: Path, *command: str | Path) -> str:
    """Run a command under nsys without a GPU; its standard output."""
    return profile_nvtx(nsys, report, command, env=environment()).stdout


@dataclass
class Run:
    """A capture of tests/programs/emit_words.py."""

    report: Path
    expected: dict[str, Any]


@pytest.fixture(scope="module")
def captured(nsys_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    report = tmp_path_factory.mktemp("captured") / "report.nsys-rep"
    output = profile(nsys_path, report, sys.executable, PROGRAM)
    (line,) = (line for line in output.splitlines() if line.startswith("{"))
    return Run(report, json.loads(line))


@pytest.fixture
def run(captured: Run, tmp_path: Path) -> Run:
    """The capture in a folder of its own."""
    copy = tmp_path / "report.nsys-rep"
    copy.write_bytes(captured.report.read_bytes())
    return Run(copy, captured.expected)


Row = tuple[int, str, int, str | None]


def rows_by_process(export: Path) -> dict[int, list[Row]]:
    """(eventType, message, int payload, category) of the domain's events in their order, by process."""
    query = """
        SELECT e.globalTid, e.eventType, coalesce(e.text, s.value), e.int64Value, c.text
        FROM NVTX_EVENTS e LEFT JOIN StringIds s ON s.id = e.textId
        JOIN NVTX_EVENTS d ON d.eventType = 75 AND d.text = 'nvtxmoe' AND d.domainId = e.domainId
            AND d.globalTid >> 24 = e.globalTid >> 24
        LEFT JOIN NVTX_EVENTS c ON c.eventType = 33 AND c.domainId = e.domainId AND c.category = e.category
            AND c.globalTid >> 24 = e.globalTid >> 24
        WHERE e.eventType IN (34, 59) ORDER BY e.start, e.rowid
    """
    out: dict[int, list[Row]] = {}
    with closing(sqlite3.connect(export)) as database:
        for tid, *row in database.execute(query):
            out.setdefault(tid >> 24 & 0xFFFFFF, []).append(tuple(row))
    return out


def payloads_of(rows: list[Row]) -> list[tuple[str, bytes]]:
    """The word form's payloads, padded as they were emitted."""
    marks = iter([(message, word) for kind, message, word, _ in rows if kind == 34])
    out = []
    for message, length in marks:
        taken = [next(marks) for _ in range(length)]
        assert {name for name, _ in taken} == {message}
        data = b"".join(word.to_bytes(8, "little", signed=True) for _, word in taken)
        out.append((message.removeprefix("moe.w."), data))
    return out


def padded(payload: bytes) -> bytes:
    return payload + b"\0" * (-len(payload) % 8)


def by_rank(export: Path) -> dict[int, list[Row]]:
    """The rows of each rank, by what its own moe.meta says."""
    out = {}
    for rows in rows_by_process(export).values():
        name, data = payloads_of(rows)[0]
        assert name == "meta"
        out[int(json.loads(data.rstrip(b"\0"))["rank"])] = rows
    return out


def test_real_capture_holds_every_payload(run: Run, nsys_path: Path) -> None:
    ranks = by_rank(export_report(run.report, nsys=nsys_path))
    assert sorted(ranks) == [0, 1]
    activations = {layer: [0] * 8 for layer in run.expected["activations"]}
    for rank, rows in ranks.items():
        assert len([row for row in rows if row[0] == 34]) == run.expected["marks"][str(rank)]
        found = payloads_of(rows)
        assert found == [(name, padded(payload)) for name, payload in emit_words.payloads(rank)]
        for name, data in found:
            if name == "counts":
                cell = np.frombuffer(data, schema.counts_dtype(8), count=1)[0]
                total = activations[str(cell["layer"])]
                activations[str(cell["layer"])] = [a + int(b) for a, b in zip(total, cell["counts"], strict=True)]
    assert activations == run.expected["activations"]


def test_real_capture_holds_every_range(run: Run, nsys_path: Path) -> None:
    phases = [("moe.route", "phase"), ("moe.dispatch", "phase"), ("moe.experts", "phase"), ("moe.combine", "phase")]
    of_a_step: list[tuple[str, int, str | None]] = []
    for layer in emit_words.LAYERS:
        of_a_step += [(f"moe.layer.{layer}", layer, None), *((name, layer, c) for name, c in phases)]
    for rows in by_rank(export_report(run.report, nsys=nsys_path)).values():
        ranges = [row[1:] for row in rows if row[0] == 59]
        steps = [[("moe.step", step, None), *of_a_step] for step in range(run.expected["steps"])]
        assert ranges == [row for step in steps for row in step]


def test_real_export_is_kept_and_made_again(run: Run, nsys_path: Path) -> None:
    cache = export_report(run.report, nsys=nsys_path)
    assert cache == run.report.with_name("report.nvtxmoe.sqlite")
    made, whole = cache.stat().st_mtime_ns, cache.stat().st_size
    assert export_report(run.report, nsys=nsys_path) == cache
    assert cache.stat().st_mtime_ns == made
    run.report.touch()
    touched = run.report.stat().st_mtime_ns
    assert touched >= made
    export_report(run.report, nsys=nsys_path)
    assert cache.stat().st_mtime_ns > touched
    for size in (whole - 1, whole // 2, 100, 0):
        with cache.open("r+b") as file:
            file.truncate(size)
        export_report(run.report, nsys=nsys_path)
        assert cache.stat().st_size == whole
        assert sorted(by_rank(cache)) == [0, 1]
    assert sorted(p.name for p in cache.parent.iterdir()) == ["report.nsys-rep", "report.nvtxmoe.sqlite"]


@pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
def test_real_report_that_is_cut_short(run: Run, nsys_path: Path, part: float) -> None:
    whole = run.report.read_bytes()
    run.report.write_bytes(whole[: int(len(whole) * part)])
    message = failure(run.report, nsys_path)
    assert "may be damaged or cut short" in message
    assert "status 1 and said: Section Table Reference magic number mismatch" in message


def test_real_nsys_on_what_is_not_a_report(run: Run, nsys_path: Path) -> None:
    run.report.write_bytes(np.random.default_rng(1).bytes(200_000))
    message = failure(run.report, nsys_path)
    assert "not a report that the nsys here (" in message
    assert "status 1 and said: Version tag does not contain a delimiter" in message


def test_real_report_of_a_later_version(run: Run, nsys_path: Path) -> None:
    data = bytearray(run.report.read_bytes())
    year = data.index(b"Report ") + len(b"Report ")
    data[year : year + 4] = b"2099"
    run.report.write_bytes(data)
    message = failure(run.report, nsys_path)
    assert "written by nsys 2099." in message
    assert "newer than the nsys here (" in message
    assert "status 1 and said: Report was created in Nsight Systems version (2099." in message


def test_real_report_whose_first_message_does_not_parse(run: Run, nsys_path: Path) -> None:
    data = bytearray(run.report.read_bytes())
    first = data.index(b"Local (CLI)") - 2
    data[first : first + 12] = b"\xff" * 12
    run.report.write_bytes(data)
    message = failure(run.report, nsys_path)
    assert "may be damaged or cut short" in message
    assert "status 1 and said: ProtobufParseException" in message


def test_real_report_without_nvtx(tmp_path: Path, nsys_path: Path) -> None:
    report = tmp_path / "reports" / "quiet.nsys-rep"
    report.parent.mkdir()
    profile(nsys_path, report, "true")
    assert "has no NVTX events: it was captured without" in failure(report, nsys_path)
