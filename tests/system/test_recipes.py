"""The nsys recipes under a real nsys, on reports captured here and on captures of GPUs: the files of ``analyze``."""

from __future__ import annotations

import ast
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.cli import run
from nvtxmoe.commands.recipes_path import find_recipes
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.notebook.chart import NotebookChart
from nvtxmoe_analysis.outputs.registry import declarations
from nvtxmoe_analysis.outputs.spec import FOLDER, VALIDATION, Document, Table
from tests.programs import emit_words
from tests.project.test_boundaries import loaded_by
from tests.support.recipe_runs import RECIPES, Ran, capture, nsys_recipe, packages, with_kept_export

NAMES = ("moe_expert_sum", "moe_layer_corr", "moe_straggler")
MODES = ("none", "concurrent", pytest.param("dask-futures", marks=pytest.mark.dask))
NOTEBOOK = "analysis.ipynb"
FILTERS = (["--steps", "2:20", "--only", "decode", "--layers", "0,2-3"], ["--skip-first", "5", "--ranks", "1"])
#: A report, and the folder of its results with each of FILTERS.
Filtered = tuple[Path, list[Path]]


def files_of(name: str, kind: type[Table | Document]) -> list[Table | Document]:
    """The outputs that name a recipe."""
    return [one for one in declarations().values() if isinstance(one, kind) and one.recipe == name]


def names_of_files(name: str, *forms: str) -> set[str]:
    """What a recipe has to leave beside the notebook and nsys's own file."""
    tables = {f"{one.stem}.{form}" for one in files_of(name, Table) for form in forms if form in one.forms}
    return tables | {f"{one.stem}.json" for one in files_of(name, Document)} | {f"{VALIDATION}.json"}


def analyzed(inputs: list[Path], output: Path, nsys: Path, *more: str) -> Path:
    """The folder with what ``nvtxmoe analyze`` gives."""
    formats = ["--format", "csv", "--format", "parquet"]
    assert run(["analyze", *map(str, inputs), "-o", str(output), "--nsys", str(nsys), *formats, *more]) == 0
    return output / FOLDER


def without_options(file: Path) -> dict[str, Any]:
    """A validation document but for what was asked for."""
    document: dict[str, Any] = json.loads(file.read_text())
    del document["options"]
    return document


def assert_the_same(ran: Ran, name: str, analysis: Path, *forms: str) -> None:
    """The recipe's files are those of analyze, byte by byte, and no others."""
    assert ran.status == 0, ran.said
    own = {NOTEBOOK, f"{ran.folder.name}.nsys-analysis"}
    assert ran.files == names_of_files(name, *forms) | own
    for file in ran.files - own - {f"{VALIDATION}.json"}:
        assert (ran.folder / file).read_bytes() == (analysis / file).read_bytes(), file
    validation = f"{VALIDATION}.json"
    assert without_options(ran.folder / validation) == without_options(analysis / validation)


def run_notebook(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run the cells of a recipe's notebook in its folder, as Jupyter would; their last values."""
    monkeypatch.chdir(folder)
    space: dict[str, Any] = {}
    shown = []
    for cell in json.loads((folder / NOTEBOOK).read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop()
        assert isinstance(last, ast.Expr)
        exec(compile(tree, NOTEBOOK, "exec"), space)
        value = eval(compile(ast.Expression(last.value), NOTEBOOK, "eval"), space)
        shown.append(value)
    return shown


def is_drawn(value: object) -> bool:
    """Whether a cell's value is a chart of the report that can be drawn, or a chart of altair's."""
    return (isinstance(value, NotebookChart) and not value.reason) or hasattr(value, "mark_bar")


@pytest.fixture(scope="module")
def reports(nsys_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report of each of two ranks, captured by the real nsys."""
    folder = tmp_path_factory.mktemp("recipes") / "reports"
    folder.mkdir()
    for rank in range(emit_words.RANKS):
        capture(nsys_path, rank, folder / f"rank{rank}.nsys-rep")
    return folder


@pytest.fixture(scope="module")
def analysis(reports: Path, nsys_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What analyze gives of the same reports."""
    return analyzed(sorted(reports.glob("*.nsys-rep")), tmp_path_factory.mktemp("analyzed"), nsys_path)


@pytest.fixture(scope="module", params=["2gpu", "1gpu"])
def of_gpus(
    request: pytest.FixtureRequest, golden_2gpu: Path, golden_1gpu: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A report in whose place a real capture's export is kept."""
    report = tmp_path_factory.mktemp("gpus") / "report.nsys-rep"
    with_kept_export({"2gpu": golden_2gpu, "1gpu": golden_1gpu}[request.param], report)
    return report


@pytest.fixture(scope="module")
def analysis_of_gpus(of_gpus: Path, nsys_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What analyze gives of it."""
    return analyzed([of_gpus], tmp_path_factory.mktemp("analyzed"), nsys_path)


@pytest.fixture(scope="module")
def filtered(golden_2gpu: Path, nsys_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Filtered:
    """A report, and what analyze gives of it with each set of filters."""
    folder = tmp_path_factory.mktemp("filtered")
    report = folder / "report.nsys-rep"
    with_kept_export(golden_2gpu, report)
    there = [analyzed([report], folder / str(number), nsys_path, *one) for number, one in enumerate(FILTERS)]
    return report, there


# The same numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_a_report_of_the_real_nsys(
    name: str, mode: str, reports: Path, analysis: Path, nsys_path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    ran = nsys_recipe(nsys_path, name, "--input", f"{reports}/", "--mode", mode, "--csv", output=output)
    assert_the_same(ran, name, analysis, "parquet", "csv")
    assert "WARNING: The capture is incomplete: rank0.nsys-rep: no CUDA activity" in ran.said  # there is no GPU here
    said = json.loads((output / "out.nsys-analysis").read_text())
    assert (said["RecipeName"], said["Mode"]) == (name, mode)
    assert said["InputFiles"] == [str(reports / f"rank{rank}.nsys-rep") for rank in range(emit_words.RANKS)]
    assert said["Outputs"] == {NOTEBOOK: "Notebook"}


def test_the_numbers_are_those_emitted(analysis: Path) -> None:
    """Of what the recipes are compared with."""
    counts: dict[str, list[int]] = {}
    with (analysis / "moe_expert_activations.csv").open() as file:
        for row in csv.DictReader(file):
            counts.setdefault(row["layer_idx"], []).append(int(row["activation_count"]))
    assert counts == emit_words.expected()["activations"]


@pytest.mark.parametrize("name", NAMES)
def test_captures_of_gpus(
    name: str,
    of_gpus: Path,
    analysis_of_gpus: Path,
    nsys_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = nsys_recipe(nsys_path, name, "--input", str(of_gpus), output=tmp_path / "out")
    assert_the_same(ran, name, analysis_of_gpus, "parquet")
    assert "WARNING" not in ran.said
    shown = run_notebook(ran.folder, monkeypatch)
    assert shown[0] == ("complete", [])
    assert any(map(is_drawn, shown))


@pytest.mark.parametrize("name", NAMES)
def test_the_filters_are_those_of_analyze(name: str, filtered: Filtered, nsys_path: Path, tmp_path: Path) -> None:
    report, analyses = filtered
    for number, (filters, there) in enumerate(zip(FILTERS, analyses, strict=True)):
        ran = nsys_recipe(
            nsys_path, name, "--input", str(report), "--mode", "none", *filters, output=tmp_path / f"out{number}"
        )
        assert_the_same(ran, name, there, "parquet")


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_without_gpu_time(
    name: str, reports: Path, nsys_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = nsys_recipe(nsys_path, name, "--input", str(reports), "--mode", "none", output=tmp_path / "out")
    assert ran.status == 0, ran.said
    (verdict, reasons), *_ = run_notebook(ran.folder, monkeypatch)
    assert (verdict, len(reasons)) == ("incomplete", 1)


# A cluster -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def scheduler(nsys_path: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a Dask scheduler with two workers, each a process, which know nsys's packages but no recipe."""
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    shared = ["--scheduler-file", str(file), "--no-dashboard"]
    environment = {**os.environ, "PYTHONPATH": str(packages(nsys_path))}
    with (tmp_path / "dask.log").open("wb") as log:
        commands = [
            [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *shared],
            [*dask, "worker", *shared, "--nworkers", "2", "--nthreads", "1"],
        ]
        running = [subprocess.Popen(c, stdout=log, stderr=log, env=environment, cwd=tmp_path) for c in commands]
    try:
        deadline = time.monotonic() + 600
        while (tmp_path / "dask.log").read_text().count("Registered to:") < 2:
            assert time.monotonic() < deadline, (tmp_path / "dask.log").read_text()
            time.sleep(0.1)
        yield str(json.loads(file.read_text())["address"])
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait()


@pytest.mark.dask
def test_workers_of_a_cluster(scheduler: str, reports: Path, analysis: Path, nsys_path: Path, tmp_path: Path) -> None:
    ran = nsys_recipe(
        nsys_path, "moe_expert_sum", "--input", str(reports), "--mode", "dask-futures",
        output=tmp_path / "out", DASK_SCHEDULER_ADDRESS=scheduler,
    )  # fmt: skip
    assert_the_same(ran, "moe_expert_sum", analysis, "parquet")
    assert (tmp_path / "dask.log").read_text().count("Receive client connection") == 1


# What is said when it does not work ----------------------------------------------------------------------------------

BLOCK = """
import sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize("missing", ["nvtxmoe", "nvtxmoe_analysis", "polars"])
def test_a_python_without_nvtxmoe(missing: str, reports: Path, nsys_path: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(blocked=[missing]))
    ran = nsys_recipe(
        nsys_path, "moe_expert_sum", "--input", str(reports), output=tmp_path / "out", PYTHONPATH=str(tmp_path)
    )
    assert ran.status == 1
    assert f"No module named '{missing}'. nsys runs recipes with the python3 of the PATH, {sys.prefix}" in ran.said
    assert "activate the environment in which nvtxmoe is installed (source .venv/bin/activate)" in ran.said
    assert "Traceback" not in ran.said
    assert ran.files == set()


@pytest.mark.parametrize("mode", MODES)
def test_reports_that_do_not_belong_together(mode: str, reports: Path, nsys_path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.nsys-rep"
    again.write_bytes((reports / "rank0.nsys-rep").read_bytes())
    ran = nsys_recipe(
        nsys_path, "moe_straggler", "--input", str(reports), str(again), "--mode", mode, output=tmp_path / "out"
    )
    assert ran.status == 1
    assert "ERROR: two processes say they are rank 0" in ran.said
    assert "Traceback" not in ran.said
    assert ran.files == set()


@pytest.mark.parametrize("mode", MODES)
def test_a_report_that_is_none(mode: str, nsys_path: Path, tmp_path: Path) -> None:
    report = tmp_path / "broken.nsys-rep"
    report.write_bytes(b"no report")
    ran = nsys_recipe(nsys_path, "moe_layer_corr", "--input", str(report), "--mode", mode, output=tmp_path / "out")
    assert ran.status == 1
    assert f"ERROR: {report}: not a report that the nsys here (2023.4.4" in ran.said
    assert ran.files == set()


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        (["--steps", "5:2"], "argument --steps: '5:2' ends before it begins"),
        (["--layers", "a"], "argument --layers: 'a' is no number or range"),
        (["--skip-first", "-1"], "argument --skip-first: "),
    ],
)
def test_a_filter_that_is_none(filters: list[str], said: str, reports: Path, nsys_path: Path, tmp_path: Path) -> None:
    ran = nsys_recipe(nsys_path, "moe_expert_sum", "--input", str(reports), *filters, output=tmp_path / "out")
    assert ran.status == 1
    assert said in ran.said
    assert ran.files == set()


# Other versions of nsys ----------------------------------------------------------------------------------------------

# The recipes of later versions do not add --output and --force-overwrite: nsys does, in the parser it starts them with,
# or where it adds --mode. Whichever it is, each option may be there once only.
BASE = """
from nsys_recipe.lib import recipe
own = recipe.Recipe.get_argument_parser.__func__
def get_argument_parser(cls):
    parser = own(cls)
    parser.add_recipe_argument(Option.OUTPUT)
    parser.add_recipe_argument(Option.FORCE_OVERWRITE)
    return parser
recipe.Recipe.get_argument_parser = classmethod(get_argument_parser)
"""
CONTEXT = """
own = args.ArgumentParser.add_context_arguments
def add_context_arguments(self):
    own(self)
    self.add_recipe_argument(Option.OUTPUT)
    self.add_recipe_argument(Option.FORCE_OVERWRITE)
args.ArgumentParser.add_context_arguments = add_context_arguments
"""
PARSE = """
from moe_expert_sum.moe_expert_sum import MoeExpertSum
from nsys_recipe.__main__ import get_recipe_parsed_args
parsed = get_recipe_parsed_args(MoeExpertSum, sys.argv[1:])
print(parsed.output, parsed.force_overwrite, parsed.csv, parsed.mode.name, parsed.steps)
"""


@pytest.mark.parametrize("change", ["", BASE, CONTEXT], ids=["as it is", "in the base", "with the mode"])
def test_options_that_nsys_adds_itself(change: str, reports: Path, nsys_path: Path, tmp_path: Path) -> None:
    start = (
        "import sys\nimport nsys_recipe\nfrom nsys_recipe.lib import args\nfrom nsys_recipe.lib.args import Option\n"
    )
    options = [
        "--input",
        str(reports),
        "--output",
        "x",
        "--force-overwrite",
        "--csv",
        "--mode",
        "none",
        "--steps",
        "3:",
    ]
    path = os.pathsep.join((str(packages(nsys_path)), str(RECIPES)))
    done = subprocess.run(
        [sys.executable, "-c", start + change + PARSE, *options],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[0] == "x True True NONE (3, None)"


# What ships ----------------------------------------------------------------------------------------------------------


def test_what_nsys_forks_has_no_threads_of_polars() -> None:
    assert "polars" not in loaded_by("nvtxmoe.commands._selection", "nvtxmoe_analysis.recipes")


def test_every_recipe_has_outputs_and_outputs_name_recipes_that_are_there() -> None:
    assert {path.parent.name for path in RECIPES.glob("*/metadata.json")} == set(NAMES)
    assert all(files_of(name, Table) and files_of(name, Document) for name in NAMES)
    assert {one.recipe for one in declarations().values()} <= {*NAMES, ""}


def test_the_page_names_what_each_recipe_writes() -> None:
    text = (RECIPES.parent / "docs" / "how-to" / "recipes.md").read_text()
    for name in NAMES:
        tables = ", ".join(f"`{one.stem}`" for one in files_of(name, Table))
        documents = ", ".join(f"`{one.stem}.json`" for one in files_of(name, Document))
        assert f"| `{name}` | {tables} | {documents} |" in text


def test_the_path_of_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes-path"]) == 0
    assert capsys.readouterr().out == f"{RECIPES}\n"


def test_where_an_installation_has_them(tmp_path: Path) -> None:
    package = tmp_path / "nvtxmoe"
    package.mkdir()
    with pytest.raises(NvtxmoeError, match="the recipes are missing"):
        find_recipes(package)
    (package / "recipes").mkdir()
    (package / "recipes" / "nvtxmoe_recipe.py").touch()
    assert find_recipes(package) == package / "recipes"


def test_the_package_ships_them_there() -> None:
    text = (RECIPES.parent / "pyproject.toml").read_text()
    assert '[tool.hatch.build.targets.wheel.force-include]\n"recipes" = "nvtxmoe/recipes"\n' in text
