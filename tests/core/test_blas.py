"""Threads of numpy's linear algebra in the command's process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nvtxmoe_analysis.core.blas import THREADS

PROGRAM = f"""
import os, sys
from nvtxmoe_analysis.core.blas import one_thread
one_thread()
print("numpy" in sys.modules, os.environ.get("{THREADS}"), len(os.listdir("/proc/self/task")))
"""


def run(program: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != THREADS}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=inherited | environment)
    return done.stdout.strip()


def test_numpy_gets_one_thread_and_programs_inherit_nothing() -> None:
    assert run(PROGRAM) == "True None 1"


@pytest.mark.parametrize("before", ["import numpy", f"import os; os.environ['{THREADS}'] = '2'"])
def test_what_is_there_already_stays(before: str) -> None:
    program = f"{before}\nimport os; before = dict(os.environ)\n{PROGRAM}\nassert dict(os.environ) == before"
    assert run(program).startswith("True" if "numpy" in before else "False 2")
