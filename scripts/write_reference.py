#!/usr/bin/env python3
"""Writes the generated parts of docs/reference from the code that they describe.

``make reference`` runs it. A part lies between markers (``<!-- NAME -->``, ``<!-- /NAME -->``) of a page that is
committed, so that the page also reads well on GitHub. A test fails while a part differs.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import polars as pl

from nvtxmoe.cli import cli, command_help, command_names
from nvtxmoe_analysis.checks.registry import check_modules
from nvtxmoe_analysis.outputs.registry import documents, tables
from nvtxmoe_analysis.outputs.spec import Column, Document, Table

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
TYPE_NAMES = {
    pl.Int64: "integer", pl.Float64: "float", pl.String: "text", pl.Boolean: "boolean", pl.List(pl.UInt32): "list",
}  # fmt: skip
#: Characters per line of the help of a command.
HELP_WIDTH = 100
#: File below the root and definition in it, of what programs import.
API = (
    ("analysis/nvtxmoe_analysis/outputs/read.py", "nvtxmoe_analysis", "load"),
    ("analysis/nvtxmoe_analysis/outputs/read.py", "nvtxmoe_analysis", "Results"),
    ("nvtxmoe/profiler.py", "nvtxmoe", "MoEExpertProfiler"),
    ("nvtxmoe/errors.py", "nvtxmoe.errors", "NvtxmoeError"),
)
Definition = ast.FunctionDef | ast.ClassDef


# Result files ---------------------------------------------------------------------------------------------------------


def result_tables() -> str:
    """A section per table and a line per document."""
    sections = [_table(table) for table in tables().values()]
    return "\n".join([*sections, "## JSON documents", "", *_documents(), ""])


def _table(table: Table) -> str:
    facts = [f"`results.{table.name}`", "needs GPU time" if table.gpu else "without GPU time too"]
    facts += ["always Parquet"] if table.parquet_only else []
    facts += [f"also by the recipe `{table.recipe}`"] if table.recipe else []
    lines = [f"## {table.stem}", "", f"{_sentence(table.meaning)} {_sentence('; '.join(facts))}", ""]
    lines += [_sentence(_capital(table.note)), ""] if table.note else []
    lines += ["| column | type | meaning |", "| --- | --- | --- |", *map(_column, table.columns), ""]
    return "\n".join(lines)


def _column(column: Column) -> str:
    return f"| `{column.name}` | {TYPE_NAMES[column.type]} | {_cell(column.meaning)} |"


def _documents() -> Iterator[str]:
    yield from ("| file | attribute | content | needs GPU time |", "| --- | --- | --- | --- |")
    for document in documents().values():
        yield _document(document)


def _document(document: Document) -> str:
    gpu = "yes" if document.gpu else "no"
    return f"| `{document.stem}.json` | `results.{document.name}` | {_cell(document.meaning)} | {gpu} |"


# Checks ---------------------------------------------------------------------------------------------------------------


def checks() -> str:
    """A row per check: what holds in a capture that passes it."""
    lines = ["| check | holds if it passes | direct mode |", "| --- | --- | --- |"]
    for name, module in check_modules().items():
        text = _code(inspect.getdoc(module.check) or "")
        applies = "not applicable" if module.EXPORTS_ONLY else "yes"
        lines.append(f"| `{name}` | {_cell(' '.join(text.partition(chr(10) * 2)[0].split()))} | {applies} |")
    return "\n".join(lines) + "\n"


# Command line ---------------------------------------------------------------------------------------------------------


def commands() -> str:
    """A section per command: its own help."""
    context = click.Context(cli, info_name="nvtxmoe", **cli.context_settings)
    sections = ["| command | use |", "| --- | --- |"]
    sections += [f"| [`{name}`](#nvtxmoe-{name}) | {_cell(command_help(name))} |" for name in command_names()]
    for name in command_names():
        command = cli.get_command(context, name)
        assert command is not None
        shown = click.Context(
            command, info_name=name, parent=context, terminal_width=HELP_WIDTH, max_content_width=HELP_WIDTH
        )
        text = "\n".join(line.rstrip() for line in command.get_help(shown).splitlines())
        sections.append(f"\n## nvtxmoe {name}\n\n```text\n{text}\n```")
    return "\n".join(sections) + "\n"


# Python ---------------------------------------------------------------------------------------------------------------


def python_api() -> str:
    """A section per public function and class, from signatures and docstrings; nothing is imported for it."""
    return "\n".join(section for file, package, name in API for section in _definition(file, package, name))


def _definition(file: str, package: str, name: str) -> Iterator[str]:
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    (node,) = (node for node in body if isinstance(node, Definition) and node.name == name)
    yield f"## {package}.{name}\n"
    if isinstance(node, ast.FunctionDef):
        yield _described(node, name)
        return
    made = next((method for method in _methods(node) if method.name == "__init__"), None)
    yield _described(node, name) if made is None else f"{_call(made, name)}\n{_prose(ast.get_docstring(node) or '')}\n"
    for method in _methods(node):
        if not method.name.startswith("_"):
            yield f"### {name}.{method.name}\n"
            yield _described(method, method.name)


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [statement for statement in node.body if isinstance(statement, ast.FunctionDef)]


def _described(node: Definition, name: str) -> str:
    call = _call(node, name) + "\n" if isinstance(node, ast.FunctionDef) else ""
    return f"{call}{_prose(ast.get_docstring(node) or '')}\n"


def _call(node: ast.FunctionDef, name: str) -> str:
    """The signature as Python, without self."""
    parameters = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    return f"```python\n{name}({parameters}){returns}\n```\n"


def _prose(docstring: str) -> str:
    """A docstring as Markdown: its sections (``Raises:``) become lists."""
    lines: list[str] = []
    for line in _code(docstring).splitlines():
        item = re.match(r"    (\w[\w., |\[\]]*): (.*)", line)
        if re.fullmatch(r"[A-Z]\w+:", line):
            lines += [f"**{line.removesuffix(':')}**", ""]
        elif item:
            lines.append(f"- `{item[1]}`: {item[2]}")
        else:
            lines.append(f"  {line.strip()}" if line.startswith("    ") else line)
    return "\n".join(lines) + "\n"


# Pages ----------------------------------------------------------------------------------------------------------------


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{_capital(text)}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _code(text: str) -> str:
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


#: What makes each generated part, by page and marker.
PARTS: dict[tuple[str, str], Callable[[], str]] = {
    ("result-tables.md", "tables"): result_tables,
    ("checks.md", "checks"): checks,
    ("cli.md", "commands"): commands,
    ("python-api.md", "api"): python_api,
}


def renewed(page: str, marker: str) -> str:
    """Return the text of a page with one part made anew."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    before, start, remainder = text.partition(begin)
    _, closed, after = remainder.partition(end)
    if not start or not closed:
        raise SystemExit(f"docs/reference/{page}: the markers {begin.strip()} and {end} are missing; put them back")
    return before + begin + PARTS[page, marker]() + end + after


def main() -> None:
    """Write every part."""
    for page, marker in PARTS:
        (REFERENCE / page).write_text(renewed(page, marker), encoding="utf-8")


if __name__ == "__main__":
    main()
