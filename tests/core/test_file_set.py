"""A set of files is replaced whole: failures, kills at every step, other people's files."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.file_set import COMMIT, SET_PREFIX, recover, replace_set, staging
from nvtxmoe_analysis.outputs.read import load

OLD = {"a.csv": "old a", "b.json": "old b", "gone.csv": "old gone"}
NEW = {"a.csv": "new a", "b.json": "new b", "c.csv": "new c"}
REMOVED = ("gone.csv", "never-there.parquet")
OTHERS = {"notes.txt": "mine", ".nvtxmoe-mine": "mine too"}

#: Reads cases (FOLDER, COUNT, AFTER, FAIL_AT) from its input. In a process for each it replaces the old set by the new
#: one, and is killed at the COUNT-th step that changes a file system, before it or just AFTER it; the FAIL_AT-th step
#: fails. 0: never. Prints how each process ended, and its number of steps.
WRITER = """
import json, os, signal, sys
from pathlib import Path
from nvtxmoe_analysis.core.file_set import replace_set, staging

def write(folder, count, after, fail_at):
    steps = 0

    def stepping(owner, name):
        real = getattr(owner, name)
        def step(*arguments, **more):
            nonlocal steps
            steps += 1
            number = steps
            if number == count and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == fail_at:
                raise OSError(28, "No space left on device")
            done = None if name == "fsync" else real(*arguments, **more)
            if number == count and after:
                os.kill(os.getpid(), signal.SIGKILL)
            return done
        setattr(owner, name, step)

    for owner, name in (
        (Path, "replace"), (Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (Path, "write_text"),
        (os, "fsync"), (os, "rmdir"), (os, "mkdir"), (os, "unlink"),
    ):
        stepping(owner, name)
    try:
        with staging(folder) as stage:
            for name in ("a.csv", "b.json", "c.csv"):
                (stage / name).write_text("new " + name[0])
            replace_set(folder, stage, ("a.csv", "b.json", "c.csv"), ("gone.csv", "never-there.parquet"))
    except OSError:
        pass
    return steps

ended = []
for folder, count, after, fail_at in json.load(sys.stdin):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, str(write(Path(folder), count, after, fail_at)).encode())
        os._exit(0)
    os.close(writing)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ended.append((status, int(os.read(reading, 9) or 0)))
    os.close(reading)
print(json.dumps(ended))
"""

Case = tuple[Path, int, bool, int]


def filled(folder: Path) -> Path:
    folder.mkdir()
    for name, text in (OLD | OTHERS).items():
        (folder / name).write_text(text)
    return folder


def write(*cases: Case) -> list[tuple[int, int]]:
    """Exit code and number of steps of each case."""
    done = subprocess.run(
        [sys.executable, "-c", WRITER],
        input=json.dumps([(str(filled(folder)), *how) for folder, *how in cases]),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [(code, steps) for code, steps in json.loads(done.stdout)]


def contents(folder: Path) -> dict[str, str]:
    """Texts of the files; a folder in it is an error."""
    return {path.name: path.read_text() for path in folder.iterdir()}


def visible(folder: Path) -> dict[str, str]:
    """Texts of the files of the set and of others, without what is hidden and ours."""
    return {
        path.name: path.read_text()
        for path in folder.iterdir()
        if not path.name.startswith(SET_PREFIX) and path.name != COMMIT
    }


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_step(tmp_path: Path, after: bool) -> None:
    ((_, steps),) = write((tmp_path / "whole", 0, False, 0))
    assert contents(tmp_path / "whole") == NEW | OTHERS
    cases = [(tmp_path / f"killed-{count}", count, after, 0) for count in range(1, steps + 1)]
    assert {code for code, _ in write(*cases)} == {-signal.SIGKILL}
    is_new = []
    for folder, count, *_ in cases:
        recover(folder)
        is_new.append(visible(folder) == NEW | OTHERS)
        assert visible(folder) == (NEW if is_new[-1] else OLD) | OTHERS, count
        assert not (folder / COMMIT).exists()
        with staging(folder):  # the next writer removes what the killed one left
            pass
        assert contents(folder) == (NEW if is_new[-1] else OLD) | OTHERS, count
    assert is_new == sorted(is_new)
    assert set(is_new) == {False, True}


@pytest.mark.slow
def test_every_step_fails_and_the_process_is_killed_later(tmp_path: Path) -> None:
    ((_, steps),) = write((tmp_path / "whole", 0, False, 0))
    failing = [(tmp_path / f"failed-{fail_at}", 0, False, fail_at) for fail_at in range(1, steps + 1)]
    killed = [
        (tmp_path / f"killed-{fail_at}-{count}", count, False, fail_at)
        for (*_, fail_at), (_, most) in zip(failing, write(*failing), strict=True)
        for count in range(fail_at + 1, most + 1)
    ]
    assert {code for code, _ in write(*killed)} == {-signal.SIGKILL}
    for folder, *how in (*failing, *killed):
        recover(folder)
        assert visible(folder) in (OLD | OTHERS, NEW | OTHERS), how


def test_load_finishes_what_was_interrupted(tmp_path: Path) -> None:
    interrupted(tmp_path / "moe_expert_tracking")
    assert load(tmp_path).summary == {"new": 1}
    assert contents(tmp_path / "moe_expert_tracking") == {"moe_summary.json": '{"new": 1}'}


def interrupted(folder: Path) -> None:
    """A folder as a kill leaves it between the commit and the first replaced file."""
    stage = folder / f"{SET_PREFIX}1"
    stage.mkdir(parents=True)
    (folder / "moe_summary.json").write_text('{"old": 1}')
    (stage / "moe_summary.json").write_text('{"new": 1}')
    (folder / COMMIT).write_text(json.dumps({"stage": stage.name, "write": ["moe_summary.json"], "remove": []}))


def test_what_cannot_be_finished_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "moe_expert_tracking"
    interrupted(folder)

    def read_only(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", read_only)
        with pytest.raises(NvtxmoeError, match="cannot be finished now: Permission denied"):
            load(tmp_path)
    assert load(tmp_path).summary == {"new": 1}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"stage": "x", "write": [], "remove": []}', '"\udcff"']
    + [
        json.dumps({"stage": f"{SET_PREFIX}1", "write": [], "remove": [name]})
        for name in ("../outside", "/etc/x", "", ".", "..", 3)
    ],
)
def test_a_commit_of_others_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "outside").write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / COMMIT).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(NvtxmoeError, match="not a commit of nvtxmoe"):
        recover(folder)
    assert (tmp_path / "outside").read_text() == "mine"


def make_special(path: Path, kind: str) -> None:
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        here = Path.cwd()
        os.chdir(path.parent)  # the names of sockets are short
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(here)


@pytest.mark.parametrize("name", ["a.csv", "gone.csv"])
@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a socket"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    make_special(tmp_path / name, kind)
    before = (tmp_path / name).lstat()
    (tmp_path / "b.json").write_text("old b")
    with pytest.raises(NvtxmoeError, match=f"{kind}, where a file would be written"), staging(tmp_path) as stage:
        for new, text in NEW.items():
            (stage / new).write_text(text)
        replace_set(tmp_path, stage, list(NEW), REMOVED)
    assert {path.name for path in tmp_path.iterdir()} == {name, "b.json"}
    assert (tmp_path / name).lstat() == before
    assert (tmp_path / "b.json").read_text() == "old b"


def test_the_stage_of_a_living_writer_stays(tmp_path: Path) -> None:
    with staging(tmp_path) as first:
        (first / "a.csv").write_text("first")
        with staging(tmp_path) as second:
            (second / "a.csv").write_text("second")
            replace_set(tmp_path, second, ["a.csv"])
        replace_set(tmp_path, first, ["a.csv"])
    assert contents(tmp_path) == {"a.csv": "first"}


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    folder = filled(tmp_path / "folder")
    with staging(folder) as stage:
        for name, text in NEW.items():
            (stage / name).write_text(text)
        replace_set(folder, stage, list(NEW), REMOVED)
    assert contents(folder) == NEW | OTHERS
