"""What fails by nsys's own fault is tried again; every other failure stays one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.nsys_runs import TRIES, NsysError, again, run_nsys

LOST = "ClientProxy.cpp(389): Throw in function ... Local Endpoint is not available."


def nsys(folder: Path, message: str, failures: int) -> Path:
    """A program that fails so often, then succeeds; it adds a line to ``calls`` each time."""
    calls = folder / "calls"
    path = folder / "nsys"
    path.write_text(
        f'#!/bin/sh\necho >>{calls}\n[ "$(wc -l <{calls})" -gt {failures} ] || {{ echo "{message}" >&2; exit 1; }}\n'
        "echo done\n"
    )
    path.chmod(0o755)
    return path


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.nsys_runs.time.sleep", lambda _: None)


def test_an_agent_that_is_lost_is_tried_again(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="attempt 1 of 3"):
        assert run_nsys(nsys(tmp_path, LOST, 1), "profile").stdout == "done\n"
    assert calls(tmp_path) == 2


def test_an_agent_that_is_lost_each_time_is_a_failure(tmp_path: Path) -> None:
    with pytest.warns(UserWarning), pytest.raises(AssertionError, match="Local Endpoint"):
        run_nsys(nsys(tmp_path, LOST, TRIES), "profile")
    assert calls(tmp_path) == TRIES


def test_another_failure_is_one_at_once(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no such option"):
        run_nsys(nsys(tmp_path, "no such option", 1), "profile")
    assert calls(tmp_path) == 1


def test_a_log_shows_it_too_and_the_folder_is_emptied(tmp_path: Path) -> None:
    found: list[list[str]] = []

    def attempt() -> None:
        found.append([path.name for path in tmp_path.iterdir()])
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "command.log").write_text(LOST if len(found) == 1 else "")
        assert len(found) == 3

    with pytest.warns(UserWarning), pytest.raises(AssertionError):
        again(attempt, tmp_path)
    assert found == [[], []]  # the second failure is none of nsys's


def test_a_report_that_is_not_there_is_nsys_s_fault() -> None:
    tried: list[int] = []

    def attempt() -> int:
        tried.append(0)
        if len(tried) < TRIES:
            raise NsysError("no report")
        return len(tried)

    with pytest.warns(UserWarning):
        assert again(attempt) == TRIES
