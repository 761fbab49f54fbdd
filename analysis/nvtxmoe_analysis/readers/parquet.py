"""Folders of Parquet files, one a table, as ``nsys export --type parquetdir`` makes them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.special_files import refuse_special
from nvtxmoe_analysis.core.file_set import recover
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import BATCH_ROWS, Export
from nvtxmoe_analysis.readers.find_inputs import in_folder
from nvtxmoe_analysis.readers.session import is_session

#: A table may have so many rows, and one more for each byte of its file: rows of real work have times, which take more.
ANY_ROWS = 5_000_000
#: Payloads may take so much memory, and so many times the size of their file.
ANY_BLOB_BYTES, BLOB_FACTOR = 1 << 29, 64
#: Rows of payloads read at a time.
BLOB_ROWS = 1 << 12
#: Stands for a domain that a row does not tell.
NO_DOMAIN = np.iinfo(np.int64).min

#: What reading a damaged file raises. pyarrow decodes names as it goes; the panics of polars are no Exception.
PARQUET_ERRORS = (
    pa.ArrowException,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    OSError,
    UnicodeDecodeError,
)


class ParquetExport(Export):
    """An export made by ``nsys export --type parquetdir``."""

    kind = "parquet"

    def __init__(self, path: Path, source: Path | None = None) -> None:
        recover(path)  # a trim that was killed while it replaced the files
        super().__init__(path, source)
        self._check_is_export()

    def _files(self) -> Sequence[Path]:
        return sorted(self.path.glob("*.parquet"))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.parquet"

    def _read_layout(self) -> dict[str, tuple[str, ...]]:
        layout: dict[str, tuple[str, ...]] = {}
        for file in self._files():
            refuse_special(file)
            try:
                metadata = pq.read_metadata(file)
                layout[file.stem] = tuple(metadata.schema.to_arrow_schema().names)
            except PARQUET_ERRORS as error:
                raise self._damaged(error, file) from error
            if metadata.num_rows > ANY_ROWS + file.stat().st_size:
                raise NvtxmoeError(
                    f"damaged: {metadata.num_rows:,} rows in {file.stat().st_size:,} bytes",
                    where=file,
                    remedy="Export the report again, or copy it again",
                )
        if not layout and (reports := in_folder(self.path)):
            raise NvtxmoeError(
                f"a folder of {number(len(reports), 'report')}, and one is wanted",
                where=self.source,
                remedy=f"Name it: {reports[0]}" if len(reports) == 1 else f"Name one, as {reports[0]}",
            )
        if not layout and any(is_session(path) for path in self.path.iterdir()):
            raise NvtxmoeError("a folder of sessions", where=self.source, remedy="Name each session")
        if not layout:
            raise NvtxmoeError(
                "a folder with neither reports nor Parquet files",
                where=self.source,
                remedy="Give the folder that `nsys export --type parquetdir` made, or name each report",
            )
        return layout

    def _read(
        self, name: str, columns: Sequence[str], only: tuple[str, Collection[int]] | None, row: bool
    ) -> pl.DataFrame:
        file = self._file(name)
        try:
            lazy = pl.scan_parquet(file, row_index_name="row" if row else None, glob=False)
            if only is not None:
                column, values = only
                lazy = lazy.filter(pl.col(column).cast(pl.Int64).is_in(list(values)))
            return lazy.select([*columns, "row"] if row else columns).collect()
        except PARQUET_ERRORS as error:
            raise self._damaged(error, file) from error

    def _batches(
        self, name: str, columns: Sequence[str], only: tuple[str, Collection[int]] | None
    ) -> Iterator[pl.DataFrame]:
        file = self._file(name)
        try:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(BATCH_ROWS, columns=list(columns)):
                    frame = pl.DataFrame(batch)
                    if only is not None:
                        column, values = only
                        frame = frame.filter(pl.col(column).cast(pl.Int64).is_in(list(values)))
                    yield frame
        except PARQUET_ERRORS as error:
            raise self._damaged(error, file) from error

    def _row_count(self, name: str) -> int:
        file = self._file(name)
        try:
            return int(pq.read_metadata(file).num_rows)
        except PARQUET_ERRORS as error:
            raise self._damaged(error, file) from error

    def read_blobs(self, domain_ids: Collection[int]) -> pl.DataFrame:
        """See :class:`Export`."""
        schema = {"row": pl.Int64, "blob": pl.Binary}
        if not self.has_blob_column():
            return pl.DataFrame(schema=schema)
        file = self._file(nsys_tables.NVTX.name)
        parts = [pl.DataFrame(schema=schema)]
        domains = np.array(list(domain_ids), dtype=np.int64)
        rows = size_bytes = 0
        try:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(BLOB_ROWS, columns=["domainId", nsys_tables.NVTX_BLOB]):
                    size_bytes += batch.nbytes
                    if size_bytes > ANY_BLOB_BYTES + BLOB_FACTOR * file.stat().st_size:
                        raise NvtxmoeError(
                            f"damaged: over {size_bytes:,} bytes of payloads in {file.stat().st_size:,} bytes",
                            where=file,
                            remedy="Export the report again, or copy it again",
                        )
                    domain = pl.Series(batch.column("domainId")).cast(pl.Int64).fill_null(NO_DOMAIN).to_numpy()
                    # Labelled UTF-8 but not: polars refuses the column, pyarrow casts it without looking.
                    blob = pl.Series("blob", batch.column(nsys_tables.NVTX_BLOB).cast(pa.large_binary()), pl.Binary)
                    at = np.flatnonzero(np.isin(domain, domains) & blob.is_not_null().to_numpy())
                    parts.append(pl.DataFrame({"row": at + rows, "blob": blob.gather(at)}, schema=schema))
                    rows += len(batch)
        except PARQUET_ERRORS as error:
            raise self._damaged(error, file) from error
        return pl.concat(parts, rechunk=True)

    def _damaged(self, error: BaseException, file: Path) -> NvtxmoeError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return NvtxmoeError(
            f"Parquet cannot be read: {reason}", where=file, remedy="Export the report again, or copy it again"
        )
