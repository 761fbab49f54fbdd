"""A column of a result file lost its values, all or every second one: its readers refuse the file, say what is not
known, or have no use for it. None of them fails."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from altair.utils.schemapi import debug_mode

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.compare.compare import compare
from nvtxmoe_analysis.compare.runs import KEY, TIMES
from nvtxmoe_analysis.outputs.read import Results, check_whole, load
from nvtxmoe_analysis.outputs.registry import tables
from nvtxmoe_analysis.placement.run_data import COLUMNS, read_run
from nvtxmoe_analysis.report.advice import advise
from nvtxmoe_analysis.report.charts import chart_modules
from nvtxmoe_analysis.report.results import Source
from tests.support.cli import RESULTS, TWO_GPUS, analyze, refused, run

#: Columns of moe_layer_correlation that comparisons and placements read.
READ = {*COLUMNS, *KEY, *TIMES, "step_kind"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the demo, which has GPU time and two ranks."""
    folder = tmp_path_factory.mktemp("results")
    analyze(TWO_GPUS, folder)
    return folder


@pytest.fixture(scope="module")
def frames(results: Path) -> dict[str, pl.DataFrame]:
    loaded = load(results)
    return {name: loaded.frame(name) for name in tables()}


def lost(frame: pl.DataFrame, column: str, *, half: bool = False) -> pl.DataFrame:
    nothing = pl.lit(None, frame.schema[column])
    kept = pl.int_range(pl.len()) % 2 == 0
    return frame.with_columns((pl.when(kept).then(column).otherwise(nothing) if half else nothing).alias(column))


def refused_by_load(name: str, frame: pl.DataFrame) -> bool:
    try:
        check_whole(Path("file"), tables()[name], frame)
    except NvtxmoeError as error:
        assert error.what.startswith("it is damaged: ")
        return True
    return False


def readable(frames: dict[str, pl.DataFrame], *, half: bool, at_once: int = 1) -> Iterator[dict[str, pl.DataFrame]]:
    """Tables that have lost some of their columns, each column once, of those that ``load`` does not refuse."""
    left: defaultdict[int, dict[str, pl.DataFrame]] = defaultdict(dict)
    for name, frame in frames.items():
        columns = [
            column
            for column in frame.columns
            if len(frame) and not refused_by_load(name, lost(frame, column, half=half))
        ]
        for place, column in enumerate(columns):
            changed = left[place // at_once]
            changed[name] = lost(changed.get(name, frame), column, half=half)
    yield from left.values()


class Changed(Results):
    """Results some of whose tables are others, and which of them were read."""

    def __init__(self, folder: Path, given: dict[str, pl.DataFrame]) -> None:
        super().__init__(folder)
        self.given, self.asked = given, set[str]()

    def frame(self, name: str) -> pl.DataFrame:
        self.asked.add(name)
        return self.given[name]


def test_columns_that_never_are_empty_are_columns(frames: dict[str, pl.DataFrame]) -> None:
    for name, table in tables().items():
        assert {*table.whole, *table.reasoned, *table.key} <= set(table.types), name
        assert not table.reasoned or "reason" in table.types
        check_whole(Path("file"), table, frames[name])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_every_table_that_lost_a_column_is_refused_with_its_name(tmp_path: Path, form: str) -> None:
    analyze(TWO_GPUS, tmp_path, "--format", form)
    for name, table in tables().items():
        loaded = load(tmp_path)
        path = loaded.path(name)
        assert path is not None
        frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
        changed = frame.with_columns(pl.lit(None, frame.schema[column]).alias(column) for column in table.whole)
        getattr(changed, "write_parquet" if path.suffix == ".parquet" else "write_csv")(path)
        if len(frame):
            with pytest.raises(NvtxmoeError, match=f"cells of column {', '.join(table.whole)} are empty"):
                load(tmp_path).frame(name)
    page = run("report", tmp_path)
    assert (page.code, page.err) == (0, "")
    text = (tmp_path / "report.html").read_text()
    for name in ("activations", "layer_correlation", "coselection", "collectives"):
        assert f"{tables()[name].stem}.{form}: it is damaged: cells of column" in text


@pytest.mark.parametrize("half", [False, True])
def test_findings(results: Path, frames: dict[str, pl.DataFrame], half: bool) -> None:
    for changed in readable(frames, half=half):
        advise(Source(Changed(results, {**frames, **changed})))


def test_charts(results: Path, frames: dict[str, pl.DataFrame]) -> None:
    read: dict[str, set[str]] = {}
    for name, module in chart_modules().items():
        whole = Changed(results, frames)
        module.build(Source(whole))
        read[name] = whole.asked
    with debug_mode(False):
        for changed in readable(frames, half=False, at_once=4):
            for name, module in chart_modules().items():
                if read[name] & changed.keys():
                    module.build(Source(Changed(results, {**frames, **changed})))


def test_comparisons_and_placements(tmp_path: Path, results: Path, frames: dict[str, pl.DataFrame]) -> None:
    """The other table that they read, moe_step_activations, has no column that may be empty."""
    assert set(tables()["step_activations"].whole) == set(tables()["step_activations"].types)
    shutil.copytree(results, tmp_path / "run")
    file = tmp_path / "run" / RESULTS / "moe_layer_correlation.csv"
    for column in sorted(READ - set(tables()["layer_correlation"].whole)):
        lost(frames["layer_correlation"], column).write_csv(file)
        with suppress(NvtxmoeError):
            compare(results, tmp_path / "run")
        with suppress(NvtxmoeError):
            read_run(load(tmp_path / "run"))


def test_own_time_that_is_unknown_is_not_compared(tmp_path: Path, results: Path) -> None:
    analyze(TWO_GPUS, tmp_path)
    file = tmp_path / RESULTS / "moe_layer_correlation.csv"
    lost(pl.read_csv(file, infer_schema=False), "own_ns").write_csv(file)
    assert "own_time" not in compare(results, tmp_path).metrics["metric"].to_list()


def test_the_command_names_file_and_column(tmp_path: Path, results: Path) -> None:
    analyze(TWO_GPUS, tmp_path)
    file = tmp_path / RESULTS / "moe_layer_correlation.csv"
    lost(pl.read_csv(file, infer_schema=False), "launched_by").write_csv(file)
    words = "it is damaged: cells of column launched_by are empty"
    refused(run("compare", results, tmp_path), file, words)
    third = tmp_path / "third"
    shutil.copytree(results, third)
    refused(run("compare", tmp_path, results, third, "-o", tmp_path / "out"), file, words)
    refused(run("place", tmp_path), file, words)


def test_runs_without_a_kind_of_step_in_common(tmp_path: Path) -> None:
    for only in ("decode", "prefill"):
        analyze(TWO_GPUS, tmp_path / only, "--only", only)
    words = "no kind of step is in both runs: A has decode steps, B has prefill steps"
    refused(run("compare", tmp_path / "decode", tmp_path / "prefill"), words)
