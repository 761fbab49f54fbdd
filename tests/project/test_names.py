"""Rooms in which names and docstrings keep the rules of docs/development/contributing.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

ANALYSIS = ROOT / "analysis" / "nvtxmoe_analysis"
#: Rooms whose local names are nouns.
NAMED = (ANALYSIS / "report", ANALYSIS / "inspection", ANALYSIS / "trimming", ROOT / "nvtxmoe" / "printing")
#: Rooms whose docstrings begin with a verb or a noun.
DESCRIBED = (ANALYSIS / "inspection", ANALYSIS / "trimming", ROOT / "nvtxmoe" / "printing")
#: All of the code; nobody binds the names there which say nothing about their value in any context.
CODE = (ROOT / "nvtxmoe", ROOT / "analysis", ROOT / "scripts", ROOT / "recipes", ROOT / "examples")
#: Names without a meaning, wherever they are bound: participles, adverbs and pronouns in the place of a noun.
NO_NAMES = {
    *("said", "told", "wanted", "found", "one", "ones", "mine", "ours", "theirs", "its", "of_own", "met", "stands"),
    *("unseen", "figures", "sides", "places", "there", "here", "given", "kept", "lacking", "again", "rest"),
}
#: Names that do not tell what they hold.
EMPTY_NAMES = {"said", "told", "sides", "wanted", "places", "unseen", "figures", "of_own", "mine", "one", "its"}
EMPTY_STARTS = ("What ", "How ", "Whether ", "Of ", "The same", "Those ", "It ")


def files(rooms: tuple[Path, ...]) -> list[Path]:
    """The modules of the rooms."""
    return [file for room in rooms for file in sorted(room.rglob("*.py"))]


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names of functions, classes, parameters, variables and attributes, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name.strip("_"), node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg.strip("_"), node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id.strip("_"), node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr.strip("_"), node.lineno


def names(tree: ast.AST) -> Iterator[str]:
    """Names that are bound, without their lines."""
    return (name for name, _ in bound_names(tree))


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield ast.get_docstring(node) or ""


@pytest.mark.parametrize("file", files(NAMED), ids=lambda file: str(file.relative_to(ROOT)))
def test_names_tell_what_they_hold(file: Path) -> None:
    assert sorted(EMPTY_NAMES.intersection(names(ast.parse(file.read_text(encoding="utf-8"))))) == []


def test_no_name_is_a_participle_or_a_pronoun() -> None:
    faults = [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file in files(CODE)
        for name, line in bound_names(ast.parse(file.read_text(encoding="utf-8")))
        if name in NO_NAMES
    ]
    assert faults == []


@pytest.mark.parametrize("file", files(DESCRIBED), ids=lambda file: str(file.relative_to(ROOT)))
def test_docstrings_begin_with_a_verb_or_a_noun(file: Path) -> None:
    found = docstrings(ast.parse(file.read_text(encoding="utf-8")))
    assert [text.partition("\n")[0] for text in found if text.startswith(EMPTY_STARTS)] == []


def test_what_is_looked_for_would_be_found() -> None:
    tree = ast.parse(
        'def told(said):\n    """What it says."""\n    mine = [one for one in said]\n    x.figures = mine\n'
    )
    assert EMPTY_NAMES.intersection(names(tree)) == {"told", "said", "mine", "one", "figures"}
    assert [(name, line) for name, line in bound_names(tree) if name in NO_NAMES and line == 4] == [("figures", 4)]
    assert [text for text in docstrings(tree) if text.startswith(EMPTY_STARTS)] == ["What it says."]
    assert len(files(NAMED)) > len(files(DESCRIBED)) > 5
