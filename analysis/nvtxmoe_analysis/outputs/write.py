"""Writing a set of files whole or not at all. Files of ours are replaced together, others are left alone."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.files import _cannot_write
from nvtxmoe_analysis.core.parallel import ordered_map

FORMATS = ("csv", "parquet")
#: Where the earlier results are while new ones take their names.
OLD = "old"
#: Rows of a table whose numbers are text in memory at a time.
BLOCK_ROWS = 1 << 16


def write_set(
    folder: Path,
    tables: Mapping[str, pl.DataFrame],
    documents: Mapping[str, Any],
    formats: Sequence[str] = ("csv",),
    absent: Collection[str] = (),
    parquet_only: Collection[str] = (),
) -> list[Path]:
    """Write tables (in every format asked for) and JSON documents into a folder, which is made if need be.

    Tables named ``parquet_only``, which CSV has no words for, are Parquet whatever was asked for.

    Everything is first written beside the folder's own files; only when all of it is there are the names replaced,
    and put back if that fails half-way. A table of ours in a format not asked for now is removed, and so are tables and
    documents named ``absent``, which this analysis does not have: they would be another analysis's.

    Raises:
        NvtxmoeError: the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _staging(folder) as stage:
            forms = {stem: ("parquet",) if stem in parquet_only else tuple(formats) for stem in tables}
            files = [(table, f"{stem}.{form}", form) for stem, table in tables.items() for form in forms[stem]]
            # list() runs no Python of its own: an interrupt comes inside ordered_map, which then waits for its threads.
            # Else they could go on writing into a folder that is being removed.
            list(ordered_map(lambda file: _write_table(file[0], stage / file[1], file[2]), files))
            names = [name for _, name, _ in files]
            for stem, document in documents.items():
                names.append(f"{stem}.json")
                (stage / names[-1]).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
            stale = [f"{stem}.{form}" for stem in tables for form in FORMATS if form not in forms[stem]]
            stale += [f"{stem}.{form}" for stem in absent for form in (*FORMATS, "json")]
            _replace(folder, stage, names, stale)
    except (OSError, pl.exceptions.ComputeError) as error:  # polars reports a full disk as the latter
        raise _cannot_write(error, folder) from error
    return [folder / name for name in names]


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    stage = Path(tempfile.mkdtemp(prefix=".nvtxmoe-", dir=folder))
    try:
        yield stage
    finally:
        if not (stage / OLD).exists():
            shutil.rmtree(stage, ignore_errors=True)


def _replace(folder: Path, stage: Path, names: Sequence[str], stale: Sequence[str]) -> None:
    old = stage / OLD
    old.mkdir()
    try:
        for name in (*names, *stale):
            if (folder / name).exists():
                (folder / name).replace(old / name)
        for name in names:
            (stage / name).replace(folder / name)
    except BaseException as error:
        _put_back(folder, stage, names)
        if not old.exists():
            raise
        where = f"earlier results, which could not be put back, are in {old}"
        raise NvtxmoeError(f"cannot replace the results: {error}; {where}", where=folder) from error
    old.rename(stage / "replaced")


def _put_back(folder: Path, stage: Path, names: Sequence[str]) -> None:
    """Undo what of the replacing has been done, as the folders tell: an interrupt may come between any two steps."""
    old = stage / OLD
    for name in names:
        if not (stage / name).exists() and not (old / name).exists():
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)
    for file in list(old.iterdir()):
        with contextlib.suppress(OSError):
            file.replace(folder / file.name)
    with contextlib.suppress(OSError):  # not empty: _staging leaves it
        old.rmdir()


def _write_table(table: pl.DataFrame, path: Path, form: str) -> None:
    if form == "parquet":
        wide = _widened(table)
        if wide:  # as they are written, so that all of them are never in memory
            table.lazy().with_columns(wide).sink_parquet(path, compression="zstd")
        else:
            table.write_parquet(path, compression="zstd")
    else:
        with path.open("wb") as file:
            for at in range(0, max(1, len(table)), BLOCK_ROWS):
                as_text(table.slice(at, BLOCK_ROWS)).write_csv(file, include_header=at == 0)


def _widened(table: pl.DataFrame) -> list[pl.Expr]:
    """Columns that are wider in files than in memory: integers Int64, lists of counts UInt32."""
    narrow = [name for name, dtype in table.schema.items() if dtype.is_integer() and dtype != pl.Int64]
    lists = [name for name, dtype in table.schema.items() if isinstance(dtype, pl.List)]
    return [pl.col(name).cast(pl.Int64) for name in narrow] + [pl.col(name).cast(pl.List(pl.UInt32)) for name in lists]


def as_text(table: pl.DataFrame) -> pl.DataFrame:
    """Floats as %.9g, empty where null or not finite."""
    floats = [name for name, dtype in table.schema.items() if dtype.is_float()]
    return table.with_columns(_formatted(table[name]) for name in floats)


def _formatted(values: pl.Series) -> pl.Series:
    # Most columns repeat few values; each is formatted once.
    finite: pl.Series = pl.select(pl.when(values.is_finite()).then(values)).to_series().alias(values.name)
    distinct = finite.unique().drop_nulls()
    if distinct.is_empty():
        return pl.Series(values.name, [None] * len(values), dtype=pl.String)
    texts = pl.Series([f"{v:.9g}" for v in distinct.to_list()], dtype=pl.String)
    text: pl.Series = finite.replace_strict(distinct, texts, default=None, return_dtype=pl.String)
    return text
