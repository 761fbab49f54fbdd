"""Many reports in one analysis: processes, failures, and what is tried again."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.ingest import process_pool, task
from nvtxmoe_analysis.ingest.task import MOST_ATTEMPTS, Failure, Outcome
from nvtxmoe_analysis.outputs.spec import VALIDATION
from tests.metrics.test_straggler_golden import taken_apart
from tests.support.cli import RESULTS, Ran, everything, everything_but_its_path, files, refused, run
from tests.support.many_captures import deadly, reports, tasks
from tests.support.paths import ROOT
from tests.support.sessions import journal, run_of

FORMATS = ("--format", "csv", "--format", "parquet")


def analyzed(paths: list[Path], output: Path, *options: object) -> Ran:
    return run("analyze", *paths, "-o", output, *options)


def validation(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / RESULTS / f"{VALIDATION}.json").read_text())
    return found


def ignore(_: Outcome) -> None:
    pass


# Processes -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_give_the_same_files(tmp_path: Path) -> None:
    paths = reports(tmp_path)
    alone = analyzed(paths, tmp_path / "alone", "-j", 1, *FORMATS)
    at_once = analyzed(paths, tmp_path / "at-once", "-j", 3, *FORMATS)
    assert (alone.code, at_once.code) == (0, 0), at_once.err
    assert everything_but_its_path(tmp_path / "alone") == everything_but_its_path(tmp_path / "at-once")
    assert at_once.out == alone.out.replace(str(tmp_path / "alone"), str(tmp_path / "at-once"))
    found = validation(tmp_path / "at-once")
    assert [one["path"] for one in found["inputs"]] == [str(path) for path in paths]
    (read,) = (one for one in found["checks"] if one["name"] == "reports_read")
    assert (read["status"], read["message"]) == ("pass", "All 4 reports were read.")


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--steps", "1:20", "--layers", "1,2", "--skip-first", "2")])
def test_a_real_capture_taken_apart(golden_2gpu: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Ranks that meet in collectives, in a report each: clocks, collectives and stragglers too."""
    paths = taken_apart(golden_2gpu, tmp_path, 123_456_789, 2e-6, 123_456_000)
    for jobs in (1, 2):
        ran = analyzed(paths, tmp_path / str(jobs), "--jobs", jobs, *FORMATS, *options)
        assert ran.code == 0, ran.err
    assert everything_but_its_path(tmp_path / "1") == everything_but_its_path(tmp_path / "2")


@pytest.mark.slow
def test_of_the_inputs_the_order_counts_not_that_of_the_ends(tmp_path: Path) -> None:
    paths = reports(tmp_path)[::-1]
    found = process_pool.run(tasks(paths), 2, ignore)
    assert [one.source for one in found] == paths
    assert [sorted(meta.rank for meta in one.metas.values()) for one in found if isinstance(one, CaptureFacts)] == [
        [3], [2], [1], [0],
    ]  # fmt: skip


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """The report that it was reading is read again; the others lose nothing."""
    paths: list[Path] = reports(tmp_path)
    paths[1] = deadly(paths[1], 1)
    found = process_pool.run(tasks(paths), 2, ignore)
    assert all(isinstance(one, CaptureFacts) for one in found)
    assert Path(f"{paths[1]}.deaths").read_text() == "0"


@pytest.mark.slow
def test_a_report_that_kills_each_process_is_given_up(tmp_path: Path) -> None:
    paths: list[Path] = reports(tmp_path)
    paths[2] = deadly(paths[2], 100)
    told: list[Outcome] = []
    found = process_pool.run(tasks(paths), 2, told.append)
    assert [isinstance(one, Failure) for one in found] == [False, False, True, False]
    failure = found[2]
    assert isinstance(failure, Failure)
    assert (failure.source, failure.attempts) == (paths[2], MOST_ATTEMPTS)
    assert failure.error.startswith(f"{paths[2]}: the process that read it ended each time, killed for want of memory")
    assert Path(f"{paths[2]}.deaths").read_text() == str(100 - MOST_ATTEMPTS)
    assert sorted(str(one.source) for one in told) == sorted(map(str, paths))


INTERRUPTED = """
import signal
import sys
from pathlib import Path
from nvtxmoe_analysis.ingest import process_pool
from tests.support.many_captures import Slow, tasks
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
try:
    process_pool.run(tasks([Slow(path) for path in sys.argv[1:]]), 2, print)
except KeyboardInterrupt:
    print("interrupted")
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def started_slowly(tmp_path: Path) -> tuple[subprocess.Popen[str], list[Path]]:
    """INTERRUPTED over three reports, two of which are being read; the files that hold the readers' process ids."""
    paths = [tmp_path / name for name in "abc"]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *map(str, paths)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'analysis'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    told = [Path(f"{path}.pid") for path in paths[:2]]
    until = time.monotonic() + 600
    while not all(file.exists() and file.read_text() for file in told):
        assert time.monotonic() < until and process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process, told


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "parent"])
def test_an_interrupt_ends_the_processes_too(tmp_path: Path, whole_group: bool) -> None:
    process, told = started_slowly(tmp_path)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out, err) == (0, "interrupted\n", "")
    assert not any(alive(int(file.read_text())) for file in told)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    process, told = started_slowly(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=600)  # they hold its output
    assert process.returncode == -number
    until = time.monotonic() + 600
    while any(alive(int(file.read_text())) for file in told):
        assert time.monotonic() < until
        time.sleep(0.1)


UNGUARDED = """
import sys
from pathlib import Path
from nvtxmoe_analysis.analyze import analyze
analyze([Path(path) for path in sys.argv[2:]], Path(sys.argv[1]), jobs=2)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "out", *reports(tmp_path, 2)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        "a process that reads reports could not be started. Give --jobs 1; a script of your own has to" in done.stderr
    )
    assert not (tmp_path / "out").exists()


# Failures ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_one_that_cannot_be_read_costs_only_what_is_in_it(tmp_path: Path, jobs: int) -> None:
    paths = reports(tmp_path)
    paths[1].write_bytes(b"no database at all" * 100)
    output = tmp_path / "out"
    ran = analyzed(paths, output, "-j", jobs)
    assert ran.code == 2
    assert ran.err == (
        f"nvtxmoe: the results lack a report that could not be read: {paths[1]}. See above; give --partial-ok where "
        "that is no fault\n"
    )
    found = validation(output)
    assert found["verdict"] == "incomplete"
    (failed,) = found["failed_inputs"]
    assert (failed["path"], failed["attempts"]) == (str(paths[1]), 1)
    assert failed["error"].startswith(f"{paths[1]}: ") and "SQLite" in failed["error"]
    assert found["reasons"] == [
        "1 report of 4 could not be read. Rows of the ranks that were read are whole; sums over ranks, waiting and "
        "stragglers lack the others: " + failed["error"],
        "1 rank of 4 missing: 1. Give every rank's report.",
    ]
    # "1 report of 4 ..." is on the terminal too, in one line.
    assert any(line.startswith("  - 1 report of 4 could not be read") for line in ran.out.splitlines())
    # What is there is what an analysis of the others gives.
    others = [path for path in paths if path != paths[1]]
    assert analyzed(others, tmp_path / "others").code == 0
    with_verdict = {f"{RESULTS}/{VALIDATION}.json", "findings.json"}
    for name in files(tmp_path / "others") - with_verdict:
        assert (output / name).read_bytes() == (tmp_path / "others" / name).read_bytes(), name


@pytest.mark.slow
def test_partial_ok_decides_the_exit_code_and_nothing_else(tmp_path: Path) -> None:
    paths = [*reports(tmp_path, 1), tmp_path / "nothing-there.sqlite"]
    codes = {}
    for options in ((), ("--partial-ok",), ("--strict",), ("--strict", "--partial-ok"), ("--json", "--partial-ok")):
        ran = analyzed(paths, tmp_path / "-".join(("out", *options)), *options)
        codes[options] = ran.code
        assert (ran.err == "") == ("--partial-ok" in options)
    assert list(codes.values()) == [2, 0, 2, 3, 0]
    whole = everything(tmp_path / "out")
    assert all(everything(tmp_path / "-".join(("out", *options))) == whole for options in codes)
    ran = analyzed(paths, tmp_path / "again", "--json")
    assert ran.code == 2 and "nothing-there.sqlite: no such file or folder" in ran.json["reasons"][0]
    assert ran.json["failed_inputs"] == validation(tmp_path / "again")["failed_inputs"] != []


def test_partial_ok_of_a_whole_analysis_changes_nothing(tmp_path: Path) -> None:
    assert analyzed(reports(tmp_path), tmp_path / "out", "--partial-ok", "--strict").code == 0


def test_many_failures(tmp_path: Path) -> None:
    paths = [reports(tmp_path, 1)[0], *(tmp_path / f"{name}.sqlite" for name in "abcde")]
    ran = analyzed(paths, tmp_path / "out")
    assert ran.code == 2
    assert f"the results lack 5 reports that could not be read: {paths[1]}, and 4 more" in ran.err
    (reason,) = validation(tmp_path / "out")["reasons"]
    assert reason.startswith("5 reports of 6 could not be read. Rows of the ranks that were read are whole; ")
    assert reason.endswith("; and 2 more")
    assert reason.count("no such file or folder") == 3


def test_when_none_can_be_read_nothing_is_written(tmp_path: Path) -> None:
    paths = [tmp_path / "a.sqlite", tmp_path / "b.sqlite"]
    for options in ((), ("--partial-ok",), ("-j", "2")):
        refused(analyzed(paths, tmp_path / "out", *options), "none of 2 reports can be read, the first: ", paths[0])
    assert everything(tmp_path) == {}


def test_sessions_are_merged_likewise(tmp_path: Path) -> None:
    good, bad = tmp_path / "host0", tmp_path / "host1"
    journal(good, run_of(world_size=2))
    damaged = journal(bad, run_of(1, world_size=2), rank=1, pid=101)
    damaged.write_bytes(damaged.read_bytes()[:30] + b"x" + damaged.read_bytes()[31:])
    ran = run("merge", good, bad, "-o", tmp_path / "out")
    assert ran.code == 2 and f"the results lack a report that could not be read: {bad}" in ran.err
    assert validation(tmp_path / "out")["reasons"][0].startswith("1 report of 2 could not be read")
    assert run("merge", good, bad, "-o", tmp_path / "out", "--partial-ok").code == 0
    assert run("merge", good, bad, "-o", tmp_path / "out", "--partial-ok", "--strict").code == 3


@pytest.mark.slow
def test_a_report_that_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "PAUSE_S", 0)
    paths = reports(tmp_path, 2)
    other = sqlite3.connect(paths[0])
    other.execute("BEGIN EXCLUSIVE")
    analyzed(paths, tmp_path / "out", "-j", 1)
    other.close()
    (failed,) = validation(tmp_path / "out")["failed_inputs"]
    assert failed["attempts"] == MOST_ATTEMPTS
    assert failed["error"].endswith("database is locked. Another program has it open: close that, or copy the file")
