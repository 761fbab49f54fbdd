"""A worker with the oracle around it, for runs whose workers are processes that vLLM starts itself.

``worker_cls="scripts.gpu.oracle_worker.OracleWorker"``; the folder of the oracle's files is in ``ORACLE_FOLDER``.
"""

from __future__ import annotations

import os
from pathlib import Path

from vllm.v1.worker.gpu_worker import Worker

from scripts.gpu.oracle import Oracle

FOLDER, KIND, TOKENS = "ORACLE_FOLDER", "ORACLE_KIND", "ORACLE_TOKENS"


class OracleWorker(Worker):  # type: ignore[misc]
    """vLLM's worker; the oracle is around the methods of its base class."""


def _install() -> None:
    file = Path(os.environ[FOLDER]) / f"{os.getpid()}.oracle"
    Oracle(os.environ.get(KIND, "copies"), int(os.environ.get(TOKENS, "2048")), file=file).install()


_install()
