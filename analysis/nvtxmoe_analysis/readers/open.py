"""From what the user names to an open export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.readers.base import Export
from nvtxmoe_analysis.readers.nsys_export import REPORT_SUFFIX, export_report
from nvtxmoe_analysis.readers.session import Session, is_session
from nvtxmoe_analysis.readers.sqlite import SqliteExport


def open_export(path: Path, *, cache_dir: Path | None = None, nsys: Path | None = None) -> Export:
    """Open a SQLite export, a folder of Parquet files, a .nsys-rep (exported by nsys to a cache first), or a session of
    direct mode.

    Raises:
        NvtxmoeError: nothing there, not an export, damaged, or nsys cannot export the report.
    """
    try:
        if is_session(path):
            return Session(path)
        if path.is_dir():
            from nvtxmoe_analysis.readers.parquet import ParquetExport  # noqa: PLC0415  pyarrow's file systems

            return ParquetExport(path)
        if not path.is_file():
            raise NvtxmoeError(
                "neither a file nor a folder" if path.exists() else "no such file or folder",
                where=path,
                remedy="Give a .nsys-rep, a SQLite export, or a folder of Parquet files; or a session's folder",
            )
        if path.suffix == REPORT_SUFFIX:
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


def refuse_mixture(paths: Sequence[Path]) -> None:
    """Refuse exports and sessions together: they are two recordings, or of two runs.

    Raises:
        NvtxmoeError: there are both.
    """
    direct = [is_session(path) for path in paths] if len(paths) > 1 else []
    if any(direct) and not all(direct):
        session, export = paths[direct.index(True)], paths[direct.index(False)]
        raise NvtxmoeError(
            f"a session of direct mode, and {export} is none: journals and exports of nsys can't be mixed",
            where=session,
            remedy="Analyse them one by one, each into a folder of its own",
        )
