"""A folder of reports in the place of their names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.nsys_export import CACHE_SUFFIX, REPORT_SUFFIX
from nvtxmoe_analysis.readers.session import is_session

SQLITE_SUFFIX = ".sqlite"
#: How ``nsys export --type parquetdir`` ends the name of a report's folder.
PARQUET_SUFFIX = "_pqtdir"


def reports_of(inputs: Sequence[Path]) -> list[Path]:
    """The inputs, each folder that holds reports replaced by those that lie in it, by name.

    A report counts once: where an export by hand lies beside it (``X.sqlite``, ``X_pqtdir``) that is taken, which needs
    no nsys. A folder of Parquet tables is an export whatever its name is. Ours (``X.nvtxmoe.sqlite``) is its report's,
    or stands alone. Sessions, exports and folders without any of these stay as they are.

    Raises:
        NvtxmoeError: a report comes twice, by whatever name.
    """
    reports = [report for path in inputs for report in (in_folder(path) or [path])]
    seen: dict[Path, Path] = {}
    for report in reports:
        place = Path(os.path.realpath(report))  # Path.resolve() raises where links lead in a circle
        if place in seen:
            other = "twice" if seen[place] == report else f"twice, as {seen[place]} too"
            raise NvtxmoeError(f"given {other}", where=report, remedy="Name each report once")
        seen[place] = report
    return reports


def holds_capture(path: Path) -> bool:
    """Return whether a folder is a session or an export, or reports lie in it; true where it cannot be read."""
    try:
        return is_session(path) or _holds_export(path) or bool(in_folder(path))
    except OSError:
        return True  # whoever opens it says what is wrong


def in_folder(folder: Path) -> list[Path]:
    """The reports that lie in a folder; none where it is an export or a session itself."""
    try:
        if not folder.is_dir() or is_session(folder) or any(folder.glob("*.parquet")):
            return []
        inside = sorted(folder.iterdir())
    except OSError:
        return []  # whoever opens it says what is wrong
    paths_by_name: dict[str, dict[str, Path]] = {}
    for path in inside:
        if path.is_dir():
            if path.name.endswith(PARQUET_SUFFIX) or _holds_export(path):
                name = path.name.removesuffix(PARQUET_SUFFIX)
                name = (
                    path.name if PARQUET_SUFFIX in paths_by_name.get(name, {}) else name
                )  # X beside X_pqtdir is another
                paths_by_name.setdefault(name, {})[PARQUET_SUFFIX] = path
            continue
        for suffix in (CACHE_SUFFIX, SQLITE_SUFFIX, REPORT_SUFFIX):
            if path.name.endswith(suffix):
                paths_by_name.setdefault(path.name.removesuffix(suffix), {})[suffix] = path
                break
    order = (SQLITE_SUFFIX, PARQUET_SUFFIX, REPORT_SUFFIX, CACHE_SUFFIX)
    return [next(forms[suffix] for suffix in order if suffix in forms) for _, forms in sorted(paths_by_name.items())]


#: Tables of which every export of nsys has one at least.
_EVERY_EXPORT = (nsys_tables.EXPORT_META, nsys_tables.STRINGS)


def _holds_export(folder: Path) -> bool:
    """Return whether a folder has the Parquet files that every export of nsys has. Result files are no such files."""
    try:
        return any((folder / f"{table.name}.parquet").is_file() for table in _EVERY_EXPORT)
    except OSError:
        return False
