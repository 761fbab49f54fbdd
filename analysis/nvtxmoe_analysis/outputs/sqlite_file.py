"""The result tables in one SQLite file, for ad-hoc SQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.special_files import refuse_companions
from nvtxmoe_analysis.core.files import cannot_write, check_file, reach, whole_file


def check_database(path: Path, tables: Collection[str]) -> None:
    """Refuse early a name that something else has already, or that can't be made.

    Parameters:
        tables: names of the tables that a database of ours has.

    Raises:
        NvtxmoeError: there is something other than a database of ours, or no folder for it.
    """
    try:
        reach(path.parent)
        if not path.is_dir():
            check_file(path)
    except OSError as error:
        raise _cannot_write(error, path) from error
    if path.exists() and not _is_ours(path, tables):
        raise NvtxmoeError(
            "is there already and was not written by nvtxmoe",
            where=path,
            remedy="Choose another name for --sqlite",
        )


@contextmanager
def writing_database(path: Path, tables: Mapping[str, pl.DataFrame]) -> Iterator[None]:
    """Write every table under its file's name into a new SQLite file. It takes its name when what is done inside the
    context has succeeded too.

    Raises:
        NvtxmoeError: the file can't be written, or is something other than a database of ours.
    """
    check_database(path, tables)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as stage:
            _fill(stage, tables)
            yield
    except (OSError, sqlite3.Error) as error:
        raise _cannot_write(error, path) from error


def _cannot_write(error: Exception, path: Path) -> NvtxmoeError:
    return cannot_write(error, path, "the database", "Choose another name for --sqlite, or make room")


def _fill(path: Path, tables: Mapping[str, pl.DataFrame]) -> None:
    import sqlite_utils  # noqa: PLC0415  takes a second, and `load` imports this module to look for outputs

    connection = sqlite3.connect(path)
    try:
        database = sqlite_utils.Database(connection)
        for name, table in tables.items():
            types = {
                c: float if t.is_float() else int if t.is_integer() or t == pl.Boolean else str
                for c, t in table.schema.items()
            }
            database.create_table(name, types)
            marks = ", ".join("?" * table.width)
            with connection:
                connection.executemany(f'INSERT INTO "{name}" VALUES ({marks})', table.iter_rows())
    finally:
        connection.close()


def _is_ours(path: Path, tables: Collection[str]) -> bool:
    refuse_companions(path)
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            connection.close()
    except (sqlite3.Error, UnicodeDecodeError):
        return False
    return names <= set(tables)
