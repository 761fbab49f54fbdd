"""One case of ``scripts/gpu/check_all.py`` as a process of its own: begun, watched, ended, read."""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scripts.gpu.cases import Case

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu" / "check_exact.py"
#: Bytes of a log's end that are kept.
TAIL_BYTES = 200_000
#: Seconds that a process may take to end once its comparison is written.
END_S = 10.0
#: So many seconds before its limit a case prints the stacks of its threads into its log.
STACKS_BEFORE_S = 20.0
_ERROR = re.compile(
    r"^(?:\[?rank\d+\]?:? ?|\(.*?\) |ERROR [^\]]*\] )*(\w[\w.]*(?:Error|Exception|Interrupt)\b.*)$", re.MULTILINE
)


def result_of(case: Case, status: str, **more: Any) -> dict[str, Any]:
    """A result, with what the table shows of its case."""
    return {
        "name": case.name,
        "model": case.model,
        "setting": case.setting,
        "words": list(case.words),
        "env": dict(case.env),
        "gpus": case.gpus,
        "status": status,
        **more,
    }


def not_run(case: Case, why: str) -> dict[str, Any]:
    """The result of a case that was not begun."""
    return result_of(case, "not run", why=why)


def failed(case: Case, why: str, **more: Any) -> dict[str, Any]:
    """The result of a case that ended without a comparison."""
    return result_of(case, "failed", why=why, **more)


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def command(case: Case, python: str, results: Path) -> list[str]:
    """The command of a case."""
    words = [str(SCRIPT), *case.words, "--result", str(results)]
    if not case.torchrun:
        return [python, *words]
    launch = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(case.gpus)]
    return [python, *launch, "--master-addr", "127.0.0.1", "--master-port", str(free_port()), *words]


def environment(case: Case, gpus: list[int]) -> dict[str, str]:
    """Its variables: capture on, in direct mode, token rows of every step."""
    path = [str(ROOT / "nvtxmoe" / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
        "NVTXMOE_ENABLE": "1",
        "NVTXMOE_MODE": "moe",
        "NVTXMOE_LOG_INTERVAL": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_HOST_IP": "127.0.0.1",
        "OMP_NUM_THREADS": "2",
        **case.env,
    }


class CaseProcess:
    """A case that runs.

    Parameters:
        gpus: their numbers.
        limit_s: seconds after which it is ended.
        scratch: folder for its files.
        python: that has vLLM.
    """

    def __init__(self, case: Case, gpus: list[int], limit_s: float, scratch: Path, python: str) -> None:
        self.case = case
        self.gpus = gpus
        self.folder = scratch / case.name
        self.folder.mkdir(parents=True)
        self.log = self.folder / "log"
        self.began = time.monotonic()
        self.limit_s = limit_s
        self.done_s = float("inf")
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command(case, python, self.folder / "results"),
                env={**environment(case, gpus), "CHECK_EXACT_STACKS_S": str(max(10.0, limit_s - STACKS_BEFORE_S))},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def result(self, out: Path) -> dict[str, Any] | None:
        """Its result once it has ended, by itself or by its limit; None before."""
        seconds = time.monotonic() - self.began
        status = self.process.poll()
        if status is None and seconds < self.limit_s and not self._compared(seconds):
            return None
        self.kill()  # also what it may have left behind
        tail = self._tail()
        (out / f"{self.case.name}.log.xz").write_bytes(lzma.compress(tail))
        processes = [json.loads(file.read_text()) for file in sorted((self.folder / "results").glob("*.json"))]
        known = {"seconds": round(seconds, 1), "processes": processes}
        errors = [process["error"] for process in processes if "error" in process]
        if errors:
            return failed(self.case, errors[0], **known)
        if status is None and len(processes) != self.case.results:
            return result_of(self.case, "timed out", why=f"ended after {seconds:.0f} s", **known)
        if len(processes) != self.case.results:
            return failed(self.case, last_error(tail.decode("utf-8", "replace")) or f"exit status {status}", **known)
        return result_of(self.case, "exact" if all(process["exact"] for process in processes) else "differs", **known)

    def _compared(self, seconds: float) -> bool:
        """Every process has been compared a while ago, and only its end is awaited."""
        files = len(list((self.folder / "results").glob("*.json")))
        if files < self.case.results:
            return False
        self.done_s = min(self.done_s, seconds)
        return seconds - self.done_s > END_S

    def kill(self) -> None:
        """End it and everything that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _tail(self) -> bytes:
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            return log.read()


def last_error(text: str) -> str | None:
    """The last line of a log that names an exception."""
    errors = _ERROR.findall(text)
    return errors[-1].strip() if errors else None
