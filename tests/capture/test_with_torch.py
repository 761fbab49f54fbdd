"""Runs tests/with_torch, which needs torch, with the Python of vLLM's environment."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MODULES = sorted(file.name for file in (ROOT / "tests" / "with_torch").glob("test_*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_module(module: str, vllm_python: Path) -> None:
    command = [str(vllm_python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/with_torch/{module}"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("NVTXMOE")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.match(r"\d+ passed(, \d+ warnings?)? in ", last), last  # none failed, none skipped


def test_there_are_some() -> None:
    assert {"test_recorder.py", "test_graphs.py", "test_profiler.py"} <= set(MODULES)
