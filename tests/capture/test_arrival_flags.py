"""Flags that kernels set behind their counts, run by Triton's interpreter on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.support.paths import ROOT

#: Those of the program, which needs PyTorch.
LAYERS, TOKENS, TOP_K, UNTOUCHED, BEHIND = 3, 5, 2, -7, 16


def test_every_program_sets_its_flag_and_nothing_else(vllm_python: Path) -> None:
    folder = vllm_python.parents[1] / "triton"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, folder))), "TRITON_INTERPRET": "1"}
    command = [str(vllm_python), str(ROOT / "tests" / "programs" / "arrival_flags.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 8
    for line in lines:
        kernel, experts = line["name"].split()
        programs, row = (LAYERS, int(experts)) if kernel == "count" else (2 * LAYERS, int(experts) + 1)
        first = -(programs * row) % 4  # flags begin at a multiple of 4
        flags = set(range(first, first + programs)) if line["flagged"] else set()
        assert line["behind"] == [1 if at in flags else UNTOUCHED for at in range(BEHIND)], line
        assert line["total"] == LAYERS * TOKENS * TOP_K
