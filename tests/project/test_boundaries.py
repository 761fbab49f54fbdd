"""What may import what, and what no file of the repository may hold."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

ANALYSIS = ROOT / "analysis" / "nvtxmoe_analysis"
HEAVY = {"torch", "vllm", "polars", "pyarrow", "pandas"}


def modules(folder: Path, package: str) -> list[str]:
    """Names of all modules of a package."""
    parts = (file.relative_to(folder).with_suffix("").parts for file in sorted(folder.rglob("*.py")))
    return [".".join((package, *(part for part in names if part != "__init__"))) for names in parts]


def loaded_by(*names: str) -> set[str]:
    """Top-level modules in a fresh interpreter after importing these."""
    program = f"import sys, {', '.join(names)}; print('\\n'.join({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def tracked() -> list[Path]:
    """Files of the repository, those that are not yet committed among them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


# Imports -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "nvtxmoe",
        "nvtxmoe.formats.schema",
        "nvtxmoe.formats.word_payloads",
        "nvtxmoe.formats.journal",
        "nvtxmoe.errors",
        "nvtxmoe.cli",
    ],
)
def test_the_package_imports_nothing_heavy(name: str) -> None:
    loaded = loaded_by(name)
    assert "nvtxmoe" in loaded
    assert loaded & HEAVY == set()


def test_the_commands_import_nothing_heavy_before_they_run() -> None:
    names = modules(ROOT / "nvtxmoe" / "commands", "nvtxmoe.commands")
    assert "nvtxmoe.commands.analyze" in names
    assert loaded_by("nvtxmoe.cli", *names) & {*HEAVY, "nvtxmoe_analysis"} == set()


def test_the_analysis_imports_nothing_of_the_capture() -> None:
    names = modules(ANALYSIS, "nvtxmoe_analysis")
    assert {"nvtxmoe_analysis.analyze", "nvtxmoe_analysis.readers.sqlite"} <= set(names)
    loaded = loaded_by(*names)
    assert "polars" in loaded
    assert loaded & {"torch", "vllm", "nvtx", "cupy", "numba", "cuda"} == set()


def names_imported(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or ".")
    return found


@pytest.mark.parametrize("file", sorted(ANALYSIS.rglob("*.py")), ids=lambda file: str(file.relative_to(ANALYSIS)))
def test_the_analysis_module_by_module(file: Path) -> None:
    tree = ast.parse(file.read_text())
    imported = names_imported(tree)
    assert {name.partition(".")[0] for name in imported} & {"torch", "vllm", "nvtx", "click", "rich"} == set()
    assert {name for name in imported if name.startswith("nvtxmoe.")} <= {
        "nvtxmoe.errors", "nvtxmoe._version", "nvtxmoe.formats", "nvtxmoe.special_files",
        "nvtxmoe.formats.checksum", "nvtxmoe.formats.journal", "nvtxmoe.formats.schema",
        "nvtxmoe.formats.word_payloads",
    }  # fmt: skip
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert names & {"print", "input", "breakpoint"} == set()
    assert attributes & {"sys.stdout", "sys.stderr", "sys.exit", "os._exit"} == set()


def test_the_import_contracts_are_kept() -> None:
    """import-linter's contracts of pyproject.toml, as scripts/lint.sh runs them."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'analysis'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^Contracts: [1-9]\d* kept, 0 broken\.$", done.stdout, re.MULTILINE), done.stdout


def test_importing_the_analysis_prints_nothing() -> None:
    names = ", ".join(modules(ANALYSIS, "nvtxmoe_analysis"))
    done = subprocess.run([sys.executable, "-W", "default", "-c", f"import {names}"], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


# Files ---------------------------------------------------------------------------------------------------------------

# Spelled so that this file does not hold them itself.
FOREIGN = {
    "the folder of the workplace": rb"\.\./" + rb"shared",
    "a path of the workplace": rb"(?<![\w.])/(work|root)" + rb"/",
    "a registry's host": rb"(?i)\b(pypi|files\.python" + rb"hosted|npmjs|anaconda|jfrog|artifact" + rb"ory)\.\w",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_no_file_holds(what: str) -> None:
    pattern = re.compile(FOREIGN[what])
    files = tracked()
    assert ROOT / "pyproject.toml" in files
    assert [str(file.relative_to(ROOT)) for file in files if pattern.search(file.read_bytes())] == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("the folder of the workplace", "see ../" + "shared/docs"),
        ("a path of the workplace", "open('/work" + "/main/x')"),
        ("a path of the workplace", "cd /root" + "/x"),
        ("a registry's host", "https://pypi" + ".org/simple"),
        ("a registry's host", "files.python" + "hosted.org"),
    ],
)
def test_what_is_looked_for_would_be_found(what: str, text: str) -> None:
    assert re.search(FOREIGN[what], text.encode())


def test_no_module_is_long() -> None:
    lengths = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in tracked() if f.suffix == ".py"}
    assert lengths["nvtxmoe/cli.py"] > 50
    assert {name for name, lines in lengths.items() if lines >= 400} == set()
