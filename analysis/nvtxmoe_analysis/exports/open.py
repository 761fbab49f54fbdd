"""From what the user names to an open export."""

from __future__ import annotations

from pathlib import Path

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.exports.base import Export
from nvtxmoe_analysis.exports.parquet import ParquetExport
from nvtxmoe_analysis.exports.sqlite import SqliteExport

REPORT_SUFFIX = ".nsys-rep"


def open_export(path: Path, *, cache_dir: Path | None = None, nsys: Path | None = None) -> Export:
    """Open a SQLite export, a folder of Parquet files, or a .nsys-rep (exported by nsys to a cache first).

    Raises:
        NvtxmoeError: nothing there, not an export, damaged, or nsys cannot export the report.
    """
    try:
        if path.is_dir():
            return ParquetExport(path)
        if not path.is_file():
            raise NvtxmoeError(
                "neither a file nor a folder" if path.exists() else "no such file or folder",
                where=path,
                remedy="Give a .nsys-rep, a SQLite export, or a folder of Parquet files",
            )
        if path.suffix == REPORT_SUFFIX:
            from nvtxmoe_analysis.exports.nsys import export_report  # noqa: PLC0415  only reports need nsys

            return SqliteExport(export_report(path, cache_dir=cache_dir, nsys=nsys), source=path)
        if path.suffix == ".qdstrm":
            raise NvtxmoeError(
                "an unfinished capture: nsys could not import it into a report",
                where=path,
                remedy="On the capture machine, run `nsys profile` again with its importer working, "
                "or import it there with Nsight Systems' QdstrmImporter",
            )
        return SqliteExport(path)
    except OSError as error:
        remedy = "Check its name and who may read it"
        raise NvtxmoeError(f"cannot be read: {error.strerror or error}", where=path, remedy=remedy) from error
