"""Every row of the pages on reliability names a test, and every test that it names exists."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

PAGES = [ROOT / "docs" / "explanation" / "reliability.md", ROOT / "docs" / "reference" / "doctor.md"]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> list[str]:
    lines = [line for page in PAGES for line in page.read_text().splitlines() if line.startswith("|")]
    return [line for line in lines if not line.startswith(("| fault ", "| --- "))]


def test_every_row_names_one_test_that_exists() -> None:
    assert len(rows()) > 40
    for row in rows():
        ((file, name),) = TEST.findall(row)
        assert f"\ndef {name}(" in (ROOT / file).read_text(), row


def test_no_fault_is_listed_twice() -> None:
    named = [TEST.findall(row)[0] for row in rows()]
    assert len(set(named)) == len(named)
