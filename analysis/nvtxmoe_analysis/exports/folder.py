"""A folder of reports in the place of their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvtxmoe_analysis.exports.nsys import CACHE_SUFFIX
from nvtxmoe_analysis.exports.open import REPORT_SUFFIX
from nvtxmoe_analysis.exports.session import is_session

SQLITE_SUFFIX = ".sqlite"
#: How ``nsys export --type parquetdir`` ends the name of a report's folder.
PARQUET_SUFFIX = "_pqtdir"


def reports_of(inputs: Sequence[Path]) -> list[Path]:
    """The inputs, each folder that holds reports replaced by those that lie in it, by name.

    A report counts once: where an export by hand lies beside it (``X.sqlite``, ``X_pqtdir``) that is taken, which needs
    no nsys. Ours (``X.nvtxmoe.sqlite``) is its report's, or stands alone. Sessions, exports and folders without any of
    these stay as they are.
    """
    return [report for path in inputs for report in (_in_folder(path) or [path])]


def _in_folder(folder: Path) -> list[Path]:
    try:
        if not folder.is_dir() or is_session(folder) or any(folder.glob("*.parquet")):
            return []
        inside = sorted(folder.iterdir())
    except OSError:
        return []  # whoever opens it says what is wrong
    found: dict[str, dict[str, Path]] = {}
    for path in inside:
        for suffix in (CACHE_SUFFIX, SQLITE_SUFFIX, REPORT_SUFFIX, PARQUET_SUFFIX):
            if path.name.endswith(suffix) and path.is_dir() == (suffix == PARQUET_SUFFIX):
                found.setdefault(path.name.removesuffix(suffix), {})[suffix] = path
                break
    order = (SQLITE_SUFFIX, PARQUET_SUFFIX, REPORT_SUFFIX, CACHE_SUFFIX)
    return [next(forms[suffix] for suffix in order if suffix in forms) for _, forms in sorted(found.items())]
