"""What is recorded is readable by this user alone, and does not land where another user wants it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvtxmoe import private_files
from nvtxmoe.capture.sinks.journal import JournalSink
from nvtxmoe.capture.startup import session
from nvtxmoe.capture.startup.settings import SESSION_DIR
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.private_files import make_base, make_folder, open_new
from tests.support.paths import ROOT

SOMEBODY_ELSE = 54321


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder as /tmp is one."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def mask_of_nsys() -> Iterator[None]:
    """nsys starts programs with a mask of 0."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def as_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there belongs to another user than this one, and not to root."""
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY_ELSE)
    monkeypatch.setattr(private_files, "_ROOT", -1)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("mask_of_nsys")
def test_modes_of_a_session(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SESSION_DIR, "")
    monkeypatch.setattr(weakref, "finalize", lambda *_: None)
    folder = session.session_dir(shared / "deeper" / "base")
    sink = JournalSink(folder, 0, 3600)
    folders = (shared / "deeper", shared / "deeper" / "base", folder, sink.path.parent)
    assert [mode(path) for path in folders] == [0o700] * 4
    assert mode(sink.path) == 0o600
    sink.close({})


@pytest.mark.usefixtures("as_somebody_else")
def test_a_base_that_another_user_made_first(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SESSION_DIR, "")
    (shared / "base").mkdir()
    with pytest.raises(NvtxmoeError, match=r"belongs to another user \(uid \d+\)") as caught:
        session.session_dir(shared / "base")
    assert caught.value.remedy == "Name another folder with NVTXMOE_OUTPUT_DIR"
    assert list((shared / "base").iterdir()) == []


@pytest.mark.usefixtures("as_somebody_else")
def test_a_link_that_another_user_planted(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leads to a folder of this user's own, whom the link would make write there."""
    (tmp_path / "mine").mkdir()
    (shared / "base").symlink_to(tmp_path / "mine")
    mine = os.stat_result((0o40700, *(tmp_path / "mine").stat()[1:4], SOMEBODY_ELSE, *(tmp_path / "mine").stat()[5:]))
    real = Path.stat
    monkeypatch.setattr(
        Path, "stat", lambda path, **more: mine if path == shared / "base" and not more else real(path, **more)
    )
    with pytest.raises(NvtxmoeError, match="belongs to another user"):
        make_base(shared / "base")


@pytest.mark.usefixtures("as_somebody_else")
def test_a_folder_of_another_user_where_only_that_user_may_make_one(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    tmp_path.chmod(0o755)
    make_base(tmp_path / "team")


def test_an_own_base_that_others_may_write(shared: Path) -> None:
    """Earlier versions made it so under nsys."""
    for before, after in ((0o777, 0o755), (0o775, 0o755), (0o1777, 0o1777), (0o700, 0o700)):
        (shared / "base").mkdir(exist_ok=True)
        (shared / "base").chmod(before)
        make_base(shared / "base")
        assert mode(shared / "base") == after


def test_a_file_where_a_folder_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SESSION_DIR, "")
    (tmp_path / "base").write_text("mine")
    with pytest.raises(NvtxmoeError, match="no folder can be made in it"):
        session.session_dir(tmp_path / "base")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "base")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_at_a_journals_name_is_not_followed(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "victim").write_text("mine")
    (tmp_path / "ranks").mkdir()
    path = tmp_path / "ranks" / f"rank0-{os.getpid()}.journal"
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(NvtxmoeError, match="has a journal there already"):
        JournalSink(tmp_path, 0, 3600)
    with pytest.raises(FileExistsError):
        open_new(path, os.O_WRONLY)
    assert (tmp_path / "victim").exists() == there
    assert not there or (tmp_path / "victim").read_text() == "mine"


def test_a_journal_that_is_removed_is_one_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = f"""
import shutil, time
from pathlib import Path
from nvtxmoe.capture.run_identity import Step
from nvtxmoe.capture.sinks.journal import JournalSink
sink = JournalSink(Path({str(tmp_path / "session")!r}), 0, 3600)
for number in range(4):
    sink.step_begins(Step(number, 0, 1, 1, 1, 0))
    sink.flush()
    if number == 1:
        shutil.rmtree({str(tmp_path / "session")!r})
sink.close({{"steps": 4}})
print(sink.failure)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert "the file was removed" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.endswith("nothing more is recorded there")
    assert not (tmp_path / "session").exists()


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("session", "nothing is merged: {} was removed during the run"),
        ("session/ranks/x.journal", "nothing is merged: no journal is left in {}/ranks"),
    ],
)
def test_the_last_line_says_that_nothing_is_left(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], gone: str, said: str
) -> None:
    folder = tmp_path / "session"
    (folder / "ranks").mkdir(parents=True)
    (folder / "ranks" / "x.journal").touch()
    subprocess.run(["rm", "-r", tmp_path / gone], check=True)
    session.merge_at_exit(folder, os.getpid())
    assert capfd.readouterr().err == f"nvtxmoe: {said.format(folder)}\n"


@pytest.mark.parametrize("path", ["", ":", "{}:"])
def test_an_empty_entry_of_the_path_is_not_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The merge at exit runs nothing that stands where the user does."""
    (tmp_path / "here").mkdir()
    for name in ("click", "nvtxmoe", "json"):
        (tmp_path / "here" / f"{name}.py").write_text("import pathlib; pathlib.Path('planted').touch()")
    sink = JournalSink(tmp_path / "session", 0, 3600)
    sink.close({"steps": 0})
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", path.format(tmp_path / "elsewhere"))
    session.merge_at_exit(tmp_path / "session", os.getpid())
    assert not (tmp_path / "here" / "planted").exists()
