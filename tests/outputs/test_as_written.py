"""Results in memory are what `load` gives once they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.analyze import analyze
from nvtxmoe_analysis.outputs.as_written import AsWritten, round_digits
from nvtxmoe_analysis.outputs.read import load
from nvtxmoe_analysis.outputs.registry import declarations, documents, tables
from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.outputs.write import write_set


@pytest.mark.golden
@pytest.mark.parametrize("formats", [("csv",), ("parquet",), ("csv", "parquet")])
def test_frames_and_documents_of_a_capture_are_those_of_its_files(
    golden_2gpu: Path, tmp_path: Path, formats: tuple[str, ...]
) -> None:
    done = analyze([golden_2gpu], tmp_path, formats=formats)
    in_memory, read = done.advised.source.loaded, load(tmp_path)
    assert isinstance(in_memory, AsWritten)
    assert [in_memory.path(name) for name in declarations()] == [read.path(name) for name in declarations()]
    for name in tables():
        assert_frame_equal(in_memory.frame(name), read.frame(name), check_exact=True)
    for name in documents():
        assert in_memory.document(name) == read.document(name)


def both(folder: Path, name: str, **columns: list[object]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A table with these columns, in memory and read from its CSV file."""
    declared = tables()[name]
    rows = len(next(iter(columns.values())))
    whole = {column: ["text" if dtype == pl.String else 1] * rows for column, dtype in declared.types.items()}
    table = pl.DataFrame({**whole, **columns}, schema=dict(declared.types))
    inner = folder / FOLDER
    write_set(inner, {declared.stem: table}, {})
    return AsWritten(inner, {declared.stem: table}, {}, ("csv",)).frame(name), load(folder).frame(name)


def test_texts_that_csv_quotes_or_marks_stay_as_they_are(tmp_path: Path) -> None:
    texts: list[object] = ["", "'", "=1+1", "'=1", "a,b", 'say "x"', "two\nlines", "cr\rhere", "\tx", " x ", "é"]
    in_memory, read = both(tmp_path, "kernel_timings", kernel_name=texts)
    assert in_memory["kernel_name"].to_list() == read["kernel_name"].to_list() == texts


def test_numbers_are_those_of_the_text(tmp_path: Path) -> None:
    numbers: list[object] = [1 / 3, 123456789.5, 1e-300, 1.7e308, float("nan"), float("inf"), None, 0.0, -2.5e22]
    in_memory, read = both(tmp_path, "activations", percentage=numbers)
    assert_frame_equal(in_memory, read, check_exact=True)
    assert read["percentage"].null_count() == 3


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_digits_are_rounded_as_in_the_text(values: list[float]) -> None:
    assert round_digits(np.array(values)).tolist() == [float(f"{value:.9g}") for value in values]


def test_halves_are_rounded_as_in_the_text() -> None:
    halves = np.concatenate([(np.arange(10**9 - 500, 10**9 + 500) + 0.5) * 2.0**power for power in range(-70, 70)])
    assert round_digits(halves).tolist() == [float(f"{value:.9g}") for value in halves.tolist()]


def test_a_table_that_lost_values_is_refused_in_memory_too(tmp_path: Path) -> None:
    with pytest.raises(NvtxmoeError, match=r"cells of column expert_id are empty"):
        both(tmp_path, "activations", expert_id=[None])
