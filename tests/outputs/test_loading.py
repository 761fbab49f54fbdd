"""`load`: frames with declared types whatever the format, and errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.outputs.read import Results, load
from nvtxmoe_analysis.outputs.registry import (
    declarations,
    document_builders,
    documents,
    parquet_only,
    table_builders,
    tables,
)
from nvtxmoe_analysis.outputs.spec import FOLDER
from tests.support.constructed_runs import simple
from tests.support.paths import ROOT
from tests.support.written_results import Written, written


@pytest.fixture(scope="module")
def real(golden_2gpu: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The 2-GPU capture, in both formats."""
    return written(tmp_path_factory.mktemp("loading"), golden_2gpu, formats=("csv", "parquet"))


def only(found: Written, folder: Path, form: str) -> Results:
    """The results with tables of one format, where a table has it."""
    inner = folder / FOLDER
    inner.mkdir()
    for file in found.folder.iterdir():
        if file.suffix in (f".{form}", ".json") or file.stem in parquet_only():
            (inner / file.name).symlink_to(file)
    return load(folder)


# What there is --------------------------------------------------------------------------------------------------------


def test_every_module_but_the_tools_declares_an_output() -> None:
    files = {file.stem for file in (ROOT / "analysis" / "nvtxmoe_analysis" / "outputs").glob("*.py")}
    tools = {
        "__init__",
        "as_written",
        "capture_validation",
        "csv_formulas",
        "read",
        "registry",
        "spec",
        "sqlite_file",
        "summary",
        "write",
    }
    assert set(tables()) == files - tools
    assert {stem.removeprefix("moe_") for stem in document_builders()} >= {"capture_validation", "summary"}


def test_every_output_has_a_name_a_place_and_a_meaning() -> None:
    assert [table.stem for table in tables().values()] == list(table_builders())
    assert [document.stem for document in documents().values()] == list(document_builders())
    for found in (tables(), documents()):
        orders = [one.order for one in found.values()]
        assert orders == sorted(set(orders))
        assert all(one.meaning for one in found.values())
    for name, table in tables().items():
        assert name == table.stem.removeprefix("moe_").removeprefix("expert_").removesuffix("_hist")
        assert len(table.types) == len(table.columns), name
        assert table.parquet_only == any(isinstance(dtype, pl.List) for dtype in table.types.values()), name


def test_declarations_load_without_the_pipeline() -> None:
    """`load` and the report read declarations, and never pay for what builds the outputs."""
    program = "import sys; from nvtxmoe_analysis.outputs.registry import declarations; assert declarations(); "
    program += "print('\\n'.join(m.split('.')[1] for m in sys.modules if m.startswith('nvtxmoe_analysis.')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"core", "outputs"}


def test_results_list_their_frames(real: Written) -> None:
    assert set(declarations()) <= set(dir(load(real.folder)))


@pytest.mark.parametrize("name", tables())
def test_declared_columns_are_those_that_are_written(name: str, real: Written) -> None:
    declared = tables()[name]
    table = pl.read_parquet(real.folder / f"{declared.stem}.parquet")
    assert list(declared.types) == table.columns
    for column, dtype in table.schema.items():
        wanted = declared.types[column]
        assert wanted == (pl.Float64 if dtype.is_float() else dtype), column


@pytest.mark.parametrize("name", tables())
def test_csv_and_parquet_give_the_same_frame(name: str, real: Written, tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "parquet").mkdir()
    one, other = (getattr(only(real, tmp_path / form, form), name) for form in ("csv", "parquet"))
    assert dict(one.schema) == tables()[name].types
    assert len(one) > 0 or name in {"cross_layer_paths"}, name
    assert_frame_equal(one, other, rel_tol=1e-8, abs_tol=0.0)


def test_documents(real: Written) -> None:
    loaded = load(real.folder)
    assert loaded.summary == real.json("moe_summary")
    assert loaded.validation["verdict"] == "complete"
    assert loaded.layer_model_document == real.json("moe_layer_model")
    assert loaded.straggler_document == real.json("moe_straggler")


def test_dir_or_the_folder_in_it(real: Written) -> None:
    assert load(real.folder).folder == load(real.folder.parent).folder == real.folder
    assert load(str(real.folder.parent)).folder == real.folder
    assert repr(load(real.folder)).startswith(f"Results('{real.folder}': activations, coselection")


def test_a_frame_is_read_once(real: Written) -> None:
    loaded = load(real.folder)
    assert loaded.activations is loaded.activations


# Cells ----------------------------------------------------------------------------------------------------------------


def results(folder: Path, **files: str) -> Results:
    inner = folder / FOLDER
    inner.mkdir()
    for stem, text in files.items():
        (inner / f"{stem}.csv").write_text(text)
    return load(folder)


HEAD = "layer_idx,expert_id,activation_count,percentage\n"


def test_types_do_not_hang_on_the_first_rows(tmp_path: Path) -> None:
    """Whole numbers, empty cells and text where a glance at the file would guess otherwise."""
    loaded = results(tmp_path, moe_expert_activations=HEAD + "0,0,7,\n" * 300 + "0,1,9007199254740993,50\n")
    frame = loaded.activations
    assert dict(frame.schema) == tables()["activations"].types
    assert frame.row(300) == (0, 1, 9007199254740993, 50.0)
    assert frame["percentage"].null_count() == 300


def test_an_empty_table_keeps_its_types(tmp_path: Path) -> None:
    frame = results(tmp_path, moe_expert_activations=HEAD).activations
    assert (len(frame), dict(frame.schema)) == (0, tables()["activations"].types)


def test_columns_of_a_later_version_follow(tmp_path: Path) -> None:
    text = "new,layer_idx,word,expert_id,activation_count,flag,percentage,nothing,half\n"
    text += "7,0,a,0,5,true,50,,0.5\n,0,1,1,5,false,50,,\n"
    frame = results(tmp_path, moe_expert_activations=text).activations
    assert frame.columns == [*tables()["activations"].types, "new", "word", "flag", "nothing", "half"]
    assert frame.select("new", "word", "flag", "nothing", "half").rows() == [
        (7, "a", True, None, 0.5), (None, "1", False, None, None),
    ]  # fmt: skip


# Errors ---------------------------------------------------------------------------------------------------------------


def test_no_folder_and_no_results(tmp_path: Path) -> None:
    with pytest.raises(NvtxmoeError, match=r"no such folder\. Name the DIR of `nvtxmoe analyze"):
        load(tmp_path / "none")
    with pytest.raises(NvtxmoeError, match="no result file in it"):
        load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NvtxmoeError, match="file: no folder"):
        load(tmp_path / "file")


def test_an_absent_file_says_how_to_make_it(tmp_path: Path) -> None:
    loaded = results(tmp_path, moe_expert_activations=HEAD)
    assert (loaded.has("activations"), loaded.has("coselection"), loaded.has("summary")) == (True, False, False)
    with pytest.raises(NvtxmoeError, match=r"no moe_layer_timings\.csv\. It needs GPU time: `nvtxmoe analyze REPORT"):
        _ = loaded.layer_timings
    with pytest.raises(NvtxmoeError, match=r"no moe_straggler\.json\. It needs GPU time"):
        _ = loaded.straggler_document
    with pytest.raises(NvtxmoeError, match=r"no moe_step_activations\.parquet\. `nvtxmoe analyze INPUT -o DIR` or"):
        _ = loaded.step_activations
    with pytest.raises(NvtxmoeError, match=r"no moe_summary\.json\. `nvtxmoe analyze INPUT"):
        _ = loaded.summary


@pytest.mark.parametrize("name", declarations())
def test_every_attribute_reads_its_own_file(name: str, tmp_path: Path) -> None:
    stem = _stem(name)
    inner = tmp_path / FOLDER
    inner.mkdir()
    present = next(other for other in declarations() if _stem(other) != stem)
    suffix = declarations()[present].forms[-1]
    (inner / f"{_stem(present)}.{suffix}").write_text("")
    loaded = load(tmp_path)
    assert not loaded.has(name)
    with pytest.raises(NvtxmoeError, match=rf"no {stem}\."):
        getattr(loaded, name)


def _stem(name: str) -> str:
    return declarations()[name].stem


def test_a_name_that_is_none(tmp_path: Path) -> None:
    loaded = results(tmp_path, moe_expert_activations=HEAD)
    with pytest.raises(
        NvtxmoeError, match=r"no frame or document 'activation'\. Ask for one of activations, coselection"
    ):
        loaded.has("activation")
    with pytest.raises(AttributeError):
        _ = loaded.activation


def test_a_column_that_is_missing(tmp_path: Path) -> None:
    loaded = results(tmp_path, moe_expert_activations="layer_idx,expert_id,percentage\n0,0,1\n")
    with pytest.raises(NvtxmoeError, match=r"csv: no column activation_count: another version of nvtxmoe wrote it"):
        _ = loaded.activations


def test_a_missing_column_in_parquet(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    pl.DataFrame({"layer_idx": [0]}).write_parquet(tmp_path / FOLDER / "moe_capacity.parquet")
    with pytest.raises(NvtxmoeError, match=r"parquet: no column capacity_factor, cells"):
        _ = load(tmp_path).capacity


@pytest.mark.parametrize(
    "text",
    [HEAD + "0,0,many,1\n", "", HEAD + "0,0,1,1,9,9\n", HEAD + '0,0,"1\n'],
    ids=["word", "empty", "long", "quote"],
)
def test_damage_is_one_line(text: str, tmp_path: Path) -> None:
    loaded = results(tmp_path, moe_expert_activations=text)
    with pytest.raises(NvtxmoeError, match=r"moe_expert_activations\.csv: ") as caught:
        _ = loaded.activations
    assert "\n" not in str(caught.value)


def test_damaged_parquet_and_json(tmp_path: Path) -> None:
    inner = tmp_path / FOLDER
    inner.mkdir()
    (inner / "moe_capacity.parquet").write_bytes(b"PAR1 no")
    (inner / "moe_summary.json").write_text("{")
    (inner / "moe_capture_validation.json").write_text("[]")
    loaded = load(tmp_path)
    for name, said in (("capacity", "cannot be read"), ("summary", "cannot be read"), ("validation", "no object")):
        with pytest.raises(NvtxmoeError, match=said):
            getattr(loaded, name)


def test_of_a_run_without_gpu_work(tmp_path: Path) -> None:
    """A capture in which nothing ran still has every table, empty or with zeros."""
    export = simple()
    for table in ("KERNEL", "RUNTIME"):
        export.rows[f"CUPTI_ACTIVITY_KIND_{table}"] = []
    loaded = load(written(tmp_path, export).folder)
    assert loaded.layer_timings["kernel_time_ns"].sum() == 0
    for name, declared in tables().items():
        assert dict(loaded.frame(name).schema) == declared.types, name
