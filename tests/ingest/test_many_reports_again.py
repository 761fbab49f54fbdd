"""Of many reports: which errors are tried again, and what a fault of ours costs."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts, read_capture
from nvtxmoe_analysis.ingest import task
from nvtxmoe_analysis.ingest.task import MOST_ATTEMPTS, Failure, Task
from tests.ingest.test_many_reports import analyzed, validation
from tests.support.many_captures import reports, tasks


def task_of(path: Path) -> Task:
    return tasks([path])[0]


class Failing:
    """In place of ``read_capture``: raises so many times, then reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException, times: int) -> None:
        self.calls, self._error, self._times = 0, error, times
        monkeypatch.setattr(task, "read_capture", self)
        monkeypatch.setattr(task, "PAUSE_S", 0)

    def __call__(self, *arguments: Any) -> CaptureFacts:
        self.calls += 1
        if self.calls <= self._times:
            raise self._error
        return read_capture(*arguments)


def wrapped(inner: BaseException) -> NvtxmoeError:
    error = NvtxmoeError("cannot be read", where="x", remedy="Look")
    error.__cause__ = inner
    return error


PASSING = [
    OSError(errno.EIO, os.strerror(errno.EIO)),
    wrapped(OSError(errno.ESTALE, os.strerror(errno.ESTALE))),
    wrapped(sqlite3.OperationalError("disk I/O error")),
    wrapped(wrapped(TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))),
]
LASTING = [
    OSError(errno.EACCES, os.strerror(errno.EACCES)),
    wrapped(FileNotFoundError(errno.ENOENT, "")),
    wrapped(sqlite3.OperationalError("no such table")),
    NvtxmoeError("damaged"),
    ValueError("a fault of ours"),
    MemoryError(),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    (path,) = reports(tmp_path, 1)
    failing = Failing(monkeypatch, error, MOST_ATTEMPTS - 1)
    assert isinstance(task.attempt(task_of(path)), CaptureFacts)
    assert failing.calls == MOST_ATTEMPTS
    failing = Failing(monkeypatch, error, 100)
    found = task.attempt(task_of(path))
    assert isinstance(found, Failure) and found.attempts == failing.calls == MOST_ATTEMPTS


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_lasts_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    (path,) = reports(tmp_path, 1)
    failing = Failing(monkeypatch, error, 1)
    found = task.attempt(task_of(path))
    assert isinstance(found, Failure) and found.attempts == failing.calls == 1


def test_a_fault_of_ours_costs_one_report_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = reports(tmp_path, 2)
    Failing(monkeypatch, ZeroDivisionError("by\nzero"), 1)
    ran = analyzed(paths, tmp_path / "out", "-j", 1)
    assert ran.code == 2
    (failed,) = validation(tmp_path / "out")["failed_inputs"]
    assert failed["error"] == (
        f"{failed['path']}: internal error, ZeroDivisionError: by zero. Analyse it alone with --debug and report it"
    )
    alone = analyzed(paths[:1], tmp_path / "alone", "-j", 1)
    assert alone.code == 0


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]) -> None:
    Failing(monkeypatch, stop(), 1)
    with pytest.raises(stop):
        task.attempt(task_of(*reports(tmp_path, 1)))
