"""Findings as plain records, for notebooks and agents: the one place that knows the form of ``Finding``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvtxmoe_analysis.outputs.registry import declarations, tables
from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.findings import findings
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.number_text import Value
from nvtxmoe_analysis.report.numbers import SourcedNumber, Where
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.steady import named_sets, steady_others


@dataclass(frozen=True)
class EvidenceRecord:
    """A number of a finding and the rows behind it.

    Attributes:
        text: the number as the report shows it, with its unit.
        value: the number in ``unit``.
        unit: of ``value``; empty for counts.
        how: the reduction of the rows: ``cell``, ``sum``, ``mean``, ..., see ``SourcedNumber.how``.
        file: the result file; empty for a number computed from other numbers.
        table: the table of that file; None for a JSON document and for computed numbers.
        column: the column, or the path of keys in a JSON document.
        where: the rows: value by column, None for an empty cell.
        once: columns of which each combination counts once, if several rows repeat a value.
        steps: the steps whose rows count, in words; empty if all do.
        step_set: their name in ``steady.named_sets``; empty if all rows count.
        over: what the sum of a time per step is divided by; 1 for other numbers.
        origin: file, column and rows in words.
    """

    text: str
    value: Value
    unit: str
    how: str
    file: str
    table: str | None
    column: str
    where: Where
    once: Sequence[str]
    steps: str
    step_set: str
    over: int
    origin: str


@dataclass(frozen=True)
class FindingRecord:
    """A finding without types of the report.

    Attributes:
        id: stable name within one result folder.
        topic: a word or two.
        title: one sentence with its numbers.
        details: further sentences.
        kind: one of ``finding.KINDS``.
        certainty: ``measured``, ``estimated`` or ``uncertain``.
        how_sure: why; empty if the finding says nothing of it.
        at_stake_us_per_step: microseconds per step of the mean rank that can be won at most; None if it costs no time.
        at_stake_per: which steps, such as ``steady decode step``; empty if it costs no time.
        at_stake_pct: share of that step's time.
        next_step: what to do; empty if the finding names nothing.
        command: a command or setting for it; empty if there is none.
        expected: what then is to be seen.
        chart: name of the chart that shows it, if one does.
        evidence: every number with its origin.
    """

    id: str
    topic: str
    title: str
    details: Sequence[str]
    kind: str
    certainty: str
    how_sure: str
    at_stake_us_per_step: float | None
    at_stake_per: str
    at_stake_pct: float | None
    next_step: str
    command: str
    expected: str
    chart: str | None
    evidence: Sequence[EvidenceRecord]


def finding_records(source: Source) -> list[FindingRecord]:
    """Return all findings of a results folder, the most important first."""
    ledger = Ledger(source)
    return records(findings(ledger), named_sets(ledger.steady, steady_others(source)))


def records(findings: Sequence[Finding], step_sets: Mapping[str, frozenset[int]]) -> list[FindingRecord]:
    """Return findings as records, in their order.

    Parameters:
        step_sets: the steps that their numbers are of, by name.
    """
    sets = {numbers: name for name, numbers in reversed(list(step_sets.items()))}
    return [_record(finding, id, sets) for finding, id in zip(findings, _ids(findings), strict=True)]


def _ids(findings: Sequence[Finding]) -> list[str]:
    """Return an id per finding: its own, with a number from the second finding of a kind on."""
    seen: Counter[str] = Counter()
    ids = []
    for finding in findings:
        seen[finding.id] += 1
        ids.append(finding.id if seen[finding.id] == 1 else f"{finding.id}-{seen[finding.id]}")
    return ids


def _record(finding: Finding, id: str, sets: Mapping[frozenset[int], str]) -> FindingRecord:
    stake = {} if finding.stake is None else finding.stake.as_dict()
    next_step = finding.next_step
    return FindingRecord(
        id=id,
        topic=finding.topic,
        title=str(finding.headline),
        details=[str(detail) for detail in finding.details],
        kind=finding.kind,
        certainty=finding.certainty,
        how_sure="" if finding.confidence is None else str(finding.confidence),
        at_stake_us_per_step=stake.get("us_per_step"),
        at_stake_per=stake.get("per", ""),
        at_stake_pct=stake.get("share_pct"),
        next_step="" if next_step is None else next_step.action,
        command="" if next_step is None else next_step.command,
        expected="" if next_step is None else str(next_step.expected),
        chart=finding.chart,
        evidence=[_evidence(number, sets) for number in finding.numbers],
    )


def _evidence(number: SourcedNumber, sets: Mapping[frozenset[int], str]) -> EvidenceRecord:
    stem = number.file.rpartition(".")[0]
    name = next((name for name, declared in declarations().items() if declared.stem == stem), None)
    is_table = name in tables() and not number.file.endswith(".json") and number.how != "predicted"
    return EvidenceRecord(
        text=number.text,
        value=number.value,
        unit=number.unit,
        how=number.how,
        file=number.file,
        table=name if is_table else None,
        column=number.column,
        where=number.where,
        once=number.once,
        steps=number.steps_in_words if number.steps is not None else "",
        step_set="" if number.steps is None else sets.get(number.steps, ""),
        over=number.over,
        origin=number.origin,
    )
