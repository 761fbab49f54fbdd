"""What memory reading reports takes: ``python scripts/bench/reading_memory.py [--plain] REPORT...``

Reads the reports in turn in this process, as a worker of ``nvtxmoe analyze`` does, and prints the peak of its resident
memory after each. ``--plain`` leaves the C library as it is, without ``nvtxmoe_analysis.core.malloc.keep_low``.
"""

from __future__ import annotations

import argparse
import os
import resource
from pathlib import Path

from nvtxmoe_analysis.core.malloc import keep_low


def main() -> None:
    """Read, and print a line a report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", metavar="REPORT", type=Path, nargs="+")
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args()
    os.environ["POLARS_MAX_THREADS"] = "1"
    if not args.plain:
        keep_low()
    from nvtxmoe_analysis.facts.selection import Selection  # noqa: PLC0415
    from nvtxmoe_analysis.ingest.task import Task, read  # noqa: PLC0415  after the C library was told

    for path in args.reports:
        read(Task(path, path, Selection()))
        print(f"{path}: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024:,} MiB at most so far")


if __name__ == "__main__":
    main()
