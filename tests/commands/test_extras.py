"""Without an extra, a command says in one line what to install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvtxmoe.extras import EXTRAS
from tests.support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Runs FILE with the arguments after it, as if MODULES (separated by commas) were not installed.
HIDING = """
import runpy, sys
from importlib.machinery import ModuleSpec

hidden = set(sys.argv[1].split(","))

class Hide:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name in hidden else None

    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Hide())
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
COMMAND = ROOT / "nvtxmoe" / "__main__.py"


def run_without(extra: str, file: Path, *arguments: object) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", HIDING, ",".join(EXTRAS[extra]), file, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "analysis")))},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def line(program: str, module: str, extra: str) -> str:
    return (
        f"{program}: {module} is not installed: nvtxmoe is here without its extra [{extra}]. "
        f"In a clone of nvtxmoe, run {sys.executable} -m pip install -e '.[{extra}]'\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("analyze", "x", "-o", "out"),
        ("analyze", "x", "-o", "out", "--only", "decode"),
        ("merge", "x"),
        ("inspect", "x"),
        ("trim", "x", "out.sqlite"),
        ("export", "x", "--perfetto", "out"),
        ("report", "x"),
        ("compare", "x", "y"),
    ],
)
def test_a_command_without_the_analysis(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    words = [str(tmp_path / word) if word in {"x", "y", "out", "out.sqlite"} else word for word in arguments]
    code, out, err = run_without("analysis", COMMAND, *words)
    assert (code, out) == (2, "")
    assert err in {line("nvtxmoe", module, "analysis") for module in EXTRAS["analysis"]}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("recipes-path",), ("analyze", "--help")])
def test_what_needs_no_extra(arguments: tuple[str, ...]) -> None:
    code, out, err = run_without("analysis", COMMAND, *arguments)
    assert (code, err) == (0, "")
    assert out


def test_a_load_without_a_client() -> None:
    script = ROOT / "scripts" / "send_test_requests.py"
    code, out, err = run_without("load", script, "--base-url", "http://127.0.0.1:9")
    assert (code, out) == (2, "")
    assert line("send_test_requests.py", "aiohttp", "load") in err


@pytest.mark.parametrize("more", [(), ("--once",), ("--once", "--json")])
def test_top_without_the_parser(more: tuple[str, ...]) -> None:
    code, out, err = run_without("metrics", COMMAND, "top", "http://127.0.0.1:9", *more)
    assert (code, out, err) == (2, "", line("nvtxmoe", "prometheus_client", "metrics"))


def test_a_server_without_the_protocol(tmp_path: Path) -> None:
    assert run_without("mcp", COMMAND, "mcp", tmp_path) == (2, "", line("nvtxmoe", "mcp", "mcp"))


def test_each_module_belongs_to_a_distribution_of_its_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {"sqlite_utils": "sqlite-utils", "vl_convert": "vl-convert-python"}
    for extra, modules in EXTRAS.items():
        entries = [entry for entry in project["optional-dependencies"][extra] if not entry.startswith("nvtxmoe[")]
        declared = {entry.partition(">=")[0] for entry in entries}
        assert declared == {names.get(module, module) for module in modules}
    base = {entry.partition(">=")[0] for entry in project["dependencies"]}
    assert base == {"click", "numpy", "nvtx", "rich", "tomli"}
