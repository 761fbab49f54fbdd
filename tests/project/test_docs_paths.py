"""Every path, dotted name and link that the pages mention exists in the repository."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "examples" / "README.md",
        ROOT / "tests" / "golden" / "README.md",
    ]
)
#: Folders at the top of the repository: a path that begins with one of them is meant to exist.
FOLDERS = ("analysis", "docs", "examples", "nvtxmoe", "recipes", "scripts", "tests")
#: Files of other projects whose paths begin like ours.
FOREIGN_PATHS = {"examples/wide_ep/ep_load_balancer/report_load_statistics.py"}
#: Stands for the name of a file that the reader is to write.
TO_WRITE = "NAME"
PACKAGES = {"nvtxmoe": ROOT / "nvtxmoe", "nvtxmoe_analysis": ROOT / "analysis" / "nvtxmoe_analysis"}

PATH = re.compile(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)}|nvtxmoe_analysis)/[\w./-]*\w/?)")
DOTTED = re.compile(r"(?<![\w./-])((?:nvtxmoe|nvtxmoe_analysis)(?:\.[A-Za-z_]\w*)+)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def paths_in(text: str) -> Iterator[str]:
    """Paths of the repository that a text names: files with a suffix and folders with a slash at their end."""
    for path in PATH.findall(re.sub(r"https?://\S+", "", text)):
        if path not in FOREIGN_PATHS and TO_WRITE not in path and (path.endswith("/") or "." in Path(path).name):
            yield path


def there(path: str) -> bool:
    """Whether the repository has a path; ``analysis/`` may be short for the package in it."""
    starts = {ROOT, ROOT / "analysis"}
    short = path.removeprefix("analysis/")
    return any((start / path).exists() for start in starts) or (
        path.startswith("analysis/") and (PACKAGES["nvtxmoe_analysis"] / short).exists()
    )


@cache
def defined(file: Path) -> frozenset[str]:
    """Names at the top of a module, also imported ones."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                found |= {str(text.value) for text in ast.walk(node) if isinstance(text, ast.Constant)}
    return frozenset(found)


def importable(name: str) -> bool:
    """Whether a dotted name is a module, or a name at the top of one (or an attribute of such a name)."""
    first, *rest = name.split(".")
    place = PACKAGES[first]
    while rest and (place / rest[0]).is_dir():
        place /= rest.pop(0)
    file = place / "__init__.py"
    if rest and (place / f"{rest[0]}.py").is_file():
        file = place / f"{rest.pop(0)}.py"
    return not rest or (file.is_file() and rest[0] in defined(file))


def names_in(text: str) -> Iterator[str]:
    """Dotted names of our packages that a text names: not file names, which end in a suffix."""
    for name in DOTTED.findall(text):
        if name.rpartition(".")[2] not in {"sqlite", "md", "py", "toml", "sh"}:
            yield name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_what_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [path for path in paths_in(text) if not there(path)] == []
    assert [name for name in names_in(text) if not importable(name)] == []
    for link in LINK.findall(text):
        target, _, anchor = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), link
        if anchor and file.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, link


def test_the_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert "lint" in named
    assert named - targets == set()


def test_the_pages_of_development_are_among_them() -> None:
    named = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "docs/explanation/metrics.md", "docs/development/architecture.md"} <= named
    assert sum(len(list(paths_in(page.read_text(encoding="utf-8")))) for page in PAGES) > 100


def test_what_is_not_there_would_be_found() -> None:
    text = "see `scripts/bench/gone.py`, nvtxmoe_analysis/readers/old.py, nvtxmoe_analysis.exports, docs/none/"
    assert [path for path in paths_in(text) if not there(path)] == [
        "scripts/bench/gone.py",
        "nvtxmoe_analysis/readers/old.py",
        "docs/none/",
    ]
    assert [importable(name) for name in names_in("nvtxmoe_analysis.load nvtxmoe_analysis.stats.gone")] == [True, False]
    assert not importable("nvtxmoe_analysis.exports")
