"""Live metrics in the processes of a run: the folder that they share, and what can go wrong with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nvtxmoe.capture.startup import live
from nvtxmoe.capture.startup.settings import Settings
from nvtxmoe.capture.startup.start import sinks_of
from tests.support.paths import ROOT

#: What vLLM brings, as far as ``begin`` looks at it; or what raises, as if it were not installed.
STAND_IN, ABSENT = "", "raise ModuleNotFoundError(\"No module named 'prometheus_client'\", name='prometheus_client')"
PROGRAM = """
import os, subprocess, sys
from nvtxmoe.capture.startup import live
from nvtxmoe.capture.startup.settings import load
settings = load()
live.begin(settings)
sinks = live.live_sinks(settings, 0)
print(os.environ.get("NVTXMOE_LIVE_DIR"), len(sinks), flush=True)
if len(sys.argv) > 1:
    subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""


def begun(tmp_path: Path, client: str = STAND_IN, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "prometheus_client.py").write_text(client)
    env = {key: value for key, value in os.environ.items() if not key.startswith("NVTXMOE_")}
    env |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "NVTXMOE_METRICS": "1", **more}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env=env, capture_output=True, text=True, check=False, timeout=120
    )


def test_children_share_the_folder_and_the_first_process_removes_it(tmp_path: Path) -> None:
    done = begun(tmp_path, STAND_IN, PROGRAM)
    assert (done.returncode, done.stderr) == (0, "")
    (first, number), (second, _) = (line.split() for line in done.stdout.splitlines())
    assert first == second
    assert number == "1"
    assert not Path(first).exists()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    base = live.IN_MEMORY if os.access(live.IN_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    left, mine = (base / f"{live.FOLDERS}{pid}-{tmp_path.name}" for pid in (ended.pid, os.getpid()))
    left.mkdir()
    mine.mkdir()
    try:
        begun(tmp_path)
        assert not left.exists()
        assert mine.exists()
    finally:
        mine.rmdir()


def test_a_folder_that_was_given_stays(tmp_path: Path) -> None:
    done = begun(tmp_path, NVTXMOE_LIVE_DIR=str(tmp_path / "mine"))
    assert done.stdout.split() == [str(tmp_path / "mine"), "1"]
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("client", "more", "said"),
    [
        (ABSENT, {}, "No module named 'prometheus_client'"),
        (STAND_IN, {"NVTXMOE_LIVE_DIR": "/dev/null/x"}, "/dev/null/x"),
    ],
)
def test_what_goes_wrong_is_one_warning_and_no_metrics(
    tmp_path: Path, client: str, more: dict[str, str], said: str
) -> None:
    done = begun(tmp_path, client, **more)
    assert (done.returncode, done.stdout.split()) == (0, ["None", "0"])
    assert done.stderr.count("WARNING") == done.stderr.count("\n") == 1
    assert "no live metrics: " in done.stderr
    assert said in done.stderr


def test_a_model_that_cannot_be_read_is_a_warning_and_metrics_go_on(tmp_path: Path) -> None:
    done = begun(tmp_path, NVTXMOE_METRICS_MODEL=str(tmp_path / "none.json"))
    assert done.stdout.split()[1] == "1"
    assert done.stderr.count("\n") == 1
    assert "no estimate of the time lost to imbalance" in done.stderr


def test_off_means_that_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(live.LIVE_DIR, "/nowhere")
    assert live.live_sinks(Settings(enable=True), 0) == []


def test_mode_live_is_metrics_alone() -> None:
    settings = Settings(enable=True, mode="live")
    assert settings.shows_metrics
    assert list(sinks_of(settings)) == []
    assert not Settings(enable=True, mode="moe").shows_metrics
