"""docs/development/architecture.md and code-walks.md show the code. ``--update-golden`` redraws its picture."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = ROOT / "docs" / "development" / "architecture.md"
WALKS_PAGE = PAGE.with_name("code-walks.md")
ANALYSIS = "analysis/nvtxmoe_analysis"
WALKS = ("walk kernel", "walk router")


def contracts() -> list[dict[str, Any]]:
    """The import contracts of pyproject.toml."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = table["tool"]["importlinter"]["contracts"]
    return found


def layers(container: str) -> list[list[str]]:
    """Dotted names of the modules of each layer, top first. ``nvtxmoe`` is the contract that has no container."""
    for contract in contracts():
        if contract["type"] != "layers" or contract.get("containers", ["nvtxmoe"]) != [container]:
            continue
        prefix = f"{container}." if "containers" in contract else ""
        return [[prefix + name.strip() for name in layer.split("|")] for layer in contract["layers"]]
    raise LookupError(container)


def block(name: str) -> str:
    """The text between the pages' markers of that name."""
    text = PAGE.read_text(encoding="utf-8") + WALKS_PAGE.read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found is not None, name
    return found[1]


def rows(name: str) -> list[list[str]]:
    """Cells of a table of the page, without its head."""
    lines = [line for line in block(name).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def path_of(text: str) -> Path:
    """The file or folder that the page names; ``analysis/`` is short for the package in it."""
    name = text.strip("`")
    return ROOT / (name.replace("analysis/", f"{ANALYSIS}/", 1) if name.startswith("analysis/") else name)


# The picture ---------------------------------------------------------------------------------------------------------


def column(title: str, container: str) -> list[str]:
    """The lines of one column: a title, then the layers, top first."""
    return [title, *(", ".join(name.removeprefix(f"{container}.") for name in names) for names in layers(container))]


def picture() -> str:
    """The layers of the three parts side by side."""
    columns = [
        column("nvtxmoe/", "nvtxmoe"),
        column("analysis/nvtxmoe_analysis/", "nvtxmoe_analysis"),
        column("nvtxmoe/capture/", "nvtxmoe.capture"),
    ]
    widths = [max(map(len, lines)) for lines in columns]
    lines = [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip_longest(*columns, fillvalue="")
    ]
    return "\n".join(["```text", lines[0], "   ".join("-" * width for width in widths), *lines[1:], "```"]) + "\n"


def test_the_picture_shows_the_layers_of_the_contracts(update_golden: bool) -> None:
    if update_golden:
        text = PAGE.read_text(encoding="utf-8")
        pattern = r"(<!-- layers -->\n).*?(<!-- /layers -->)"
        PAGE.write_text(re.sub(pattern, lambda m: m[1] + picture() + m[2], text, flags=re.DOTALL), encoding="utf-8")
    assert block("layers") == picture()
    assert "attribution" in block("layers")


# Rooms ---------------------------------------------------------------------------------------------------------------


def test_every_room_has_a_sentence_and_every_sentence_a_room() -> None:
    expected = {
        name.replace("nvtxmoe_analysis.", "analysis.", 1).replace(".", "/")
        for container in ("nvtxmoe", "nvtxmoe_analysis", "nvtxmoe.capture")
        for names in layers(container)
        for name in names
        if name not in ("nvtxmoe_analysis", "nvtxmoe._version")
    }
    named = [room.strip("`").removesuffix(".py") for room, _ in rows("rooms")]
    assert sorted(named) == sorted(expected)
    for room, sentence in rows("rooms"):
        assert path_of(room).exists(), room
        assert len(sentence) > 10, room


# Functions -----------------------------------------------------------------------------------------------------------


@cache
def definitions(file: Path) -> dict[str, str]:
    """Source of every function, class and method of a file by its dotted name."""
    text = file.read_text(encoding="utf-8")
    found: dict[str, str] = {}

    def visit(body: Sequence[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[prefix + node.name] = ast.get_source_segment(text, node) or ""
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(text).body, "")
    return found


@pytest.mark.parametrize(
    ("file", "function"), [(file, function) for walk in WALKS for file, function, _ in rows(walk)], ids=str
)
def test_a_step_of_a_walk_is_in_its_file(file: str, function: str) -> None:
    assert function.strip("`") in definitions(path_of(file))


@pytest.mark.parametrize(("number", "file", "function"), [row[:3] for row in rows("numbers")], ids=str)
def test_the_function_that_makes_a_number_is_in_its_file(number: str, file: str, function: str) -> None:
    source = definitions(path_of(file))[function.strip("`")]
    for part in number.split(", "):
        names = re.findall(r"`(\w+)`", part)
        assert not names or any(re.search(rf"\b{name}\b", source) for name in names), part


def test_the_numbers_that_readers_ask_for_are_listed() -> None:
    listed = {name for row in rows("numbers") for name in re.findall(r"`(\w+)`", row[0])}
    assert listed >= {"busy_ns", "own_ns", "wait_ns", "expert_tiles", "slope_ns_per_unit", "verdict", "percentage"}


def test_the_walk_of_a_kernel_goes_up_through_the_layers() -> None:
    order = [name.removeprefix("nvtxmoe_analysis.") for names in reversed(layers("nvtxmoe_analysis")) for name in names]
    places = [order.index(path_of(file).relative_to(ROOT / ANALYSIS).parts[0]) for file, *_ in rows("walk kernel")]
    assert places == sorted(places)
    assert {"readers", "attribution", "outputs", "report"} <= {order[place] for place in places}
