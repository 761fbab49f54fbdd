"""`nvtxmoe trim`: what it refuses and what it replaces."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.readers.open import open_export
from nvtxmoe_analysis.trimming import write_export
from nvtxmoe_analysis.trimming.trim import trim
from tests.support.export_builder import Export, simple_run
from tests.support.trimmed_exports import cloned, content, figures, trimmed


@pytest.fixture
def small(tmp_path: Path) -> Path:
    export = Export()
    simple_run(export)
    return export.save(tmp_path / "small.sqlite")


def test_an_existing_export_is_replaced(small: Path, golden_1gpu: Path, tmp_path: Path) -> None:
    for name in ("out.sqlite", "out"):
        trimmed(golden_1gpu, tmp_path / name)
        trimmed(small, tmp_path / name)
        assert figures(tmp_path / name) == figures(small)
    (tmp_path / "empty").mkdir()
    trimmed(small, tmp_path / "empty")
    assert figures(tmp_path / "empty") == figures(small)
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_outputs_that_are_refused(small: Path, tmp_path: Path) -> None:
    (tmp_path / "link.sqlite").symlink_to(small)
    (tmp_path / "notes.sqlite").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.sqlite").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.png").write_text("mine")
    trimmed(small, tmp_path / "mixed")
    (tmp_path / "mixed" / "notes.txt").write_text("mine")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE accounts (id)")
    other.close()
    before = {f: content(f) for f in tmp_path.iterdir()}
    for name, message in {
        "small.sqlite": "input and output are the same",
        "link.sqlite": "input and output are the same",
        "notes.sqlite": "exists and isn't an export",
        "other.db": "exists and isn't an export",
        "file": "a file, where a folder of Parquet files",
        "folder.sqlite": "a folder, where a SQLite file would be written",
        "pictures": "exists and isn't an export",
        "mixed": r"the folder holds other files too \(notes\.txt\)",
        "new.nsys-rep": "reports can't be written",
        "missing/out.sqlite": "cannot be written: No such file or directory",
        "missing/out": "cannot be written: No such file or directory",
    }.items():
        with pytest.raises(NvtxmoeError, match=message):
            trimmed(small, tmp_path / name)
    assert before == {f: content(f) for f in tmp_path.iterdir()}


def test_the_input_may_be_named_by_its_report(small: Path) -> None:
    export = open_export(small)
    export.source = small.with_name("report.nsys-rep")
    with pytest.raises(NvtxmoeError, match="input and output are the same"):
        trim(export, small)


@pytest.mark.parametrize("name", ["out.sqlite", "out"])
def test_nothing_is_half_written(
    small: Path, golden_1gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = tmp_path / name
    trimmed(golden_1gpu, out)
    before = content(out)

    def no_room(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    for target, attribute_ in ((Path, "replace"), (pq, "write_table"), (write_export, "_declared")):
        with monkeypatch.context() as patch:
            patch.setattr(target, attribute_, no_room)
            if attribute_ == "replace" or (attribute_ == "write_table") == (name == "out"):
                with pytest.raises(NvtxmoeError, match="cannot be written: No space left on device"):
                    trimmed(small, out)
        assert content(out) == before
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted([name, "small.sqlite"])


#: Trims SOURCE into the folder of an earlier export, in a process for each step that changes the file system, killed
#: before that step. Arguments: SOURCE, EARLIER (copied each time), FOLDER of the copies. Prints the number of steps.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from nvtxmoe_analysis.readers.open import open_export
from nvtxmoe_analysis.trimming.trim import trim

def write(source, out, count):
    steps = 0

    def stepping(owner, name):
        real = getattr(owner, name)
        def step(*arguments, **more):
            nonlocal steps
            steps += 1
            if steps == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)
        setattr(owner, name, step)

    for owner, name in ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (os, "mkdir")):
        stepping(owner, name)
    trim(open_export(source), out)

source, earlier, folder = map(Path, sys.argv[1:])
count, status = 0, -9
while status == -signal.SIGKILL:
    count += 1
    out = folder / str(count)
    shutil.copytree(earlier, out)
    pid = os.fork()  # before anything of polars runs
    if pid == 0:
        try:
            write(source, out, count)
        finally:
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(count)
"""


def visible(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.slow
def test_a_folder_is_replaced_whole_whenever_it_is_killed(tmp_path: Path) -> None:
    export = Export()
    simple_run(export, steps=2)
    earlier = trimmed(export.save(tmp_path / "earlier.sqlite"), tmp_path / "earlier").out
    graphs = cloned(2, "binary").save(tmp_path / "graphs.sqlite")  # another set of tables
    trimmed(graphs, tmp_path / "new")
    old, new = content(earlier), content(tmp_path / "new")
    assert set(old) != set(new)
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-c", KILLED, str(graphs), str(earlier), str(tmp_path / "runs")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    number = int(done.stdout)
    assert number > len(new)
    is_new = []
    for count in range(1, number + 1):
        out = tmp_path / "runs" / str(count)
        open_export(out)  # finishes what was interrupted
        tables = visible(out)
        assert tables in (old, new), count
        is_new.append(tables == new)
        if count % 5 == 0:
            trimmed(graphs, out)  # what the killed one left is in nobody's way
            assert content(out) == new
    assert is_new == sorted(is_new)
    assert is_new[0] is False
    assert is_new[-1] is True
