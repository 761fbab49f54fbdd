"""An nsys that does as it is told, and reports for it."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.readers.nsys_export import export_report
from tests.support.paths import ROOT

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


def make_report(path: Path, version: str = "2025@3@1@90-x", body: bytes = b"events") -> Path:
    """A file that begins as reports do, a minute old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"NVIDIA Tegra Profiler Report {version}.\n".encode() + body)
    minute_ago = time.time() - 60
    os.utime(path, (minute_ago, minute_ago))
    return path


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


def environment() -> dict[str, str]:
    """The environment, with this repository's packages found from anywhere."""
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'analysis'}"}
