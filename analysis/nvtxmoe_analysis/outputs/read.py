"""Reading a folder of results back: polars frames with declared types, and the JSON documents."""

from __future__ import annotations

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.file_set import recover
from nvtxmoe_analysis.outputs.csv_formulas import unmark
from nvtxmoe_analysis.outputs.registry import declarations, documents, tables
from nvtxmoe_analysis.outputs.spec import FOLDER, Table


def load(folder: str | PathLike[str]) -> Results:
    """Open a folder of results.

    Parameters:
        folder: DIR of ``nvtxmoe analyze -o DIR`` or ``nvtxmoe merge``, or ``moe_expert_tracking`` inside it.

    Raises:
        NvtxmoeError: the folder or a result file in it is missing, or a killed program was replacing files and they
            cannot be put in place now. A damaged file is reported when its frame is first used.
    """
    path = Path(folder)
    inner = path / FOLDER
    for candidate in (inner, path):
        recover(candidate)
        if any(_file(candidate, name) is not None for name in declarations()):
            return Results(candidate)
    raise no_results(path)


def no_results(path: Path) -> NvtxmoeError:
    """Return the error to show if there are no results at a path."""
    what = "no such folder" if not path.exists() else "no folder" if not path.is_dir() else "no result file in it"
    remedy = "Name the DIR of `nvtxmoe analyze INPUT -o DIR` or `nvtxmoe merge SESSION -o DIR`"
    return NvtxmoeError(what, where=path, remedy=remedy)


def _file(folder: Path, name: str) -> Path | None:
    """The file of a frame or document, None where it is absent."""
    declared = declarations()[name]
    return next((file for form in declared.forms if (file := folder / f"{declared.stem}.{form}").is_file()), None)


class Results:
    """Results of one analysis: one attribute per table and document, read from its file on first use, then kept.

    ``dir(results)`` and docs/reference/result-tables.md list the names. ``frame(name)`` and ``document(name)`` return
    the same with a type that checkers know. Further columns of a file follow the declared ones.

    Raises:
        NvtxmoeError: an attribute is used whose file is absent (the message names the command that makes it), is
            damaged, or lacks a column because another version of nvtxmoe wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, Any] = {}

    def __repr__(self) -> str:
        present = ", ".join(name for name in declarations() if self.has(name))
        return f"Results({str(self.folder)!r}: {present})"

    def has(self, name: str) -> bool:
        """Return whether the file of a frame or document is there.

        Raises:
            NvtxmoeError: results have no frame or document of that name.
        """
        return self.path(name) is not None

    def path(self, name: str) -> Path | None:
        """Return the file of a frame or document, None if it is absent.

        Raises:
            NvtxmoeError: results have no frame or document of that name.
        """
        if name not in declarations():
            raise no_such("frame or document", name, declarations())
        return self._file(name)

    def _file(self, name: str) -> Path | None:
        return _file(self.folder, name)

    def frame(self, name: str) -> pl.DataFrame:
        """Return a table, its declared columns first; the same as the attribute of that name.

        Raises:
            NvtxmoeError: results have no table of that name, or see the class.
        """
        if name not in tables():
            raise no_such("frame", name, tables())
        if name not in self._read:
            self._read[name] = self._read_frame(name)
        frame: pl.DataFrame = self._read[name]
        return frame

    def is_read(self, name: str) -> bool:
        """Return whether a table or document has been read and is kept."""
        return name in self._read

    def ends_in_line(self, name: str) -> bool:
        """Return whether the last line of a CSV file that is there is whole; True of other files."""
        path = self.path(name)
        if path is None or path.suffix != ".csv":
            return True
        with path.open("rb") as file:
            file.seek(-1, 2)
            return file.read() == b"\n"

    def document(self, name: str) -> dict[str, Any]:
        """Return a JSON document; the same as the attribute of that name.

        Raises:
            NvtxmoeError: results have no document of that name, or see the class.
        """
        if name not in documents():
            raise no_such("document", name, documents())
        if name not in self._read:
            self._read[name] = self._read_document(name)
        document: dict[str, Any] = self._read[name]
        return document

    def __getattr__(self, name: str) -> Any:
        """A table (``polars.DataFrame``) or document (``dict``) by its name."""
        if name in tables():
            return self.frame(name)
        if name in documents():
            return self.document(name)
        raise AttributeError(f"results have no frame or document {name!r}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *declarations()]

    def _read_frame(self, name: str) -> pl.DataFrame:
        return read_frame(self._present(name), tables()[name])

    def _read_document(self, name: str) -> dict[str, Any]:
        return _read_document(self._present(name))

    def _present(self, name: str) -> Path:
        file = self.path(name)
        if file is not None:
            return file
        declared = declarations()[name]
        remedy = (
            "It needs GPU time: `nvtxmoe analyze REPORT.nsys-rep -o DIR` of this version writes it, of a run under nsys"
            if declared.gpu
            else "`nvtxmoe analyze INPUT -o DIR` or `nvtxmoe merge SESSION -o DIR` of this version writes it"
        )
        raise NvtxmoeError(f"no {declared.stem}.{declared.forms[-1]}", where=self.folder, remedy=remedy)


def no_such(what: str, name: str, names: Iterable[str]) -> NvtxmoeError:
    """Return the error to show if there is nothing of a name, with the names that there are."""
    return NvtxmoeError(f"no {what} {name!r}", remedy=f"Ask for one of {', '.join(names)}")


def _read_document(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or too deep or too long numbers
        raise _damaged(file, str(error)) from error
    if not isinstance(value, dict):
        raise _damaged(file, "it holds no object")
    return value


def read_frame(file: Path, declared: Table) -> pl.DataFrame:
    """A table with its declared types: the declared columns first, then what else the file has.

    Raises:
        NvtxmoeError: the file is damaged, or lacks a declared column.
    """
    try:
        table = _read_parquet(file, declared) if file.suffix == ".parquet" else _read_csv(file, declared)
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise _damaged(file, str(error).split("\n", 1)[0]) from error
    check_whole(file, declared, table)
    return table.select(*declared.types, pl.exclude(*declared.types)) if declared.types else table


def check_whole(file: Path, declared: Table, table: pl.DataFrame) -> None:
    """Check that a table, or some columns of it, has lost no value, as far as its declaration tells.

    Raises:
        NvtxmoeError: a cell is empty that has a value in the results of any capture, or rows can't be told apart.
    """
    lost = ""
    empty = [name for name in declared.whole if name in table.columns and table[name].null_count()]
    if "reason" in table.columns:
        silent = table.filter(pl.col("reason").is_null())
        empty += [name for name in declared.reasoned if name in table.columns and silent[name].null_count()]
    if empty:
        lost = f"cells of column {', '.join(empty)} are empty"
    elif any(table[name].null_count() for name in declared.key):
        keys = table.select(declared.key).filter(pl.any_horizontal(pl.all().is_null()))
        if (keys.drop_nulls("step") if declared.unnumbered else keys).is_duplicated().any():
            lost = f"rows with an empty cell have the same {', '.join(declared.key)}"
    if lost:
        raise NvtxmoeError(f"it is damaged: {lost}", where=file, remedy="Run `nvtxmoe analyze` again")


def _read_parquet(file: Path, declared: Table) -> pl.DataFrame:
    table = pl.read_parquet(file)
    _require(file, declared, table.columns)
    return table.cast(dict(declared.types))  # type: ignore[arg-type]  # polars wants a dict of exactly its own types


def _read_csv(file: Path, declared: Table) -> pl.DataFrame:
    # Never inferred from the first rows: a column that is empty there, or whole numbers, would change its type.
    table = pl.read_csv(file, schema_overrides=dict(declared.types), infer_schema=False)
    _require(file, declared, table.columns)
    return table.with_columns(
        unmark(table[name]) if name in declared.types else _typed(table[name])
        for name in table.columns
        if name not in declared.types or table.schema[name] == pl.String
    )


def _typed(texts: pl.Series) -> pl.Series:
    """A column that is not declared, of a later version: integers, floats or booleans where all its cells are."""
    if texts.null_count() == len(texts):
        return texts
    for dtype in (pl.Int64, pl.Float64):
        numbers: pl.Series = texts.cast(dtype, strict=False)
        if numbers.null_count() == texts.null_count():
            return numbers
    if set(texts.drop_nulls().unique()) <= {"true", "false"}:
        return texts == "true"
    return unmark(texts)


def _require(file: Path, declared: Table, columns: list[str]) -> None:
    missing = [name for name in declared.types if name not in columns]
    if missing:
        raise NvtxmoeError(
            f"no column {', '.join(missing)}: another version of nvtxmoe wrote it, or another program changed it",
            where=file,
            remedy="Run `nvtxmoe analyze` of this version again",
        )


def _damaged(file: Path, reason: str) -> NvtxmoeError:
    return NvtxmoeError(f"cannot be read: {reason}", where=file, remedy="Run `nvtxmoe analyze` again")
