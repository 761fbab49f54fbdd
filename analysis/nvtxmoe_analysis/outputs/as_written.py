"""Results that were just computed, as their files give them: nothing is read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.arrays import Floats, Ints
from nvtxmoe_analysis.outputs.read import Results, check_whole
from nvtxmoe_analysis.outputs.registry import declarations, documents, tables
from nvtxmoe_analysis.outputs.spec import Table
from nvtxmoe_analysis.outputs.write import DIGITS

#: Powers of ten from here on are no exact doubles.
EXACT_POWERS = 23
#: A number scaled to DIGITS digits before the point is off by less: nearer to a half, the text decides.
UNSURE = 1e-5


class AsWritten(Results):
    """Results whose tables and documents are in memory: the values that ``read.load`` gives once they are written.

    Parameters:
        folder: where the files are or will be.
        frames: the tables by file stem, as ``write.write_set`` gets them.
        contents: the documents by file stem.
        formats: those of the tables; see ``write.write_set``.
    """

    def __init__(
        self,
        folder: Path,
        frames: Mapping[str, pl.DataFrame],
        contents: Mapping[str, Any],
        formats: Sequence[str],
    ) -> None:
        super().__init__(folder)
        self._frames, self._contents, self._formats = frames, contents, formats

    def _file(self, name: str) -> Path | None:
        declared = declarations()[name]
        if declared.stem not in (self._frames if isinstance(declared, Table) else self._contents):
            return None
        written = self._formats if isinstance(declared, Table) and not declared.parquet_only else declared.forms
        form = next(form for form in declared.forms if form in written)
        return self.folder / f"{declared.stem}.{form}"

    def is_read(self, name: str) -> bool:
        """Return whether the results have a table or document: it need not be read."""
        return self.has(name)

    def ends_in_line(self, name: str) -> bool:  # noqa: ARG002
        """True: a file that is written whole ends in a line."""
        return True

    def _read_frame(self, name: str) -> pl.DataFrame:
        declared, file = tables()[name], self._present(name)
        frame = self._frames[declared.stem].select(*declared.types)
        if file.suffix == ".csv":
            floats = [column for column, dtype in frame.schema.items() if dtype.is_float()]
            frame = frame.with_columns(_as_text_gives(frame[column]) for column in floats)
        frame = frame.cast(dict(declared.types))  # type: ignore[arg-type]  # polars wants a dict of its own types
        check_whole(file, declared, frame)
        return frame

    def _read_document(self, name: str) -> dict[str, Any]:
        self._present(name)
        document: dict[str, Any] = json.loads(json.dumps(self._contents[documents()[name].stem]))
        return document


def _as_text_gives(values: pl.Series) -> pl.Series:
    """Return the numbers that ``write.as_text`` leaves in a column's texts: null where not finite."""
    numbers = values.cast(pl.Float64).to_numpy()  # nulls are NaN
    finite = np.isfinite(numbers)
    rounded = pl.Series(values.name, round_digits(np.where(finite, numbers, 0.0)))
    return rounded if finite.all() else rounded.set(pl.Series(~finite), None)


def round_digits(values: Floats) -> Floats:
    """Return finite numbers with DIGITS significant digits, each the double that is nearest to ``f"{value:.9g}"``.

    A number becomes an integer of DIGITS digits, which divided or multiplied by a power of ten gives the nearest
    double: both are exact up to 10^22. Where rounding could have decided otherwise, the text itself is parsed.
    """
    size = np.abs(values)
    with np.errstate(divide="ignore"):
        decimal_places = DIGITS - 1 - np.floor(np.log10(size))
    usual = np.abs(decimal_places) < EXACT_POWERS
    power: Ints = np.where(usual, decimal_places, 0.0).astype(np.int64)
    up, down = _POWERS[np.maximum(power, 0)], _POWERS[np.maximum(-power, 0)]
    scaled = size * up / down
    digits = np.rint(scaled)
    out: Floats = np.copysign(digits * down / up, values)
    least = 10.0 ** (DIGITS - 1)
    sure = usual & (np.abs(np.abs(scaled - digits) - 0.5) > UNSURE) & (digits >= least) & (digits < 10 * least)
    unsure = np.flatnonzero(~sure & (size > 0))
    out[unsure] = [float(f"{value:.{DIGITS}g}") for value in values[unsure].tolist()]
    return out


_POWERS = 10.0 ** np.arange(EXACT_POWERS)
