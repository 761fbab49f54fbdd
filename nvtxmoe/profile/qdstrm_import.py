"""The report that nsys could not make itself: from the raw file that it leaves then, with its own importer.

Seen with nsys 2023.4.4 once in about a hundred runs: `Importation failed`, a report.qdstrm in the place of the report.
The same file imports when it is tried again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from nvtxmoe.profile.nsys_command import RAW_FILE, REPORT_FILE

IMPORTER = "QdstrmImporter"
_TIMES = 3


def importer_of(nsys: Path) -> Path | None:
    """The importer that belongs to an nsys, None where it is not in its usual place."""
    path = nsys.resolve().parent.parent / "host-linux-x64" / IMPORTER
    return path if os.access(path, os.X_OK) else None


def import_raw(nsys: Path, folder: Path, log: Path, show_message: Callable[[str], None]) -> None:
    """Make the report, where nsys left the raw file only; then the raw file goes.

    Parameters:
        nsys: the nsys that recorded.
        folder: where the raw file is.
        log: gets the importer's output.
        show_message: called with what happens.
    """
    raw, report, part = folder / RAW_FILE, folder / REPORT_FILE, folder / f".{REPORT_FILE}"
    importer = importer_of(nsys)
    if report.exists() or not raw.exists() or importer is None:
        return
    for _ in range(_TIMES):
        show_message(f"nsys left {raw.name} and no report: importing it again")
        with log.open("ab") as output:
            done = subprocess.run(
                [importer, "-i", raw, "-o", part], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                check=False,
            )  # fmt: skip
        if done.returncode == 0 and part.exists():
            part.replace(report)
            raw.unlink()
            return
        part.unlink(missing_ok=True)
