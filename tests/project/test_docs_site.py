"""The documentation builds as a site without a warning, shows every page and loads nothing from a network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DOCS = ROOT / "docs"
SECTIONS = {"tutorial", "how-to", "reference", "explanation", "development"}
#: Elements that make a browser fetch something when it opens a page.
FETCHES = re.compile(r"<(?:script|img|iframe|source|video|link)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)")
#: The theme's script loads a renderer of diagrams from another host for this class.
DIAGRAM = re.compile(r"class=[\"']?[^\"'>]*\bmermaid\b")


def build(project: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build a site as scripts/docs.sh does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_broken_link_or_anchor_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Page\n\n[a](gone.md) [b](#gone)\n", encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert "'gone.md'" in done.stderr
    assert "'#gone'" in done.stderr


def test_every_page_is_in_a_section() -> None:
    pages = [page.relative_to(DOCS) for page in DOCS.rglob("*.md")]
    assert {page.parts[0] for page in pages} <= SECTIONS | {"index.md"}


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    names = [str(page.relative_to(DOCS).with_suffix(".html")) for page in DOCS.rglob("*.md")]
    home = (site / "index.html").read_text(encoding="utf-8")
    navigation = set(re.findall(r'<a href="([^"#]+\.html)" class="md-nav__link', home))
    for name in names:
        assert (site / name).is_file(), name
        assert name in navigation | {"index.html"}, name


def test_no_page_loads_anything_from_a_network(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert FETCHES.findall(text) == [], page.name
        assert not DIAGRAM.search(text), page.name
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", text), style.name


def test_what_would_be_loaded_is_found() -> None:
    assert FETCHES.findall('<link rel="stylesheet" href="https://fonts.example/css">') == ["https://fonts.example/css"]
    assert FETCHES.findall("<script src=//host/a.js></script>") == ["//host/a.js"]
    assert DIAGRAM.search('<pre class="mermaid">')
