"""How many reports may be read at once: what one needs, and what the machine has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nvtxmoe_analysis.core.files import size_bytes
from nvtxmoe_analysis.readers.nsys_export import REPORT_SUFFIX
from nvtxmoe_analysis.readers.session import is_session

MIB = 1 << 20
#: What a process that reads a report has apart from its rows.
PROCESS_BYTES = 400 * MIB
#: Peak of reading over the size of the file, PROCESS_BYTES left out, rounded up, of exports that hold just the
#: columns that are read (docs/development/benchmarks-many-captures.md). Whole ones hold more.
SQLITE, PARQUET, JOURNALS = 1.2, 4.5, 8.0
#: A SQLite export over its .nsys-rep, for reports that are not exported yet (seen: 2.4 and 2.5; marks alone 4.5).
EXPORTED = 5.0
#: Share of the available memory that is given out.
SHARE = 0.8
#: Reports that are smaller in all are read one after the other: processes would take longer to start.
SMALL_BYTES = 48 * MIB

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def needed_bytes(path: Path) -> int:
    """About what reading a report takes at its peak; 0 for what is not there."""
    return PROCESS_BYTES + round(_factor(path) * size_bytes(path, unknown=0)) if path.exists() else 0


def _factor(path: Path) -> float:
    if path.suffix == REPORT_SUFFIX:
        return EXPORTED * SQLITE
    if not path.is_dir():
        return SQLITE
    return JOURNALS if is_session(path) else PARQUET


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Memory that can be had now without swapping, within the limit of a container (cgroup 2); None where nobody
    tells."""
    limits = []
    with suppress(OSError, KeyError, ValueError, IndexError):
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    with suppress(OSError, ValueError):  # no limit reads "max"
        limits.append(int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text()))
    return max(0, min(limits)) if limits else None


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def workers(paths: Sequence[Path], jobs: int | None = None) -> int:
    """How many processes should read these reports.

    Parameters:
        jobs: what the user asked for; None: as many as there are cores, and as have room at the same time should the
            largest reports meet.
    """
    if jobs is not None:
        return max(1, min(jobs, len(paths)))
    if sum(size_bytes(path, unknown=0) for path in paths) < SMALL_BYTES:
        return 1
    processes = min(cores(), len(paths))
    room = available_bytes()
    if room is None:
        return processes
    largest = sorted((needed_bytes(path) for path in paths), reverse=True)
    while processes > 1 and sum(largest[:processes]) > SHARE * room:
        processes -= 1
    return processes
