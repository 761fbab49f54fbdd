"""Processes that begin as forks of one that has imported vLLM, which spares each the import."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from tests.support.paths import ROOT

PROGRAMS = ROOT / "tests" / "programs"
PATIENCE_S = 2400


class Forked:
    """A process that fork_vllm.py has begun, with a process group of its own."""

    def __init__(self, folder: Path, forks: subprocess.Popen[str]) -> None:
        self._folder, self._forks = folder, forks
        self.pid = int(self._read("pid.txt"))

    def _read(self, name: str) -> str:
        """Return a file's text when it is there."""
        until = time.monotonic() + PATIENCE_S
        while not (self._folder / name).exists():
            assert self._forks.poll() is None, f"fork_vllm.py ended with {self._forks.returncode}"
            assert time.monotonic() < until, f"{self._folder}: no {name} in {PATIENCE_S} s"
            time.sleep(0.05)
        return (self._folder / name).read_text()

    def has_ended(self) -> bool:
        """Whether it has ended."""
        return (self._folder / "status.txt").exists()

    def wait(self) -> int:
        """Return its exit code when it has ended."""
        return int(self._read("status.txt"))


class Forks:
    """A process that has imported vLLM and forks for each run; see programs/fork_vllm.py. Begun when it is needed."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._python, self._folder, self._lock = python, folder, Lock()
        self._process: subprocess.Popen[str] | None = None

    def _begun(self) -> subprocess.Popen[str]:
        if self._process is None:
            kept = {k: v for k, v in os.environ.items() if not k.startswith(("NVTXMOE_", "VLLM_", "PYTHONPATH"))}
            self._process = subprocess.Popen(
                [str(self._python), str(PROGRAMS / "fork_vllm.py")],
                stdin=subprocess.PIPE, text=True, env=kept, cwd=self._folder,
            )  # fmt: skip
        return self._process

    def begin(self, folder: Path, environment: dict[str, str], program: str) -> Forked:
        """Begin a program on the spec of a folder."""
        with self._lock:
            process = self._begun()
            assert process.stdin is not None
            process.stdin.write(
                json.dumps({"folder": str(folder), "environment": environment, "program": program}) + "\n"
            )
            process.stdin.flush()
        return Forked(folder, process)

    def run(self, folder: Path, environment: dict[str, str], program: str) -> subprocess.CompletedProcess[str]:
        """Run a program on the spec of a folder to its end."""
        code = self.begin(folder, environment, program).wait()
        out, err = ((folder / f"std{name}.txt").read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(["fork_vllm.py"], code, out, err)

    def call(
        self, folder: Path, environment: dict[str, str], calls: Sequence[Sequence[str]], where: Path
    ) -> tuple[list[int], str]:
        """Call scripts or modules, each with its arguments, one after the other; see programs/run_scripts.py.

        Returns:
            Their exit codes, and all that was written.
        """
        (folder / "spec.json").write_text(json.dumps({"calls": calls, "where": str(where)}))
        done = self.run(folder, environment, "run_scripts")
        said = done.stdout[-4000:] + done.stderr[-4000:]
        assert done.returncode == 0, said
        codes: list[int] = json.loads((folder / "out.json").read_text())
        return codes, said

    def close(self) -> None:
        """End the process; its runs have ended."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
