"""The result tables in one SQLite file, for ad-hoc SQL."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import polars as pl
import sqlite_utils

from nvtxmoe.errors import NvtxmoeError


def check_database(path: Path, tables: Collection[str]) -> None:
    """Refuse a name that something else has already.

    Parameters:
        tables: names of the tables that a database of ours has.

    Raises:
        NvtxmoeError: there is something other than a database of ours.
    """
    if path.exists() and not _is_ours(path, tables):
        raise NvtxmoeError(
            "is there already and was not written by nvtxmoe",
            where=path,
            remedy="Choose another name for --sqlite",
        )


def write_database(path: Path, tables: Mapping[str, pl.DataFrame]) -> None:
    """Write every table under its file's name into a new SQLite file, whole or not at all.

    Raises:
        NvtxmoeError: the file can't be written, or is something other than a database of ours.
    """
    check_database(path, tables)
    handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
        _fill(Path(name), tables)
        os.chmod(name, 0o644)  # noqa: PTH101  mkstemp's own is for one user
        Path(name).replace(path)
    except (OSError, sqlite3.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        remedy = "Choose another name for --sqlite, or make room"
        raise NvtxmoeError(f"cannot write the database: {reason}", where=path, remedy=remedy) from error
    finally:
        if handle is not None:
            Path(name).unlink(missing_ok=True)


def _fill(path: Path, tables: Mapping[str, pl.DataFrame]) -> None:
    connection = sqlite3.connect(path)
    try:
        database = sqlite_utils.Database(connection)
        for name, table in tables.items():
            types = {c: float if t.is_float() else int if t.is_integer() else str for c, t in table.schema.items()}
            database.create_table(name, types)
            marks = ", ".join("?" * table.width)
            with connection:
                connection.executemany(f'INSERT INTO "{name}" VALUES ({marks})', table.iter_rows())
    finally:
        connection.close()


def _is_ours(path: Path, tables: Collection[str]) -> bool:
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            connection.close()
    except (sqlite3.Error, UnicodeDecodeError):
        return False
    return names <= set(tables)
