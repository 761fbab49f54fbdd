"""What docstrings list under Parameters and Attributes exists: a name that was changed is changed there too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FILES = sorted(file for root in ("nvtxmoe", "analysis", "scripts") for file in (ROOT / root).rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def listed(docstring: str, section: str) -> Iterator[str]:
    """The names of a section: ``name:``, or several with commas."""
    found = re.search(rf"^{section}:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    for entry in re.findall(r"^    (\S[^:\n]*):", found[1] if found else "", re.MULTILINE):
        yield from (name for part in re.split(r", | and ", entry) if (name := part.strip("*` ")).isidentifier())


def parameters(node: Function | ast.ClassDef) -> set[str]:
    """Parameters of a function, or of what makes an instance: ``__init__``, or the fields."""
    if isinstance(node, ast.ClassDef):
        made_by = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        return parameters(made_by[0]) if made_by else attributes(node)
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {argument.arg for argument in named if argument is not None}


def attributes(node: Function | ast.ClassDef) -> set[str]:
    """Fields, properties and what methods set."""
    own = [item.name for item in node.body if isinstance(item, Function)]
    fields = [
        item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]
    assigned = [target for item in node.body if isinstance(item, ast.Assign) for target in item.targets]
    return {*own, *fields, *(target.id for target in assigned if isinstance(target, ast.Name))} | {
        item.attr for item in ast.walk(node) if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store)
    }


def faults(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            docstring = ast.get_docstring(node) or ""
            for section, names in (("Parameters", parameters(node)), ("Attributes", attributes(node))):
                yield from (f"{node.name}: {name}" for name in listed(docstring, section) if name not in names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_names_in_docstrings_exist(file: Path) -> None:
    assert list(faults(file)) == []


def test_a_name_that_is_gone_is_found(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text('class A:\n    """A.\n\n    Attributes:\n        b, old: numbers.\n    """\n\n    b: int\n')
    assert list(faults(file)) == ["A: old"]
