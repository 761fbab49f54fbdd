"""Imports vLLM once, and forks a process per run: the import takes most of a short run.

    python tests/programs/fork_vllm.py

Standard input brings a JSON object per line: ``folder``, where spec.json is, ``environment``, and ``program``, a module
beside this one whose ``main`` is called. A run gets what a process of its own would have: that folder, exactly that
environment, a process group, and vLLM as it is before it looks for plugins. Its output goes to the folder's stdout.txt
and stderr.txt; pid.txt gets its number, status.txt its exit code when it has ended.
"""

from __future__ import annotations

import gc
import json
import os
import select
import sys
from importlib import import_module
from pathlib import Path

from run_vllm import ENVIRONMENT, look_at_models_here  # type: ignore[import-not-found]

LOOK_S = 0.05


def become_run(request: dict[str, object]) -> None:
    """Make this process, fresh from a fork, the process of a run."""
    os.setsid()
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, "stdout.txt", os.O_WRONLY | os.O_CREAT),
        (2, "stderr.txt", os.O_WRONLY | os.O_CREAT),
    ):
        file = os.open(name, flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    write_whole("pid.txt", str(os.getpid()))


def write_whole(file: str | Path, text: str) -> None:
    """Write a file that is there with all its text or not at all."""
    new = Path(f"{file}.new")
    new.write_text(text)
    new.replace(file)


def serve() -> dict[str, object] | None:
    """Fork for each line. Returns the request in a forked process, None at the end of the input in this one."""
    running: dict[int, Path] = {}
    rest, more = b"", True
    while more or running:
        if more and select.select([0], [], [], LOOK_S)[0]:
            read = os.read(0, 1 << 16)
            more = bool(read)
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                request: dict[str, object] = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    return request
                running[pid] = Path(str(request["folder"]))
        pid, status = os.waitpid(-1, os.WNOHANG if more else 0) if running else (0, 0)
        if pid:
            folder = running.pop(pid)
            write_whole(folder / "status.txt", str(os.waitstatus_to_exitcode(status)))
    return None


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    sys.path.insert(0, str(Path(__file__).parent))
    import vllm.entrypoints.launchers.api_server.entry
    import vllm.entrypoints.llm  # noqa: F401

    look_at_models_here()
    gc.collect()
    # vLLM collects garbage several times a run: not among what all runs share, not even when it ends.
    gc.freeze()
    gc.unfreeze = lambda: None
    asked = serve()
    if asked is not None:
        become_run(asked)
        import_module(str(asked["program"])).main("spec.json", "out")
