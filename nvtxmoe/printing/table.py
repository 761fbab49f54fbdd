"""Print tables in which no cell is cut: columns without room are left out and named, or rows become records."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from nvtxmoe.terminal_text import harmless

Cell = str | Text
#: Cells by column, or a heading across the table.
Row = Sequence[Cell] | str

#: Spaces between two columns.
GAP = 2
#: Least width of a column whose text may go on several lines.
LEAST_WRAPPED = 24


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: what is in it; its words may go on several lines.
        right: align to the right.
        drop: 0 for a column that stays; the column with the largest number is left out first.
        wraps: text may go on several lines. For the last column.
    """

    title: str
    right: bool = True
    drop: int = 0
    wraps: bool = False


def show_table(
    console: Console, columns: Sequence[Column], rows: Sequence[Row], *, elsewhere: str, header: bool = True
) -> None:
    """Print a table.

    Parameters:
        elsewhere: where the columns are that had no room, for example a file or an option.
    """
    for line in table_lines(console, columns, rows, console.width, elsewhere=elsewhere, header=header):
        console.print(line, soft_wrap=True)


def table_lines(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Row],
    width: int,
    *,
    elsewhere: str,
    header: bool = True,
) -> list[Text]:
    """Return the lines of a table, without spaces at their ends.

    Each cell that is shown is shown whole. Titles go on several lines first, then columns are left out, which a last
    line names. If the columns that stay have no room either, each row becomes a record: a line per cell.
    """
    cells = [row if isinstance(row, str) else [cell_text(cell) for cell in row] for row in rows]
    natural = [
        max((_width(row[i]) for row in cells if not isinstance(row, str)), default=0) for i in range(len(columns))
    ]
    shown_columns = list(range(len(columns)))
    while sum(_least(columns[i], natural[i], header) for i in shown_columns) + GAP * (len(shown_columns) - 1) > width:
        spare = [i for i in shown_columns if columns[i].drop]
        if not spare:
            return [_stripped(line) for line in _records(console, columns, cells, width, header)]
        shown_columns.remove(max(spare, key=lambda i: columns[i].drop))
    lines = _grid(console, columns, cells, shown_columns, natural, width, header)
    if len(shown_columns) < len(columns):
        names = ", ".join(column.title for i, column in enumerate(columns) if i not in shown_columns)
        note = Text(f"No room for: {names} ({elsewhere}).", "dim")
        lines += note.wrap(console, width, overflow="fold")
    return [_stripped(line) for line in lines]


def show_item(console: Console, text: str, lead: str = "  ") -> None:
    """Print a text as an item of a list: in a terminal its further lines are indented, elsewhere it is one line."""
    lines = cell_text(text).wrap(console, max(1, console.width - len(lead)), overflow="fold")
    for place, line in enumerate(lines):
        console.print(Text(" " * len(lead) if place else lead).append_text(line), soft_wrap=True)


def cell_text(cell: Cell) -> Text:
    """Return a cell in which nothing moves the cursor: names come from captures."""
    if isinstance(cell, Text):
        return cell
    return Text(harmless(cell))


def _width(cell: Text) -> int:
    return max((cell_len(line) for line in cell.plain.split("\n")), default=0)


def _least(column: Column, natural: int, header: bool) -> int:
    """Return the least width of a column: its widest cell, and the longest word of its title."""
    word = max(map(cell_len, column.title.split()), default=0) if header else 0
    return max(min(natural, LEAST_WRAPPED) if column.wraps else natural, word)


def _grid(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Text] | str],
    shown_columns: Sequence[int],
    natural: Sequence[int],
    width: int,
    header: bool,
) -> list[Text]:
    widths = _widths(columns, shown_columns, natural, width, header)
    lines: list[Text] = []
    if header:
        titles = [_title(columns[i].title, w) for i, w in zip(shown_columns, widths, strict=True)]
        depth = max(map(len, titles))
        for level in range(depth):
            # Short titles are on the last lines, next to their cells.
            parts = [Text(t[level - depth + len(t)] if level >= depth - len(t) else "", "bold") for t in titles]
            lines.append(_line(columns, shown_columns, widths, parts))
    for row in rows:
        if isinstance(row, str):
            lines += Text(row, "bold").wrap(console, width, overflow="fold")
            continue
        wrapped = [_wrapped(console, row[i], w) for i, w in zip(shown_columns, widths, strict=True)]
        for level in range(max(map(len, wrapped))):
            parts = [part[level] if level < len(part) else Text() for part in wrapped]
            lines.append(_line(columns, shown_columns, widths, parts))
    return lines


def _widths(
    columns: Sequence[Column], shown_columns: Sequence[int], natural: Sequence[int], width: int, header: bool
) -> list[int]:
    """Return the width of each column that is shown. Room that is left goes to titles, then to the text that wraps."""
    widths = [_least(columns[i], natural[i], header) for i in shown_columns]
    spare = width - sum(widths) - GAP * (len(shown_columns) - 1)
    for place, i in enumerate(shown_columns):
        title = cell_len(columns[i].title) if header else 0
        needed = max(natural[i], title)
        more = min(needed - widths[place], spare) if columns[i].wraps else needed - widths[place]
        if more <= spare:
            widths[place] += more
            spare -= more
    return widths


def _title(title: str, width: int) -> list[str]:
    if cell_len(title) <= width:
        return [title]
    return textwrap.wrap(title, width, break_on_hyphens=False)


def _wrapped(console: Console, cell: Text, width: int) -> list[Text]:
    """Return a cell as lines of at most this width. Most cells have room, and need no wrapping."""
    if "\n" not in cell.plain and cell_len(cell.plain) <= width:
        return [cell.copy()]
    return list(cell.wrap(console, width, overflow="fold"))


def _line(
    columns: Sequence[Column], shown_columns: Sequence[int], widths: Sequence[int], parts: Sequence[Text]
) -> Text:
    line = Text()
    for place, (i, width, part) in enumerate(zip(shown_columns, widths, parts, strict=True)):
        space = " " * max(0, width - cell_len(part.plain.rstrip()))
        part.rstrip()
        line.append(" " * GAP if place else "")
        line.append_text(Text(space).append_text(part) if columns[i].right else part.append(space))
    return line


def _records(
    console: Console, columns: Sequence[Column], rows: Sequence[Sequence[Text] | str], width: int, header: bool
) -> list[Text]:
    """Return each row as lines: with a header, a title and a cell in each; else the cells one after the other. What
    belongs to the line above is indented.
    """
    lines: list[Text] = []
    for row in rows:
        if isinstance(row, str):
            lines += Text(row, "bold").wrap(console, width, overflow="fold")
            continue
        filled = [(column.title.strip(), cell) for column, cell in zip(columns, row, strict=True) if cell.plain.strip()]
        if header:
            record = [Text.assemble((title, "bold"), "  " if title else "", cell) for title, cell in filled]
        else:
            record = [Text("  ").join(cell for _, cell in filled)]
        for place, text in enumerate(record):
            lines += indented(console, text, width, 2 if place else 0)
    return lines


def indented(console: Console, text: Text, width: int, indent: int) -> list[Text]:
    """Return a text as lines of at most this width: the first after ``indent`` spaces, the others two further in."""
    first, *others = text.wrap(console, max(1, width - indent - 2), overflow="fold")
    return [Text(" " * indent).append_text(first), *(Text(" " * (indent + 2)).append_text(line) for line in others)]


def _stripped(line: Text) -> Text:
    line.rstrip()
    return line
