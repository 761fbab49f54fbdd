"""The tools: each reads results and answers within the bounds. Their docstrings are what an agent reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.mcp_server.answers import (
    Answered,
    ColumnMeaning,
    ColumnMeanings,
    ComparedRun,
    Condition,
    Differences,
    Evidence,
    Finding,
    FindingEvidence,
    FindingsList,
    ResultsFolder,
    ResultsList,
    RowsCall,
    TableRows,
)
from nvtxmoe.mcp_server.bounds import MOST_ROWS, clipped, filled
from nvtxmoe.mcp_server.folders import Folders
from nvtxmoe.mcp_server.rows import select_rows
from nvtxmoe_analysis.compare.compare import compare as compare_runs
from nvtxmoe_analysis.compare.compare import document
from nvtxmoe_analysis.outputs.read import no_such
from nvtxmoe_analysis.outputs.registry import tables
from nvtxmoe_analysis.report.finding_record import EvidenceRecord, FindingRecord
from nvtxmoe_analysis.report.numbers import unit_of

Result = Annotated[str, Field(description="Name of a results folder, as list_results gives it")]
Offset = Annotated[int, Field(ge=0, le=2**53, description="Rows to skip")]
Limit = Annotated[int, Field(ge=1, le=MOST_ROWS, description="Most rows of the answer")]
TableName = Annotated[str, Field(description="Name of a table, such as layer_correlation")]
#: Most notes of a comparison in an answer.
MOST_NOTES = 12


class Tools:
    """The tools over the folders that the server was given."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def list_results(self, offset: Offset = 0, limit: Limit = MOST_ROWS) -> ResultsList:
        """List the folders of results that can be read, with their tables. Begin here."""
        names = self._folders.names()
        listed = [self._listed(name) for name in names[offset : offset + limit]]
        return filled(ResultsList(), "results", listed, offset, limit, total=len(names))

    def _listed(self, name: str) -> ResultsFolder:
        try:
            results = self._folders.open(name).results
            verdict = results.document("validation").get("verdict") if results.has("validation") else None
        except NvtxmoeError as error:
            return ResultsFolder(name=name, verdict=None, tables=[], problem=clipped(str(error)))
        return ResultsFolder(name=name, verdict=clipped(verdict), tables=[t for t in tables() if results.has(t)])

    def findings(self, result: Result, offset: Offset = 0, limit: Limit = MOST_ROWS) -> FindingsList:
        """Findings of a run, the most important first: where the GPU time of its MoE layers goes, and why."""
        opened = self._folders.open(result)
        records = [_finding(finding) for finding in opened.findings]
        answers = [Answered(**clipped(answer.as_dict())) for answer in opened.answers]
        return filled(FindingsList(result=result, answers=answers), "findings", records, offset, limit)

    def finding_evidence(
        self,
        result: Result,
        id: Annotated[str, Field(description="Id of a finding, as findings gives it")],
        offset: Offset = 0,
        limit: Limit = MOST_ROWS,
    ) -> FindingEvidence:
        """Every number of a finding with file, column and rows; rows holds the arguments of table_rows for them."""
        by_id = {finding.id: finding for finding in self._folders.open(result).findings}
        if id not in by_id:
            raise no_such("finding", id, by_id)
        numbers = [_evidence(number) for number in by_id[id].evidence]
        page = FindingEvidence(result=result, id=id, title=clipped(by_id[id].title))
        return filled(page, "evidence", numbers, offset, limit)

    def table_rows(
        self,
        result: Result,
        table: TableName,
        columns: Annotated[list[str] | None, Field(description="Columns of the answer; null for all")] = None,
        where: Annotated[list[Condition] | None, Field(description="Conditions; rows must meet all of them")] = None,
        sort_by: Annotated[str | None, Field(description="Column; null keeps the file's order")] = None,
        descending: bool = False,
        offset: Offset = 0,
        limit: Limit = MOST_ROWS,
    ) -> TableRows:
        """Rows of a table, filtered and sorted. Times are integer nanoseconds in columns that end in _ns."""
        opened = self._folders.open(result)
        results = opened.results
        path = results.path(table) if table in tables() else None
        chosen = select_rows(
            results.frame(table), table, columns, where or [], sort_by, descending, lambda: opened.step_sets
        )
        rows = [clipped(row) for row in chosen.slice(offset, limit).iter_rows(named=True)]
        page = TableRows(
            result=result, table=table, file="" if path is None else path.name, columns=clipped(chosen.columns)
        )
        return filled(page, "rows", rows, offset, limit, total=len(chosen))

    def explain_column(
        self,
        column: Annotated[str | None, Field(description="Name of a column; null for all columns of the table")] = None,
        table: Annotated[str | None, Field(description="Table; null for every table with the column")] = None,
        offset: Offset = 0,
        limit: Limit = MOST_ROWS,
    ) -> ColumnMeanings:
        """Explain columns: type, unit and meaning, as the tables declare them."""
        if table is not None and table not in tables():
            raise no_such("frame", table, tables())
        if table is None and column is None:
            raise NvtxmoeError("neither a column nor a table was named", remedy="Name one of them")
        declared = [declaration for declaration in tables().values() if table in (None, declaration.name)]
        meanings = [
            ColumnMeaning(
                table=declaration.name,
                column=each.name,
                type=str(each.type),
                unit=unit_of(each.name),
                meaning=each.meaning,
            )
            for declaration in declared
            for each in declaration.columns
            if column in (None, each.name)
        ]
        if not meanings:
            names = dict.fromkeys(each.name for declaration in declared for each in declaration.columns)
            raise no_such("column", str(column), names)
        only = declared[0] if table is not None else None
        page = ColumnMeanings(
            table=table,
            table_meaning=None if only is None else only.meaning,
            table_note=None if only is None else only.note,
        )
        return filled(page, "columns", meanings, offset, limit)

    def compare(
        self,
        before: Result,
        after: Result,
        part: Annotated[
            Literal["metrics", "activations", "layers", "experts"],
            Field(
                description="metrics: times and imbalance of the run; activations: shift of the experts' shares; "
                "layers: metrics by layer, largest difference first; experts: whose share changed"
            ),
        ] = "metrics",
        offset: Offset = 0,
        limit: Limit = MOST_ROWS,
    ) -> Differences:
        """Compare two runs: what differs, with confidence intervals, and whether that is more than noise."""
        self._folders.open(before), self._folders.open(after)
        comparison = document(compare_runs(self._folders.folder(before), self._folders.folder(after)))
        rows = (
            [{"metric": metric, **row} for metric, layers in comparison["layers"].items() for row in layers]
            if part == "layers"
            else comparison[part]
        )
        page = Differences(
            before=ComparedRun(**clipped(comparison["a"])),
            after=ComparedRun(**clipped(comparison["b"])),
            notes=[clipped(note) for note in comparison["notes"][:MOST_NOTES]],
            part=part,
        )
        return filled(page, "rows", [clipped(row) for row in rows], offset, limit)


def _finding(record: FindingRecord) -> Finding:
    return Finding(
        id=record.id,
        topic=record.topic,
        title=clipped(record.title),
        details=[clipped(detail) for detail in record.details],
        kind=record.kind,
        certainty=record.certainty,
        how_sure=clipped(record.how_sure),
        at_stake_us_per_step=record.at_stake_us_per_step,
        at_stake_per=record.at_stake_per,
        at_stake_pct=record.at_stake_pct,
        next_step=clipped(record.next_step),
        command=clipped(record.command),
        expected=clipped(record.expected),
    )


def _evidence(record: EvidenceRecord) -> Evidence:
    call = None
    if record.table is not None:
        # Wins are counted among all rows of a group.
        chosen = {} if record.how == "wins" else record.where
        where = [
            Condition(column=name, op="is_empty") if value is None else Condition(column=name, value=value)
            for name, value in chosen.items()
        ]
        if record.step_set:
            where.append(Condition(column="step", op="in_steps", value=record.step_set))
        order = ("rank", "step", "start_ns") if record.how == "first_of_step" else ()
        columns = dict.fromkeys([*record.once, *order, *record.where, record.column])
        call = RowsCall(table=record.table, columns=list(columns), where=where)
    return Evidence(
        text=clipped(record.text),
        value=clipped(record.value),
        unit=record.unit,
        how=record.how,
        origin=clipped(record.origin),
        file=record.file,
        once=list(record.once),
        steps=record.steps,
        over=record.over,
        winner=dict(clipped(dict(record.where))) if record.how == "wins" else {},
        rows=call,
    )
