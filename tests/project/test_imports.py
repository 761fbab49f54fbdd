"""What a command imports: the libraries and packages that it uses, as each costs time at every start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: What reports, Dask, worker processes, other formats and terminals need.
OTHERS = {
    *("altair", "jinja2", "vl_convert", "distributed", "multiprocessing", "scipy", "statsmodels", "sqlite_utils"),
    # Importing pyarrow's kernels takes as long as importing numpy; pyarrow imports pandas where it meets an array.
    *("pandas", "pyarrow.compute", "pyarrow.parquet", "rich.progress"),
    *(f"nvtxmoe_analysis.{name}" for name in ("report", "compare", "perfetto", "trimming", "ingest.process_pool")),
}
#: What computes the numbers of the results, and writes them.
COMPUTING = {
    f"nvtxmoe_analysis.{name}"
    for name in ("ingest", "outputs.registry", "outputs.write", "run", "metrics", "analyze", "stats")
}

PROGRAM = """
import sys
from nvtxmoe import cli
code = cli.run(sys.argv[1:])
print("IMPORTED", *sys.modules)
sys.exit(code)
"""


def imported(*arguments: object) -> set[str]:
    """Names of the modules that a command which succeeds has imported."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("IMPORTED ")[2].split())


@pytest.mark.parametrize(
    "arguments", [("--help",), ("analyze", "--help"), ("inspect", "--help"), ("top", "--help"), ("--version",)]
)
def test_help_imports_no_analysis(arguments: tuple[str, ...]) -> None:
    names = imported(*arguments)
    assert "nvtxmoe.cli" in names
    assert not names & {"numpy", "polars", "pyarrow", "nvtxmoe_analysis", "rich", *OTHERS}


def test_inspect_imports_no_computing(golden_1gpu: Path) -> None:
    names = imported("inspect", golden_1gpu)
    assert "nvtxmoe_analysis.inspection.inspect" in names
    assert not names & (OTHERS | COMPUTING | {"nvtxmoe_analysis.attribution", "nvtxmoe_analysis.facts.capture_facts"})


def test_a_small_table_is_read_without_connectorx() -> None:
    """Opening a SQLite export loads neither connectorx nor pyarrow: only large tables need them."""
    program = "import sys, nvtxmoe_analysis.readers.sqlite; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "nvtxmoe_analysis.readers.sqlite" in names
    assert not {"connectorx", "pyarrow"} & set(names)


def test_analyze_imports_what_it_computes_with(golden_1gpu: Path, tmp_path: Path) -> None:
    names = imported("analyze", golden_1gpu, "-o", tmp_path)
    assert "nvtxmoe_analysis.metrics.layer_model.choose" in names
    charts = {f"nvtxmoe_analysis.{name}" for name in ("inspection", "report.build", "report.charts", "report.page")}
    findings = "nvtxmoe_analysis.report"  # in words, without a page
    assert not names & (OTHERS - {findings} | charts)


def test_the_report_imports_its_charts(golden_1gpu: Path, tmp_path: Path) -> None:
    """The names above are those of what is imported where it is used."""
    names = imported("analyze", golden_1gpu, "-o", tmp_path, "--report")
    assert {"altair", "jinja2", "vl_convert", "nvtxmoe_analysis.report"} <= names
