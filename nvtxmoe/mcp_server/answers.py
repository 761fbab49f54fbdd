"""What the tools take and answer: models of which the SDK makes the schemas."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from nvtxmoe.mcp_server.bounds import Page

Value = bool | int | float | str | None
Row = dict[str, Any]
#: How a column is compared with a value.
Operator = Literal["==", "!=", "<", "<=", ">", ">=", "contains", "is_empty", "is_not_empty", "in_steps"]


class Condition(BaseModel):
    """A condition that rows must meet."""

    column: str = Field(description="Column of the table")
    op: Operator = Field(
        default="==",
        description="contains is for text; is_empty and is_not_empty take no value; in_steps is for the column step "
        "and takes steady, start-up, eager or outlier: the steps that times per step are of, and those left out; "
        "steady decode, steady prefill or steady mixed: those of another kind",
    )
    value: Value = Field(default=None, description="Number for numeric columns, text for text columns")


class ResultsFolder(BaseModel):
    """A folder of results."""

    name: str = Field(description="Pass it as result to the other tools")
    verdict: str | None = Field(description="complete or incomplete: whether the capture lacks something")
    tables: list[str] = Field(description="Tables that table_rows can read")
    problem: str | None = Field(default=None, description="Why it cannot be read")


class ResultsList(Page):
    """Folders of results."""

    results: list[ResultsFolder] = Field(default_factory=list)


class Finding(BaseModel):
    """A finding of the report."""

    id: str = Field(description="Pass it to finding_evidence")
    topic: str
    title: str = Field(description="One sentence with its numbers")
    details: list[str]
    kind: str = Field(
        description="incomplete: the capture lacks something; cost: time that can be won; verdict: no problem, or none "
        "of MoE layers; weak: weak evidence; note: worth knowing; unseen: not in the capture"
    )
    certainty: str = Field(description="measured, estimated or uncertain")
    how_sure: str = Field(description="Why; may be empty")
    at_stake_us_per_step: float | None = Field(description="Microseconds per step that can be won at most")
    at_stake_per: str = Field(description="Which steps: steady decode step, ...; empty if no time is at stake")
    at_stake_pct: float | None = Field(description="Share of that step's time, percent")
    next_step: str = Field(description="What to do; may be empty")
    command: str = Field(description="A command or setting for it; may be empty")
    expected: str = Field(description="What then is to be seen; may be empty")


class Answered(BaseModel):
    """A question of the report's first screen with its answer."""

    question: str
    short: str = Field(description="A word or a number")
    text: str
    command: str | None = Field(description="A command or setting, if the answer has one")
    finding: str | None = Field(description="Id of the finding that it comes from")


class FindingsList(Page):
    """Findings, the most important first."""

    result: str
    answers: list[Answered] = Field(description="Is MoE the problem, what can be won, what next, how sure")
    findings: list[Finding] = Field(default_factory=list)


class RowsCall(BaseModel):
    """Arguments for table_rows that give the rows behind a number."""

    table: str
    columns: list[str]
    where: list[Condition]


class Evidence(BaseModel):
    """A number of a finding with its origin."""

    text: str = Field(description="The number as the report shows it")
    value: Value
    unit: str
    how: str = Field(
        description="How the rows became the number: cell, sum, mean, median, rows, ratio, percent, ...; per_step is "
        "the sum divided by over, first_of_step likewise of the row with the least start_ns of each (rank, step); wins "
        "counts the groups of equal once whose largest row is winner's, without ties"
    )
    origin: str = Field(description="File, column and rows in words")
    file: str = Field(description="Empty for a number computed from the other numbers of this finding")
    once: list[str] = Field(description="Columns of which each combination counts once, if rows repeat a value")
    steps: str = Field(description="Only rows of these steps count, which rows selects; empty if all do")
    over: int = Field(description="What the sum of a time per step is divided by")
    winner: dict[str, Value] = Field(description="Of wins: values of the row that must be the largest of its group")
    rows: RowsCall | None = Field(description="Arguments of table_rows that give the rows; null for JSON documents")


class FindingEvidence(Page):
    """A finding with its numbers."""

    result: str
    id: str
    title: str
    evidence: list[Evidence] = Field(default_factory=list)


class TableRows(Page):
    """Rows of a table."""

    result: str
    table: str
    file: str
    columns: list[str] = Field(description="Columns of the rows, in the file's order")
    rows: list[Row] = Field(default_factory=list)


class ColumnMeaning(BaseModel):
    """A column as a table declares it."""

    table: str
    column: str
    type: str
    unit: str = Field(description="Empty for counts, ids and text")
    meaning: str = Field(description="Markdown; empty where the name tells everything")


class ColumnMeanings(Page):
    """Columns of tables, with their meaning."""

    table: str | None = Field(description="The one table that was asked for")
    table_meaning: str | None = Field(description="What that table holds")
    table_note: str | None = Field(description="What a row of it is")
    columns: list[ColumnMeaning] = Field(default_factory=list)


class ComparedRun(BaseModel):
    """One side of a comparison."""

    folder: str
    verdict: str
    gpu_time: bool
    steps: int
    ranks: int
    layers: int


class Differences(Page):
    """Differences of two runs: before to after."""

    before: ComparedRun
    after: ComparedRun
    notes: list[str] = Field(description="What to know before believing a difference")
    part: str
    rows: list[Row] = Field(default_factory=list, description="Times in ns; difference is after less before")
