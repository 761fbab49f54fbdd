"""Exporting reports: every way in which nsys fails, with a stand-in."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.nsys_stand_in import BRING, CUT_SHORT, DISK_FULL, PARSE_ERROR, StandIn, environment, failure
from tests.support.waiting import wait_until


def test_report_of_a_newer_nsys(report: Path, stand_in: StandIn) -> None:
    stand_in.does(version="2023.4.4.54-x", blobs=False, status=1, tables=["StringIds", "x"], text=PARSE_ERROR)
    assert failure(report, stand_in.path) == (
        f"{report}: written by nsys 2025.3.1, newer than the nsys here (2023.4.4, {stand_in.path}); nsys export "
        "ended with status 1 and said: ProtobufParseException. Set NVTXMOE_NSYS to an nsys at least as new as "
        f"the one that captured it, or {BRING} and bring 'run 1.sqlite'"
    )


def test_report_of_a_newer_nsys_by_exit_0(report: Path, stand_in: StandIn) -> None:
    stand_in.does(version="2023.4.4.54-x", tables=["StringIds", "x"], text=PARSE_ERROR)
    assert "written by nsys 2025.3.1, newer than" in failure(report, stand_in.path)


def test_parse_error_where_versions_are_unknown(report: Path, stand_in: StandIn) -> None:
    stand_in.does(version="of some day", status=1, tables=[], text=PARSE_ERROR)
    message = failure(report, stand_in.path)
    assert "damaged, or written by a newer nsys than the nsys here (version unknown" in message
    assert BRING in message


def test_damaged_report(report: Path, stand_in: StandIn) -> None:
    stand_in.does(status=1, tables=[], raw="", text=CUT_SHORT)
    message = failure(report, stand_in.path)
    assert "could not export it whole, it may be damaged or cut short" in message
    assert "status 1 and said: Section Table Reference magic number mismatch. Copy it again" in message
    assert BRING in message


def test_not_a_report(tmp_path: Path, stand_in: StandIn) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "notes.nsys-rep"
    other.write_text("hello")
    stand_in.does(status=1, tables=[], text="Exportation error: Cannot read from stream.\n")
    message = failure(other, stand_in.path)
    assert f"{other}: not a report that the nsys here" in message
    assert "said: Cannot read from stream" in message


@pytest.mark.parametrize(
    "left",
    [{"tables": []}, {"tables": ["StringIds", "x"]}, {"tables": [], "raw": "\0" * 5000}, {"tables": [], "raw": ""}],
    ids=["no file", "two tables", "no header", "empty"],
)
def test_exit_0_without_a_whole_export(report: Path, stand_in: StandIn, left: dict[str, Any]) -> None:
    stand_in.does(text="", **left)
    assert "ended with status 0 and said: it printed nothing" in failure(report, stand_in.path)


def test_whole_export_with_exit_1_is_not_trusted(report: Path, stand_in: StandIn) -> None:
    stand_in.does(status=1, text="Exportation error: Something else.\n")
    assert "status 1 and said: Something else." in failure(report, stand_in.path)


@pytest.mark.parametrize("how", [{"signal": signal.SIGKILL}, {"status": 137}], ids=["itself", "through a wrapper"])
def test_nsys_is_killed(report: Path, stand_in: StandIn, how: dict[str, int]) -> None:
    stand_in.does(raw="half", tables=[], **how)
    message = failure(report, stand_in.path)
    assert "was killed by signal 9 while it exported. Give it more memory, or on the capture machine" in message


def test_unknown_option(report: Path, stand_in: StandIn) -> None:
    stand_in.does(status=1, tables=[], text="unrecognised option '-o'\n\nusage: nsys export\nTry 'nsys --help'\n")
    assert "said: unrecognised option '-o'." in failure(report, stand_in.path)


def test_no_nvtx_events(report: Path, stand_in: StandIn) -> None:
    stand_in.does(tables=["META_DATA_EXPORT", "StringIds"])
    assert failure(report, stand_in.path) == (
        f"{report}: the report has no NVTX events: it was captured without `-t nvtx`, or without nvtxmoe switched "
        "on. On the capture machine, capture again with `nsys profile -t cuda,nvtx` and nvtxmoe switched on"
    )


@pytest.mark.parametrize("status", [0, 1])
def test_disk_is_full(report: Path, stand_in: StandIn, status: int) -> None:
    stand_in.does(status=status, tables=[], raw="", text=DISK_FULL)
    message = failure(report, stand_in.path)
    assert message.startswith(f"{report.parent}: the disk is full; nsys export said: database or disk is full.")
    assert "--cache-dir" in message


def test_cache_folder_cannot_be_made(report: Path, stand_in: StandIn) -> None:
    message = failure(report, stand_in.path, cache_dir=report / "below")
    assert "the export cannot be kept here: Not a directory. Make room or give another folder" in message


def test_cache_is_a_folder(report: Path, stand_in: StandIn) -> None:
    (report.parent / "run 1.nvtxmoe.sqlite").mkdir()
    assert "a folder, where a file would be written" in failure(report, stand_in.path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("missing", "No such file or directory"), ("folder", "Is a directory"), ("empty", "the report is empty")],
)
def test_report_cannot_be_read(tmp_path: Path, stand_in: StandIn, kind: str, words: str) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "folder").mkdir()
    (tmp_path / "r" / "empty").touch()
    message = failure(tmp_path / "r" / kind, stand_in.path)
    assert message.startswith(str(tmp_path / "r" / kind))
    assert words in message
    assert not stand_in.exports()


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent to collect it does not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_interrupt_kills_nsys_and_cleans_up(report: Path, stand_in: StandIn) -> None:
    stand_in.does(hang=True, raw="half", tables=[])
    code = (
        "import pathlib, sys; from nvtxmoe_analysis.readers.nsys_export import export_report; "
        "export_report(pathlib.Path(sys.argv[1]), nsys=pathlib.Path(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(report), str(stand_in.path)], env=environment(), stderr=subprocess.PIPE
    )
    pids_file = stand_in.folder / "pids"
    wait_until(pids_file.exists)
    pids = [int(pid) for pid in pids_file.read_text().split()]
    assert len(list(report.parent.iterdir())) == 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert b"KeyboardInterrupt" in errors
    wait_until(lambda: not any(map(alive, pids)))
    assert list(report.parent.iterdir()) == [report]
