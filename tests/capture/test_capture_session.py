"""Sessions of direct mode: one folder a run, what a killed process leaves, and the merge at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from nvtxmoe.capture.run_identity import Step
from nvtxmoe.capture.sinks import journal as journal_sink
from nvtxmoe.capture.sinks.journal import JournalSink
from nvtxmoe.capture.startup import session
from nvtxmoe.capture.startup.settings import SESSION_DIR
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe.formats.journal import Journal
from tests.support.cli import run
from tests.support.journal_reader import records_of_journal
from tests.support.paths import ROOT

#: Emits a step every 5 ms, and says how many it has emitted.
PROGRAM = """
import sys, time
from pathlib import Path
import numpy as np
from nvtxmoe.formats import schema
from nvtxmoe.capture.run_identity import Identity, LayerInfo, Step, meta_text
from nvtxmoe.capture.sinks.journal import JournalSink

sink = JournalSink(Path(sys.argv[1]), 0, float(sys.argv[2]))
layers = (LayerInfo(0, "layer 0", 4, 2),)
sink.meta(meta_text(Identity(layers=layers), sample_every=0, emit=frozenset({"counts"}), encoding="journal",
                    held_bytes=0, capture=None))
for number in range(10_000):
    sink.step_begins(Step(number, 0, 2, 1, 0, 2))
    sink.payloads(schema.COUNTS, np.array([(number, 0, 0, 2, 2, [1, 1, 1, 1])], schema.counts_dtype(4)))
    sink.step_ends()
    print(number + 1, time.monotonic(), flush=True)
    time.sleep(0.005)
"""


def steps_in(folder: Path) -> int:
    """Steps in the one journal of a session."""
    (file,) = folder.glob("ranks/*.journal")
    return sum(event == "counts" for event, _, _ in records_of_journal(Journal(file)))


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_ended_loses_an_interval_at_most(kill: signal.Signals, tmp_path: Path) -> None:
    interval_s = 0.2
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(interval_s)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        said: list[tuple[int, float]] = []
        while len(said) < 200:
            number, at = process.stdout.readline().split()
            said.append((int(number), float(at)))
        process.send_signal(kill)
        killed = time.monotonic()
        process.wait(20)
    # Twice the interval: the thread sleeps, then compresses and writes.
    settled = max((number for number, at in said if at < killed - 2 * interval_s), default=0)
    assert settled > 20
    assert steps_in(tmp_path) >= settled
    if kill is signal.SIGINT:  # Python's own end: everything is there
        assert steps_in(tmp_path) >= len(said)
    assert run("merge", tmp_path).code == 0
    rows = (tmp_path / "moe_expert_tracking" / "moe_load_imbalance.csv").read_text().splitlines()
    assert len(rows) - 1 == steps_in(tmp_path)


def test_a_forked_child_does_not_write_the_parents_records(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path, 0, 3600)
    sink.step_begins(Step(0, 0, 1, 1, 1, 0))
    child = os.fork()
    if child == 0:
        sink.flush()
        sink.close({})
        os._exit(0)
    os.waitpid(child, 0)
    assert sink.path.stat().st_size == 8
    sink.close({"steps": 1})
    assert [event for event, _, _ in records_of_journal(Journal(sink.path))] == ["step"]


def test_a_slow_disk_drops_events_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_sink, "MOST_BYTES", 2_000)
    sink = JournalSink(tmp_path, 0, 3600)
    for number in range(100):
        sink.step_begins(Step(number, 0, 1, 1, 1, 0))
    sink.close({"steps": 100, "lost": {}})
    record = Journal(sink.path)
    kept = len(list(records_of_journal(record)))
    assert 0 < kept < 100
    assert record.ended is not None
    assert f'"the disk was slower than the events": {100 - kept}' in record.ended.decode()


def test_a_full_disk_is_one_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = JournalSink(tmp_path, 0, 3600)

    def full(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sink._writer, "append", full)
    for number in range(3):
        sink.step_begins(Step(number, 0, 1, 1, 1, 0))
        sink.flush()
    sink.close({})
    assert sink.failure is not None
    assert "No space left" in sink.failure
    assert capfd.readouterr().err.count("cannot write") <= 1


def test_two_recorders_do_not_share_a_journal(tmp_path: Path) -> None:
    JournalSink(tmp_path, 0, 3600)
    with pytest.raises(NvtxmoeError, match="has a journal there already"):
        JournalSink(tmp_path, 0, 3600)


def test_rows_are_records(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path, 0, 3600)
    rows = np.array([(7, layer, 0, 2, 2, [1, 1, 1, 1]) for layer in range(3)], schema.counts_dtype(4))
    sink.payloads(schema.COUNTS, rows)
    sink.close({})
    found = [payload for _, _, payload in records_of_journal(Journal(sink.path))]
    assert found == [row.tobytes() for row in rows]


def test_a_folder_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SESSION_DIR, raising=False)
    monkeypatch.setattr(weakref, "finalize", lambda *_: None)
    monkeypatch.setattr(time, "strftime", lambda _: "session_20261125_081000")
    first = session.session_dir(tmp_path / "base")
    assert session.session_dir(tmp_path / "base") == first  # as a child
    monkeypatch.delenv(SESSION_DIR)
    second = session.session_dir(tmp_path / "base")
    assert (first.name, second.name) == ("session_20261125_081000", "session_20261125_081000_2")
    session.merge_at_exit(first, os.getpid() + 1)
    assert first.is_dir()
    session.merge_at_exit(first, os.getpid())  # nothing was recorded
    assert not first.exists()


def test_the_last_line_has_the_verdict(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A journal without its end: the terminal says what the validation file says, and what to do."""
    whole = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), "0.05"], env=whole, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while steps_in(tmp_path) < 3 if any(tmp_path.glob("ranks/*.journal")) else True:
            process.stdout.readline()
        process.kill()
    session.merge_at_exit(tmp_path, os.getpid())
    (line,) = capfd.readouterr().err.splitlines()
    validation = json.loads((tmp_path / "moe_expert_tracking" / "moe_capture_validation.json").read_text())
    assert line.startswith("nvtxmoe: capture INCOMPLETE: ")
    assert f" in {tmp_path / 'moe_expert_tracking'}. {validation['reasons'][0]}" in line
    assert line.endswith(session.REMEDY)


def test_windows_that_nobody_has_merged_are_merged_at_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 10):
        sink = JournalSink(tmp_path / "windows" / str(number), 0, 3600)
        sink.step_begins(Step(0, 0, number, 1, number, 0))
        sink.close({"steps": 1})
    (tmp_path / "windows" / "1" / "moe_expert_tracking").mkdir()
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "rank0-1.sock").touch()  # of a process that was killed
    session.merge_at_exit(tmp_path, os.getpid())
    second, tenth = capfd.readouterr().err.splitlines()
    assert f" in {tmp_path / 'windows' / '2' / 'moe_expert_tracking'}" in second
    assert f" in {tmp_path / 'windows' / '10' / 'moe_expert_tracking'}" in tenth
    assert not list((tmp_path / "windows" / "1" / "moe_expert_tracking").iterdir())
    assert not (tmp_path / "control").exists()


def test_the_last_line_of_a_complete_run() -> None:
    overview = {"verdict": "complete", "reasons": [], "steps_captured": 1234, "tokens": 5678, "folder": "/tmp/s"}
    assert session.verdict_line(overview) == "capture complete: 1,234 steps, 5,678 tokens in /tmp/s"


def test_programs_in_the_working_directory_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The merge at exit imports what is installed, not what stands where the user does."""
    session_folder, here = tmp_path / "session", tmp_path / "here"
    sink = JournalSink(session_folder, 0, 3600)
    sink.step_begins(Step(0, 0, 1, 1, 1, 0))
    sink.close({"steps": 1})
    here.mkdir()
    (here / "click.py").write_text("import pathlib; pathlib.Path('planted').touch(); raise SystemExit(0)")
    monkeypatch.chdir(here)
    session.merge_at_exit(session_folder, os.getpid())
    assert not (here / "planted").exists()
    assert (session_folder / "moe_expert_tracking").is_dir()
