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
#: Names that do not tell what they hold.
EMPTY_NAMES = {"said", "told", "sides", "wanted", "places", "unseen", "figures", "of_own", "mine", "one", "its"}
EMPTY_STARTS = ("What ", "How ", "Whether ", "Of ", "The same", "Those ", "It ")


def files(rooms: tuple[Path, ...]) -> list[Path]:
    """The modules of the rooms."""
    return [file for room in rooms for file in sorted(room.rglob("*.py"))]


def names(tree: ast.AST) -> Iterator[str]:
    """Names of functions, classes, parameters and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name.strip("_")
        elif isinstance(node, ast.arg):
            yield node.arg.strip("_")
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id.strip("_")


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield ast.get_docstring(node) or ""


@pytest.mark.parametrize("file", files(NAMED), ids=lambda file: str(file.relative_to(ROOT)))
def test_names_tell_what_they_hold(file: Path) -> None:
    assert sorted(EMPTY_NAMES.intersection(names(ast.parse(file.read_text(encoding="utf-8"))))) == []


@pytest.mark.parametrize("file", files(DESCRIBED), ids=lambda file: str(file.relative_to(ROOT)))
def test_docstrings_begin_with_a_verb_or_a_noun(file: Path) -> None:
    found = docstrings(ast.parse(file.read_text(encoding="utf-8")))
    assert [text.partition("\n")[0] for text in found if text.startswith(EMPTY_STARTS)] == []


def test_what_is_looked_for_would_be_found() -> None:
    tree = ast.parse(
        'def told(said):\n    """What it says."""\n    mine = [one for one in said]\n    x.figures = mine\n'
    )
    assert EMPTY_NAMES.intersection(names(tree)) == {"told", "said", "mine", "one"}
    assert [text for text in docstrings(tree) if text.startswith(EMPTY_STARTS)] == ["What it says."]
    assert len(files(NAMED)) > len(files(DESCRIBED)) > 5
