"""The generated parts of docs/reference are what the code says; ``--update-golden`` or `make reference` renews them."""

from __future__ import annotations

import pytest

from nvtxmoe.cli import command_names
from nvtxmoe_analysis.checks.registry import check_modules
from nvtxmoe_analysis.outputs.registry import documents, tables
from scripts import write_reference
from tests.support.paths import ROOT


def text_of(page: str) -> str:
    return (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "marker"), write_reference.PARTS)
def test_a_generated_part_is_up_to_date(page: str, marker: str, update_golden: bool) -> None:
    wanted = write_reference.renewed(page, marker)
    if update_golden:
        (ROOT / "docs" / "reference" / page).write_text(wanted, encoding="utf-8")
    assert text_of(page) == wanted, f"run `make reference`, which writes docs/reference/{page}"


def test_every_table_column_document_check_and_command_is_there() -> None:
    shown = text_of("result-tables.md")
    for table in tables().values():
        section = shown.partition(f"\n## {table.stem}\n")[2].partition("\n## ")[0]
        assert [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")] == list(table.types)
    assert all(f"| `{document.stem}.json` |" in shown for document in documents().values())
    assert all(f"\n| `{name}` |" in text_of("checks.md") for name in check_modules())
    assert all(f"\n## nvtxmoe {name}\n" in text_of("cli.md") for name in command_names())


def test_every_check_says_what_holds() -> None:
    for name, module in check_modules().items():
        assert len((module.check.__doc__ or "").strip()) > 10, name


@pytest.mark.parametrize("name", tables())
def test_every_column_has_a_meaning(name: str) -> None:
    assert [column.name for column in tables()[name].columns if not column.meaning] == []
