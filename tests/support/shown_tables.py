"""The tables that a command prints, with the lines that a terminal gets, and what must hold for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from nvtxmoe.printing import table
from nvtxmoe.printing.table import Column, Row, cell_text

NO_ROOM = re.compile(r"No room for: (.+) \(")


@dataclass(frozen=True)
class Shown:
    """One table as it was printed in a terminal of a width."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    width: int
    lines: list[str]
    header: bool

    def at(self, width: int) -> Shown:
        """Return the table as a terminal of another width gets it."""
        lines = table.table_lines(
            Console(width=width), self.columns, self.rows, width, elsewhere="elsewhere", header=self.header
        )
        return replace(self, width=width, lines=[line.plain for line in lines])

    @property
    def left_out(self) -> set[str]:
        """Titles of the columns that had no room."""
        found = NO_ROOM.search(" ".join(self.lines))
        return set(found[1].split(", ")) if found else set()

    def check(self) -> None:
        """Assert that no line is too wide or ends in a space, and that each cell of a column shown is there whole."""
        shown = "\n".join(self.lines)
        assert all(cell_len(line) <= self.width for line in self.lines), shown
        assert all(line == line.rstrip() for line in self.lines), shown
        left_out, is_records = self.left_out, self.is_records
        assert left_out <= {column.title for column in self.columns if column.drop}, shown
        text, place = squeezed(shown), 0
        for row in self.rows:
            cells = [(None, row)] if isinstance(row, str) else list(zip(self.columns, row, strict=True))
            for column, cell in cells:
                if column is not None and column.title in left_out:
                    continue
                plain = cell_text(cell).plain
                wanted = squeezed(plain)
                at = text.find(wanted, place)
                assert at >= 0, (plain, shown)
                place = at + len(wanted)
                if column is not None and not column.wraps and not is_records:
                    assert any(plain.strip() in line for line in self.lines), (plain, shown)

    @property
    def is_records(self) -> bool:
        """Whether each row became a record."""
        return any(not column.drop for column in self.columns) and not self.left_out and self._needed() > self.width

    def _needed(self) -> int:
        """Least width of the columns that stay."""
        stay = [i for i, column in enumerate(self.columns) if not column.drop]
        cells = [[cell_text(cell) for cell in row] for row in self.rows if not isinstance(row, str)]
        natural = {i: max((table._width(row[i]) for row in cells), default=0) for i in stay}
        widths = [table._least(self.columns[i], natural[i], self.header) for i in stay]
        return sum(widths) + table.GAP * (len(stay) - 1)


def squeezed(text: str) -> str:
    """Return a text without white space: what is left when lines are put together again."""
    return re.sub(r"\s+", "", text)


def shown_tables(monkeypatch: pytest.MonkeyPatch, width: int, show: Callable[[Console], Any]) -> list[Shown]:
    """Return the tables that ``show`` prints to a terminal of this width."""
    found: list[Shown] = []
    original = table.table_lines

    def kept(console: Console, columns: Sequence[Column], rows: Sequence[Row], width: int, **more: Any) -> list[Any]:
        lines = original(console, columns, rows, width, **more)
        found.append(Shown(columns, rows, width, [line.plain for line in lines], more.get("header", True)))
        return lines

    with monkeypatch.context() as patch:
        patch.setattr(table, "table_lines", kept)
        console = Console(width=width, force_terminal=True, highlight=False, emoji=False)
        with console.capture() as capture:
            show(console)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", capture.get())
    for one in found:
        assert "\n".join(one.lines) in plain
    return found
