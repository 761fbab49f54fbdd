"""Docstrings and comments name modules, classes and functions that exist."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

#: Folders of code, and from where their modules are imported.
CODE = {"nvtxmoe": ".", "analysis/nvtxmoe_analysis": "analysis", "recipes": "recipes", "tests": ".", "scripts": "."}
#: First words of names that are not ours: ranges, libraries, and files of users.
OTHERS = {"moe", "torch", "vllm", "polars", "importlib", "X", "MoERunner", "moe_config"}
#: Dotted names in a docstring or a comment: in double backticks, or after "see".
DOTTED = re.compile(r"``([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)``|\b[Ss]ee ([a-z_]+(?:\.[a-z_]+)+)\b")


def module_name(file: Path, base: str) -> str:
    """The dotted name of a module."""
    parts = file.relative_to(ROOT / base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def names(tree: ast.AST) -> Iterator[str]:
    """Names that a module or class defines, takes or reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).rpartition(".")[2]


@cache
def known() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Names in each module by every end of its dotted name, and in each class by its name."""
    modules: dict[str, set[str]] = defaultdict(set)
    classes: dict[str, set[str]] = defaultdict(set)
    bases: dict[str, set[str]] = defaultdict(set)
    for folder, base in CODE.items():
        for file in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            parts = module_name(file, base).split(".")
            own = set(names(tree))
            for at in range(len(parts)):
                modules[".".join(parts[at:])].update(own)
                modules[".".join(parts[at:-1])].add(parts[-1])
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    classes[node.name].update(names(node))
                    bases[node.name].update(base.id for base in node.bases if isinstance(base, ast.Name))
    for name in list(classes):
        for base in bases[name]:
            classes[name] |= classes.get(base, set())
    return modules, classes


def exists(name: str, own: set[str]) -> bool:
    """Whether a dotted name is that of something in a module or class, or of a variable of its file (``own``)."""
    modules, classes = known()
    parts = name.split(".")
    if parts[0] in OTHERS or parts[0] in own or parts[-1] == "json":  # a file of results
        return True
    for at in range(len(parts) - 1, 0, -1):
        inside = modules.get(".".join(parts[:at])) or (classes.get(parts[0]) if at == 1 else None)
        if inside is not None:
            return parts[at] in inside
    return name in modules


@pytest.mark.xdist_group("references")  # all code is parsed once
@pytest.mark.parametrize("folder", CODE)
def test_named_things_exist(folder: str) -> None:
    stale = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        found = [first or second for first, second in DOTTED.findall(text)]
        own = set(names(ast.parse(text))) if found else set()
        stale += [f"{file.relative_to(ROOT)}: {name}" for name in found if not exists(name, own)]
    assert stale == []


@pytest.mark.xdist_group("references")
def test_stale_names_would_be_found() -> None:
    own = {"fit"}
    assert exists("huber.fit", set()) and exists("stats.huber", set()) and exists("Strata.cell", set())
    assert exists("fit.slopes", own) and exists("nvtxmoe.formats.schema", set())
    for stale in ("exports.open.open_export", "huber.gone", "stats.gone", "Strata.gone", "gone.fit"):
        assert not exists(stale, own)
