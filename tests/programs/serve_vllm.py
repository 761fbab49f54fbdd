"""Runs vLLM's API server, whose processes are forks of this one, which has imported vLLM.

    python tests/programs/serve_vllm.py --model MODEL ...

Its options are those of ``vllm serve``.
"""

from __future__ import annotations

from run_vllm import fork_processes  # type: ignore[import-not-found]

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    fork_processes()
    main()
