"""Tries again what nsys itself failed at. What fails in another way, or each time, stays failed."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tests.support.paths import ROOT

T = TypeVar("T")

#: Locked while nsys runs: two that start at one time can fail in nsys itself.
LOCK = ROOT / ".cache" / "tests" / "nsys.lock"

#: What nsys 2023.4 writes when it loses its own agent or does not find it, now and then on a busy machine.
FAILED_BY_ITSELF = ("Connection to Agent lost", "Local Endpoint is not available", "ClientProxy.cpp")
TRIES = 3


class NsysError(AssertionError):
    """A fault that can only be nsys's own."""


@contextmanager
def nsys_alone() -> Iterator[None]:
    """Wait until no other test or run of vLLM starts nsys, and keep it so within."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def failed_by_itself(text: str) -> bool:
    """Whether nsys's output shows that nsys itself failed."""
    return any(one in text for one in FAILED_BY_ITSELF)


def written(error: BaseException, folder: Path | None) -> str:
    """The text of an error and its causes, the output of the process that it is about, and logs of a folder."""
    parts = [str(error), *(str(getattr(error, name, None) or "") for name in ("stdout", "stderr"))]
    if folder is not None:
        parts += [log.read_text(errors="replace") for log in folder.rglob("*.log") if log.is_file()]
    if error.__cause__ is not None:
        parts.append(written(error.__cause__, None))
    return "\n".join(parts)


def again(attempt: Callable[[], T], folder: Path | None = None) -> T:
    """Return what an attempt returns. While nsys fails by itself, empty the folder and try again, at most TRIES times.

    Args:
        attempt: raises an error that holds nsys's output, or leaves it in a log of the folder.
        folder: what the attempt writes to.
    """
    for number in range(1, TRIES):
        try:
            return attempt()
        except Exception as error:
            if not isinstance(error, NsysError) and not failed_by_itself(written(error, folder)):
                raise
            warnings.warn(f"nsys failed by itself, attempt {number} of {TRIES}: {error}", stacklevel=2)
        if folder is not None:
            empty(folder)
        time.sleep(number)
    return attempt()


def empty(folder: Path) -> None:
    """Remove all that a folder holds."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def run_nsys(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of nsys, or one that runs nsys, which must succeed; its output is text."""
    return again(partial(_run, command, options))


def _run(command: Sequence[object], options: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{words} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def profile_nvtx(
    nsys: Path, report: Path, command: Sequence[object], **options: Any
) -> subprocess.CompletedProcess[str]:
    """Profile a command without a GPU. The report's name may hold variables that nsys replaces."""
    words = ["profile", "-t", "nvtx", "-s", "none", "--cpuctxsw=none", "--force-overwrite=true", "-o", report]

    def attempt() -> subprocess.CompletedProcess[str]:
        before = set(report.parent.glob("*.nsys-rep"))
        done = _run([nsys, *words, *command], options)
        if set(report.parent.glob("*.nsys-rep")) == before:
            raise NsysError(f"{done.args} left no report:\n{done.stdout}\n{done.stderr}")
        return done

    return again(attempt)
