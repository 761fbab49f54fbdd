"""What is written of a process that pauses, or ends without a shutdown: every step that was counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from nvtxmoe.formats.journal import EVENTS, Journal

ROOT = Path(__file__).resolve().parents[2]
#: Steps: no multiple of those that the journal's sink sends together.
STEPS = 21
#: The journal's own interval, in seconds: too long to have written anything.
INTERVAL_S = 3600

PROGRAM = """
import sys, time
from pathlib import Path
import torch
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from nvtxmoe.capture.sinks.journal import JournalSink
from tests.with_torch.events import EXPERTS, identity

folder, steps, interval_s, end = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
recorder = Recorder(lambda _: [JournalSink(folder, 0, interval_s)], sample_every=0)
recorder.model_loaded(identity(1))
for _ in range(steps):
    recorder.begin_step(2, 1, 0, 2)
    recorder.routed(RoutingTensors(0, EXPERTS, torch.tensor([[0, 1], [2, 3]], dtype=torch.int32), None))
    recorder.forward_done()
    recorder.end_step()
if end == "exit":
    raise SystemExit(0)
print("done", flush=True)
time.sleep(600)
"""


def start(folder: Path, end: str) -> subprocess.Popen[str]:
    """The program, which runs its steps as fast as it can."""
    command = [sys.executable, "-c", PROGRAM, str(folder), str(STEPS), str(INTERVAL_S), end]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def counted(folder: Path) -> int:
    """Steps with counts in the one journal."""
    files = list(folder.glob("ranks/*.journal"))
    if not files:
        return 0
    return sum(int((records.event == EVENTS.index("counts")).sum()) for records in Journal(files[0]).bulk())


def test_a_process_that_exits_by_itself(tmp_path: Path) -> None:
    with start(tmp_path, "exit") as process:
        assert process.wait(240) == 0
    assert counted(tmp_path) == STEPS


def test_a_process_that_is_killed_in_a_pause(tmp_path: Path) -> None:
    with start(tmp_path, "sleep") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        until = time.monotonic() + 240
        while counted(tmp_path) < STEPS and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert counted(tmp_path) == STEPS
