"""`nvtxmoe analyze` is killed at random moments: the earlier results or the new ones are left, never a mixture."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

KILLS = 12


def test_killed_at_random_moments() -> None:
    """More of them: tests/programs/kill_analyze.py --kills 200."""
    program = ROOT / "tests" / "programs" / "kill_analyze.py"
    done = subprocess.run([sys.executable, program, "--kills", str(KILLS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["other"] == []
    assert found["earlier"] + found["new"] == KILLS
