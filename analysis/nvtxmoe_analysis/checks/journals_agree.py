"""Journals contain as many steps as their end records say."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.run.parallel_groups import data_parallel_size

ORDER = 72
EXPORTS_ONLY = False

NAME = "journals_agree"
#: Journals that a message contains.
MOST_TOLD = 3


def check(results: RunMetrics) -> Check:
    """The end record's number of batches is that of the steps, and of the idle batches of a data-parallel rank.

    Versions that did not count idle batches: a data-parallel rank may then have fewer steps than batches.
    Data-parallel ranks of vLLM run in lockstep: with their idle batches known, their numbers of batches are equal.
    """
    judged, wrong, last_batch = 0, [], {}
    for report in results.reports:
        for pid, file in report.events.journals.items():
            if not file.ended or file.batches is None:
                continue
            judged += 1
            steps = report.steps.filter(pid=pid)["step"].drop_nulls().n_unique()
            parallel = _in_lockstep(report, pid)
            expected = file.batches - (file.idle_batches or 0)
            if steps > expected or (steps < expected and (not parallel or file.idle_batches is not None)):
                wrong.append(f"{file.path.name} has {number(steps, 'step')}, its end record {expected:,}")
            if parallel and file.idle_batches is not None:
                last_batch[file.path.name] = file.batches
    if len(set(last_batch.values())) > 1:
        fewest, last_ended = (
            min(last_batch, key=lambda name: last_batch[name]),
            max(last_batch, key=lambda name: last_batch[name]),
        )
        wrong.append(
            f"{fewest} ends after batch {last_batch[fewest]:,}, {last_ended} after batch {last_batch[last_ended]:,}"
        )
    evidence: dict[str, JsonValue] = {"journals": judged, "wrong": len(wrong)}
    if wrong:
        more = f"; and {len(wrong) - MOST_TOLD:,} more" if len(wrong) > MOST_TOLD else ""
        return failed(NAME, f"Steps of journals are missing: {'; '.join(wrong[:MOST_TOLD])}{more}.", **evidence)
    if not judged:
        return not_applicable(NAME, "No journal whose end record contains its number of steps.", **evidence)
    return passed(NAME, f"{number(judged, 'journal')} with as many steps as recorded.", **evidence)


def _in_lockstep(report: CaptureFacts, pid: int) -> bool:
    """Whether a process runs idle batches with other data-parallel ranks."""
    meta = report.metas.get(pid)
    return meta is not None and data_parallel_size(meta) > 1 and meta.raw.get("vllm") is not None
