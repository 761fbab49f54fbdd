"""What an output declares: its name, its file, and of a table the type and meaning of each column.

Integers are ``Int64`` and floats ``Float64`` whatever the file's format, so that CSV and Parquet give equal frames (up
to the nine digits that CSV has). The tables of docs/reference/files.md and docs/how-to/load-results.md are compared
with the declarations, and ``--update-golden`` writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

DataType = pl.DataType | type[pl.DataType]

INTEGER, FLOAT, TEXT, BOOLEAN = pl.Int64, pl.Float64, pl.String, pl.Boolean
#: A list of counts per cell.
COUNTS = pl.List(pl.UInt32)

#: Name of the folder inside the output folder.
FOLDER = "moe_expert_tracking"
#: The stem of the document with the verdict, which the checks make.
VALIDATION = "moe_capture_validation"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: in the field's words, with its unit.
        type: in memory after ``load``.
        meaning: a noun phrase in Markdown.
    """

    name: str
    type: DataType
    meaning: str = ""


#: Leading columns of tables with one row per (rank, step, layer).
CELL_COLUMNS = (
    Column("rank", INTEGER, "global rank"),
    Column("step", INTEGER, "number of the step"),
    Column("layer_idx", INTEGER, "vLLM's number of the MoE layer"),
    Column("num_tokens", INTEGER, "scheduled tokens of the rank in the step"),
    Column("prefill_tokens", INTEGER, "prefill tokens among them"),
    Column("decode_tokens", INTEGER, "decode tokens among them"),
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the results.

    Attributes:
        name: attribute of ``Results``.
        stem: name of its file without suffix.
        order: its place where outputs are listed; low numbers come first.
        meaning: what it tells, in one line.
        columns: in the file's order. Files of a later version may have more.
        whole: names of the columns that have a value in every row of any capture. A file with an empty cell in one of
            them is damaged.
        reasoned: names of the columns that are empty only where ``reason`` says why.
        key: names of the columns that tell rows apart. An empty cell in one of them has a meaning: several rows with
            the same one have lost values.
        unnumbered: whether rows without a ``step`` may have equal ones: steps whose number is unknown.
        note: Markdown that follows the columns in docs/reference/files.md: what a row is, where more is told.
        recipe: name of the nsys recipe that writes it too; empty where none does.
        gpu: whether it needs GPU time, which a run without nsys does not have.
        forms: suffixes that the file may have; where several are there the first counts. A table with lists in its
            cells is Parquet whatever format the others have, and not in the database.
    """

    name: str
    stem: str
    order: int
    meaning: str
    columns: tuple[Column, ...]
    whole: tuple[str, ...]
    reasoned: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    unnumbered: bool = False
    note: str = ""
    recipe: str = ""
    gpu: bool = False
    forms: tuple[str, ...] = ("parquet", "csv")
    types: Mapping[str, DataType] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", {column.name: column.type for column in self.columns})

    @property
    def parquet_only(self) -> bool:
        """Whether CSV has no words for its cells."""
        return self.forms == ("parquet",)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A JSON document of the results.

    Attributes:
        name: attribute of ``Results``.
        stem: name of its file without suffix.
        order: its place where documents are listed, after the tables; low numbers come first.
        meaning: what it tells, in one line.
        recipe: name of the nsys recipe that writes it too; empty where none does.
        gpu: whether it needs GPU time, which a run without nsys does not have.
    """

    name: str
    stem: str
    order: int
    meaning: str
    recipe: str = ""
    gpu: bool = False

    @property
    def forms(self) -> tuple[str, ...]:
        """Suffixes that the file may have."""
        return ("json",)
