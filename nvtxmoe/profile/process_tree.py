"""The processes of a run, from /proc: who descends from whom, and which one to ask to end.

Environments are no help in finding them: vLLM's processes set their titles, which overwrites /proc/PID/environ.

psutil 7.2 would need twice the CPU for the same table (20 ms per scan of 117 processes, against 10 ms), which each poll
of a run reads, and it does not give the session of a process.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
#: Programs that start the real one as their only child, wait for it, and may keep a signal to themselves.
WRAPPERS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh", "busybox", "time", "uv"})
#: nsys, nsys-launcher and nsys-tee stand between `nsys profile` and the application.
_NSYS, _LAUNCHER = "nsys", "nsys-launcher"
_GONE = frozenset("ZX")


@dataclass(frozen=True)
class Process:
    """One row of the process table. Two are equal that are of one process, whatever it calls itself by now.

    Attributes:
        pid: its number.
        parent: its parent's number; another's once the parent has ended.
        session: the number of its session.
        started: when it began, in clock ticks since boot; with the pid it names the process for good.
        name: the kernel's name of it, 15 characters at most; it changes with ``exec`` and as a program likes.
    """

    pid: int
    parent: int = field(compare=False)
    session: int = field(compare=False)
    started: int
    name: str = field(compare=False)


def process_table() -> dict[int, Process]:
    """All processes that run, by pid; those that have ended and were not yet waited for are left out."""
    table = {}
    for entry in os.scandir(PROC):
        if entry.name.isdigit():
            with suppress(OSError):  # it has gone meanwhile
                process = _parsed(Path(entry.path, "stat").read_text(errors="replace"))
                if process is not None:
                    table[process.pid] = process
    return table


def _parsed(stat: str) -> Process | None:
    head, _, tail = stat.rpartition(")")
    pid, _, name = head.partition(" (")
    fields = tail.split()
    if not fields or fields[0] in _GONE:
        return None
    return Process(int(pid), int(fields[1]), int(fields[3]), int(fields[19]), name)


def application(root: int, under_nsys: bool, sessions: Iterable[int] = ()) -> list[Process]:
    """The profiled processes that run now, parents before their children.

    Parameters:
        root: pid of what was started: nsys, or the command itself.
        under_nsys: whether ``root`` is nsys, which with its helpers does not count.
        sessions: numbers of sessions whose processes count although their parents have ended.
    """
    table = process_table()
    processes = _descendants(root, table)
    if not under_nsys and root in table:
        processes.insert(0, table[root])
    known = {process.pid for process in processes}
    session_ids = set(sessions)
    processes += [
        process
        for process in table.values()
        if process.session in session_ids and process.pid not in known and process.pid != root
    ]
    return [process for process in processes if not (under_nsys and process.name.startswith(_NSYS))]


def launched(nsys: int) -> Process | None:
    """The first process of the command under an nsys with this pid: the launcher's child; None while there is none.

    nsys itself runs helpers before it (seen with 2025.3: CudaGpuInfoDump), which are not the launcher's.
    """
    table = process_table()
    for process in _descendants(nsys, table):
        parent = table.get(process.parent)
        if parent is not None and parent.name == _LAUNCHER and not process.name.startswith(_NSYS):
            return process
    return None


def _descendants(root: int, table: Mapping[int, Process]) -> list[Process]:
    children = defaultdict(list)
    for process in table.values():
        children[process.parent].append(process)
    descendants, at = list(children[root]), 0
    while at < len(descendants):
        descendants += children[descendants[at].pid]
        at += 1
    return descendants


def main_process(running: list[Process]) -> Process | None:
    """The process to ask for an orderly end: the first, or behind wrappers such as a shell what they wait for."""
    if not running:
        return None
    main = running[0]
    while _program(main) in WRAPPERS:
        children = [process for process in running if process.parent == main.pid]
        if len(children) != 1:
            break
        main = children[0]
    return main


def _program(process: Process) -> str:
    with suppress(OSError):
        return Path(PROC / str(process.pid) / "exe").readlink().name
    return process.name


def send(process: Process, signal_number: int) -> None:
    """Send a signal, unless the process has ended and its number is another's now."""
    if process_table().get(process.pid) == process:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal_number)
