"""The kernel that recomputes experts, run by Triton's interpreter on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.support.paths import ROOT

LAYERS, TOKENS = 2, 37


def test_the_kernel_counts_as_pytorch_does(vllm_python: Path) -> None:
    """scripts/setup_vllm.sh puts Triton into a folder of its own: vLLM must not find it."""
    folder = vllm_python.parents[1] / "triton"
    path = os.pathsep.join(map(str, (ROOT, folder)))
    env = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    command = [str(vllm_python), str(ROOT / "tests" / "programs" / "recompute_kernel.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert len(found) == 9
    for name, line in found.items():
        assert line["differing"] == 0, name
        assert line["assignments"] == LAYERS * TOKENS * line["top_k"], name
    assert found["all experts"]["ambiguous"] == 0
    assert found["softmax of a few"]["ambiguous"] >= LAYERS  # the token whose logits are all equal
