"""Runs vLLM's API server, whose processes are forks of this one, for fork_vllm.py, which has imported vLLM.

SPEC.json holds ``arguments``, which are those of ``vllm serve``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from run_vllm import fork_processes  # type: ignore[import-not-found]


def main(spec_path: str, _: str) -> None:
    """Serve until a signal ends it."""
    import torch._dynamo  # noqa: PLC0415
    from vllm.entrypoints.launchers.api_server import entry  # noqa: PLC0415

    torch._dynamo.config.disable = True  # vLLM would compile a function of the sampler in each worker
    fork_processes()
    sys.argv = ["serve_vllm.py", *json.loads(Path(spec_path).read_text())["arguments"]]
    entry.main()
