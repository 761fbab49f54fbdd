"""Exporting reports: every way in which nsys fails, with a stand-in, and the real nsys on a real capture."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe_analysis.readers.nsys_export import export_report, find_nsys
from tests.programs import emit_words
from tests.support.nsys_runs import profile_nvtx
from tests.support.paths import ROOT

PROGRAM = ROOT / "tests" / "programs" / "emit_words.py"

# What 2023.4.4 prints, shortened where it shows where it was built.
PARSE_ERROR = """\rProcessing 90 events: [=6%  ]\rProcessing 90 events: [=7%  ]
Exportation error: StreamWithSections.cpp(741): Throw in function void parseProtobufFromStream(std::istream&)
Dynamic exception type: boost::wrapexcept<QuadDCommon::ProtobufParseException>
std::exception::what: ProtobufParseException
[boost::errinfo_api_function_*] = parseProtobufFromStream

"""
DISK_FULL = """
Failed to close database connection: dbapi.h(38): Throw in function void DBConnection::check(int, Callable)
Dynamic exception type: boost::wrapexcept<QuadDCommon::RuntimeException>
std::exception::what: RuntimeException
[QuadDCommon::tag_message*] = database or disk is full

"""
CUT_SHORT = "Exportation error: Section Table Reference magic number mismatch.\n"

STAND_IN = """
import json, os, pathlib, signal, sqlite3, subprocess, sys, time
here = pathlib.Path(__file__).parent
mode = json.loads((here / "mode.json").read_text())
arguments = sys.argv[1:]
with (here / "calls.jsonl").open("a") as file:
    file.write(json.dumps(arguments) + "\\n")
if arguments == ["--version"]:
    print("NVIDIA Nsight Systems version " + mode["version"])
    sys.exit()
if arguments == ["export", "--help"]:
    print("usage: nsys export" + ("\\n  --include-blobs=" if mode["blobs"] else ""))
    sys.exit()
if any(a.startswith("--include-blobs") for a in arguments) and not mode["blobs"]:
    sys.exit("unrecognised option '--include-blobs=true'")
out = pathlib.Path(arguments[arguments.index("-o") + 1])
if mode["tables"]:
    database = sqlite3.connect(out)
    for table in mode["tables"]:
        database.execute(f"CREATE TABLE {table} (x)")
    database.commit()
if mode["raw"] is not None:
    out.write_bytes(mode["raw"].encode())
    (out.parent / "export.sqlite-journal").touch()
if mode["hang"]:
    child = subprocess.Popen(["sleep", "600"])
    (here / "pids.part").write_text(f"{os.getpid()} {child.pid}")
    (here / "pids.part").rename(here / "pids")
    time.sleep(600)
sys.stderr.write(mode["text"])
sys.stderr.flush()
if mode["signal"]:
    os.kill(os.getpid(), mode["signal"])
sys.exit(mode["status"])
"""
WHOLE = ["META_DATA_EXPORT", "NVTX_EVENTS", "StringIds"]


@dataclass
class StandIn:
    """An nsys that does as it is told and keeps what it was asked."""

    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "nsys"

    def does(self, **changes: Any) -> None:
        mode = {
            "version": "2025.3.1.90-x",
            "blobs": True,
            "tables": WHOLE,
            "raw": None,
            "hang": False,
            "text": "\rProcessing 9 events: [===100%]\n",
            "signal": 0,
            "status": 0,
        }
        (self.folder / "mode.json").write_text(json.dumps(mode | changes))

    def exports(self) -> list[list[str]]:
        """Arguments of each export that was run."""
        calls = self.folder / "calls.jsonl"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [call for call in map(json.loads, lines) if call[0] == "export" and call[1] != "--help"]


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    folder = tmp_path / "stand-in"
    folder.mkdir()
    (folder / "nsys.py").write_text(STAND_IN)
    (folder / "nsys").write_text(f'#!/bin/sh\n"{sys.executable}" "{folder}/nsys.py" "$@"\n')
    (folder / "nsys").chmod(0o755)
    made = StandIn(folder)
    made.does()
    return made


def make_report(path: Path, version: str = "2025@3@1@90-x", body: bytes = b"events") -> Path:
    """A file that begins as reports do, a minute old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"NVIDIA Tegra Profiler Report {version}.\n".encode() + body)
    minute_ago = time.time() - 60
    os.utime(path, (minute_ago, minute_ago))
    return path


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return make_report(tmp_path / "reports" / "run 1.nsys-rep")


def failure(report: Path, nsys: Path, **options: Any) -> str:
    """The message of an export that has to fail, after a look that it left nothing behind."""
    before = sorted(report.parent.iterdir())
    with pytest.raises(NvtxmoeError) as caught:
        export_report(report, nsys=nsys, **options)
    assert sorted(report.parent.iterdir()) == before
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master")}


BRING = "on the capture machine run `nsys export --type sqlite --include-blobs=true -o 'run 1.sqlite' 'run 1.nsys-rep'`"


# Which nsys


def test_explicit_nsys_comes_first(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVTXMOE_NSYS", "/nonexistent")
    assert find_nsys(stand_in.path) == stand_in.path


def test_environment_comes_before_path(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVTXMOE_NSYS", str(stand_in.path))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert find_nsys() == stand_in.path


def test_path_comes_last(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVTXMOE_NSYS", raising=False)
    monkeypatch.setenv("PATH", str(stand_in.folder))
    assert find_nsys() == stand_in.path


def test_relative_nsys(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stand_in.folder)
    assert find_nsys(Path("nsys")) == stand_in.path


def test_no_nsys_says_both_ways_out(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVTXMOE_NSYS", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NvtxmoeError) as caught:
        find_nsys()
    assert str(caught.value) == (
        "no nsys was found, and a .nsys-rep can only be read by nsys. Install Nsight Systems here (or set "
        "NVTXMOE_NSYS to its nsys), or on the capture machine run `nsys export --type sqlite "
        "--include-blobs=true -o X.sqlite X.nsys-rep` and bring X.sqlite"
    )
    with pytest.raises(NvtxmoeError, match=r"run 1\.nsys-rep: no nsys was found"):
        export_report(report)


@pytest.mark.parametrize("by_environment", [False, True])
def test_named_nsys_is_missing(
    report: Path, tmp_path: Path, by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "no" / "nsys"
    monkeypatch.setenv("NVTXMOE_NSYS", str(missing))
    with pytest.raises(NvtxmoeError, match=f"cannot be run \\({missing}\\): no such file.*--nsys or NVTXMOE_NSYS"):
        export_report(report, nsys=None if by_environment else missing)


def test_named_nsys_is_not_executable(report: Path, stand_in: StandIn) -> None:
    stand_in.path.chmod(0o644)
    message = failure(report, stand_in.path)
    assert message.startswith(f"{report}: nsys cannot be run ({stand_in.path}): it is not executable. Give an nsys")


def test_named_nsys_is_of_another_machine(report: Path, stand_in: StandIn) -> None:
    stand_in.path.write_bytes(b"\x7fELF of some other machine")
    assert "Exec format error" in failure(report, stand_in.path)


# Where the export is kept, and when it is used again


def test_export_beside_the_report(report: Path, stand_in: StandIn) -> None:
    cache = export_report(report, nsys=stand_in.path)
    assert cache == report.parent / "run 1.nvtxmoe.sqlite"
    assert tables(cache) == {*WHOLE, "NVTXMOE_EXPORT"}
    (call,) = stand_in.exports()
    assert call[:5] == ["export", "--type", "sqlite", "--include-blobs=true", "-o"]
    assert Path(call[5]).parent.parent == report.parent
    assert call[6:] == [str(report)]
    assert sorted(p.name for p in report.parent.iterdir()) == ["run 1.nsys-rep", "run 1.nvtxmoe.sqlite"]


def test_older_nsys_is_not_asked_for_blobs(report: Path, stand_in: StandIn) -> None:
    stand_in.does(blobs=False)
    export_report(report, nsys=stand_in.path)
    assert stand_in.exports()[0][:4] == ["export", "--type", "sqlite", "-o"]


def test_cache_folder_holds_reports_of_one_name(tmp_path: Path, stand_in: StandIn) -> None:
    folder = tmp_path / "made" / "here"
    reports = [make_report(tmp_path / node / "report.nsys-rep", body=node.encode()) for node in ("a", "b")]
    caches = [export_report(report, cache_dir=folder, nsys=stand_in.path) for report in reports]
    assert len(set(caches)) == 2
    assert sorted(folder.iterdir()) == sorted(caches)
    assert [cache.name.split(".")[0] for cache in caches] == ["report", "report"]
    assert [export_report(report, cache_dir=folder, nsys=stand_in.path) for report in reports] == caches
    assert len(stand_in.exports()) == 2


def test_read_only_folder_uses_the_users_cache(
    report: Path, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_access = os.access  # root may write anywhere, so the answer is made up
    monkeypatch.setattr(os, "access", lambda path, mode: path != report.parent and real_access(path, mode))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    first = export_report(report, nsys=stand_in.path)
    assert first.parent == tmp_path / "xdg" / "nvtxmoe"
    assert export_report(report, nsys=stand_in.path) == first
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert export_report(report, nsys=stand_in.path).parent == tmp_path / "home" / ".cache" / "nvtxmoe"
    assert list(report.parent.iterdir()) == [report]


def test_read_only_folder_that_holds_an_export(
    report: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = export_report(report, nsys=stand_in.path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert export_report(report) == cache


def test_export_is_used_again_without_nsys(report: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = export_report(report, nsys=stand_in.path)
    before = cache.stat().st_mtime_ns
    monkeypatch.delenv("NVTXMOE_NSYS", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert export_report(report) == cache
    assert cache.stat().st_mtime_ns == before
    assert len(stand_in.exports()) == 1


def test_force_exports_again(report: Path, stand_in: StandIn) -> None:
    export_report(report, nsys=stand_in.path)
    export_report(report, nsys=stand_in.path, force=True)
    assert len(stand_in.exports()) == 2


def equal_time(report: Path, cache: Path) -> None:
    os.utime(report, ns=(cache.stat().st_mtime_ns, cache.stat().st_mtime_ns))


def newer(report: Path, cache: Path) -> None:
    os.utime(report, ns=(cache.stat().st_mtime_ns + 1, cache.stat().st_mtime_ns + 1))


def replaced(report: Path, cache: Path) -> None:
    make_report(report, body=b"EVENTS")


def truncated(report: Path, cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:-100])


def garbage(report: Path, cache: Path) -> None:
    cache.write_bytes(b"not a database" * 100)


def emptied(report: Path, cache: Path) -> None:
    cache.write_bytes(b"")


def damaged(report: Path, cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:100] + b"\xff" * (cache.stat().st_size - 100))


def of_someone_else(report: Path, cache: Path) -> None:
    with closing(sqlite3.connect(cache)) as database:
        database.execute("DROP TABLE NVTXMOE_EXPORT")


def without_events(report: Path, cache: Path) -> None:
    with closing(sqlite3.connect(cache)) as database:
        database.execute("DROP TABLE NVTX_EVENTS")


@pytest.mark.parametrize(
    "change",
    [equal_time, newer, replaced, truncated, garbage, emptied, damaged, of_someone_else, without_events],
    ids=lambda change: str(change.__name__),
)
def test_export_is_not_used_again(change: Callable[[Path, Path], None], report: Path, stand_in: StandIn) -> None:
    cache = export_report(report, nsys=stand_in.path)
    change(report, cache)
    assert export_report(report, nsys=stand_in.path) == cache
    assert len(stand_in.exports()) == 2
    assert tables(cache) == {*WHOLE, "NVTXMOE_EXPORT"}


def test_export_without_blobs_is_made_again_by_a_newer_nsys(
    report: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.does(blobs=False)
    cache = export_report(report, nsys=stand_in.path)
    assert export_report(report, nsys=stand_in.path) == cache
    monkeypatch.delenv("NVTXMOE_NSYS", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert export_report(report) == cache  # no nsys: what is kept is all there is
    assert len(stand_in.exports()) == 1
    stand_in.does(blobs=True)
    for _ in range(2):
        assert export_report(report, nsys=stand_in.path) == cache
    assert len(stand_in.exports()) == 2


def test_failed_export_leaves_the_older_one_and_says_so(report: Path, stand_in: StandIn) -> None:
    cache = export_report(report, nsys=stand_in.path)
    newer(report, cache)
    stand_in.does(status=1, tables=[], text=CUT_SHORT)
    failure(report, stand_in.path)
    assert tables(cache) == {*WHOLE, "NVTXMOE_EXPORT"}


# How nsys fails


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


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


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
    wait_for(pids_file.exists)
    pids = [int(pid) for pid in pids_file.read_text().split()]
    assert len(list(report.parent.iterdir())) == 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert b"KeyboardInterrupt" in errors
    wait_for(lambda: not any(map(alive, pids)))
    assert list(report.parent.iterdir()) == [report]


# The real nsys


def environment() -> dict[str, str]:
    """The environment, with this repository's packages found from anywhere."""
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'analysis'}"}


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
