"""Writing a set of files whole or not at all. Files of ours are replaced together, others are left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from nvtxmoe_analysis.core.file_set import check_set, replace_set, staging
from nvtxmoe_analysis.core.files import cannot_write_results
from nvtxmoe_analysis.core.parallel import ordered_map
from nvtxmoe_analysis.outputs.csv_formulas import mark

FORMATS = ("csv", "parquet")
#: Significant digits of floats in CSV.
DIGITS = 9
#: Rows of a table whose numbers are text in memory at a time.
BLOCK_ROWS = 1 << 16


def write_set(
    folder: Path,
    tables: Mapping[str, pl.DataFrame],
    documents: Mapping[str, Any],
    formats: Sequence[str] = ("csv",),
    absent: Collection[str] = (),
    parquet_only: Collection[str] = (),
    ready: Callable[[], object] = lambda: None,
) -> list[Path]:
    """Write tables (in every format asked for) and JSON documents into a folder, which is made if need be.

    Tables named ``parquet_only``, which CSV has no words for, are Parquet whatever was asked for.

    The files are replaced together (``core.file_set``): after a failure or a kill the folder holds the earlier set or
    the new one. A table of ours in a format not asked for now is removed, and so are tables and documents named
    ``absent``, which this analysis does not have: they would be another analysis's.

    Parameters:
        ready: called once the new files are written, before they replace the earlier ones. If it raises, these stay.

    Raises:
        NvtxmoeError: the folder can't be written, or something other than a regular file has the name of a result.
    """
    forms = {stem: ("parquet",) if stem in parquet_only else tuple(formats) for stem in tables}
    files = [(table, f"{stem}.{form}", form) for stem, table in tables.items() for form in forms[stem]]
    names = [*(name for _, name, _ in files), *(f"{stem}.json" for stem in documents)]
    stale = [f"{stem}.{form}" for stem in tables for form in FORMATS if form not in forms[stem]]
    stale += [f"{stem}.{form}" for stem in absent for form in (*FORMATS, "json")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging(folder) as stage:
            check_set(folder, (*names, *stale))
            # list() runs no Python of its own: an interrupt comes inside ordered_map, which then waits for its threads.
            # Else they could go on writing into a folder that is being removed.
            list(ordered_map(lambda file: _write_table(file[0], stage / file[1], file[2]), files))
            for stem, document in documents.items():
                (stage / f"{stem}.json").write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
            ready()
            replace_set(folder, stage, names, stale)
    except (OSError, pl.exceptions.ComputeError) as error:  # polars reports a full disk as the latter
        raise cannot_write_results(error, folder) from error
    return [folder / name for name in names]


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
    """Floats with DIGITS digits, empty where null or not finite. Texts that a spreadsheet would compute are marked."""
    floats = [name for name, dtype in table.schema.items() if dtype.is_float()]
    # All columns in few calls: each call of polars has a price of its own. Most columns repeat few values, and each of
    # these is formatted once.
    finite = table.select(pl.when(pl.col(name).is_finite()).then(pl.col(name)) for name in floats)
    distinct = finite.select(pl.all().drop_nulls().unique().implode())
    formatted = finite.with_columns(_formatted(name, distinct[name].item()) for name in floats)
    return mark(table).with_columns(formatted.get_columns())


def _formatted(name: str, distinct: pl.Series) -> pl.Expr:
    """The texts of a column whose distinct values these are."""
    if distinct.is_empty():
        return pl.lit(None, pl.String).alias(name)
    texts = pl.Series([f"{v:.{DIGITS}g}" for v in distinct.to_list()], dtype=pl.String)
    return pl.col(name).replace_strict(distinct, texts, default=None, return_dtype=pl.String)
