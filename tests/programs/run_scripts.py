"""Runs scripts or modules one after the other in this process, for fork_vllm.py, which has imported vLLM.

SPEC.json holds ``calls``, each a script or module and its arguments, and ``where``, their working directory. OUT.json
gets their exit codes.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path


def main(spec_path: str, out: str) -> None:
    """Run all calls of a spec."""
    spec = json.loads(Path(spec_path).read_text())
    codes_file = Path(out + ".json").absolute()
    os.chdir(spec["where"])
    codes = []
    for call in spec["calls"]:
        sys.argv = call
        run = runpy.run_path if call[0].endswith(".py") else runpy.run_module
        try:
            run(call[0], run_name="__main__")
        except SystemExit as end:
            codes.append(end.code)
    codes_file.write_text(json.dumps(codes))
