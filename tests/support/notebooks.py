"""Executing notebooks as Jupyter does, and what their cells show."""

from __future__ import annotations

import os
import re
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from tests.support.paths import ROOT

#: How long a cell may take on a machine that is busy with other things.
PATIENCE_S = 600
#: An element that a browser loads from elsewhere.
LOADS = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)\s*=\s*[\"']?(?:https?:)?//", re.IGNORECASE)


def notebook_of(*cells: str) -> Any:
    """A notebook of code cells."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])  # type: ignore[no-untyped-call]


def execute(notebook: Any, folder: Path, *, errors: bool = False) -> Any:
    """Execute a notebook in a folder, with the code of this working tree; returns it.

    Parameters:
        errors: cells may fail.
    """
    path = os.pathsep.join((str(ROOT), str(ROOT / "analysis"), os.environ.get("PYTHONPATH", "")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("IPYTHONDIR", str(folder / ".ipython"))
        client = NotebookClient(
            notebook, timeout=PATIENCE_S, startup_timeout=PATIENCE_S, kernel_name="python3", allow_errors=errors,
            resources={"metadata": {"path": str(folder)}},
        )  # fmt: skip
        client.execute()
    return notebook


def outputs(notebook: Any) -> list[list[dict[str, Any]]]:
    """The outputs of each code cell."""
    return [list(cell["outputs"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def html_of(notebook: Any) -> str:
    """The notebook as a page: its cells alone, without the scripts that nbconvert's own templates load."""
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)  # type: ignore[no-untyped-call]
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>notebook</title><body>{body}</body></html>'


def loads(html: str) -> list[str]:
    """Elements of a page, or of pages inside it, that load something over the network."""
    return LOADS.findall(unescape(html))
