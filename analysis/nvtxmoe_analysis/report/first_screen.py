"""The first screen of the page and the first lines of the terminal: four questions and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nvtxmoe_analysis.report.commands import analyze_all
from nvtxmoe_analysis.report.finding import COST, INCOMPLETE, MEASURED, VERDICT, WEAK, Finding, Stake
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.moe_time import (
    cannot_tell,
    long_wait,
    moe_parts,
    moe_share,
    share_without,
)
from nvtxmoe_analysis.report.number_text import capital
from nvtxmoe_analysis.report.numbers import percent, total
from nvtxmoe_analysis.report.other_kinds import beside
from nvtxmoe_analysis.report.problem_word import UNKNOWN, problem_word
from nvtxmoe_analysis.report.selected import filters
from nvtxmoe_analysis.report.sentences import Sentence, sentence
from nvtxmoe_analysis.report.trust import Trust

PROBLEM, GAIN, NEXT, CERTAINTY = "Is MoE the problem?", "What can be won?", "What next?", "How sure?"


@dataclass(frozen=True)
class Answer:
    """A question with its answer.

    Attributes:
        short: a word or a number. kind: good, weak, bad or nothing.
        text: a sentence.
        command: a command or setting, if the answer has one.
        finding: id of the finding that it comes from; empty if it comes from none.
    """

    question: str
    short: str
    text: Sentence
    kind: str = ""
    command: str = ""
    finding: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the answer, JSON-ready."""
        return {
            "question": self.question,
            "short": self.short,
            "text": str(self.text),
            "command": self.command or None,
            "finding": self.finding or None,
        }


def answers(findings: Sequence[Finding], ledger: Ledger, trust: Trust) -> list[Answer]:
    """Return the four answers. Of an incomplete capture the last, how sure, comes first."""
    first = next((finding for finding in findings if finding.kind in (COST, VERDICT)), None)
    gain = _with_asides(_gain(first, findings, ledger), findings, ledger)
    answers = [_problem(findings, ledger), gain, _next(findings, first, ledger)]
    certainty = _certainty(findings, first, ledger, trust)
    return [*answers, certainty] if trust.complete else [certainty, *answers]


def _problem(findings: Sequence[Finding], ledger: Ledger) -> Answer:
    share = moe_share(ledger)
    if share is None or ledger.steady is None or ledger.step_time is None:
        why = cannot_tell(ledger) or "the results have no GPU time of steps"
        return Answer(PROBLEM, UNKNOWN, sentence("{}.", capital(why)), "weak")
    of_step = (total(*moe_parts(ledger).values()), ledger.step_time, ledger.steady.noun, share)
    text = sentence("MoE layers take {} of {} per {} ({}).", *of_step)
    if (wait := long_wait(ledger)) is not None:
        text = sentence(
            "Ranks wait {} ({}) for one another. MoE layers take {} of {} per {}: {} of the step, and {} of the step "
            "without that waiting.",
            wait,
            percent(wait, ledger.step_time),
            *of_step,
            share_without(ledger, wait),
        )
    if why := cannot_tell(ledger):
        return Answer(PROBLEM, UNKNOWN, sentence("{}. {}", capital(why), text), "weak")
    for other in beside(ledger):
        text = sentence("{} {}", text, other)
    return Answer(PROBLEM, problem_word(findings, ledger), text, finding="layers-time")


def _gain(first: Finding | None, findings: Sequence[Finding], ledger: Ledger) -> Answer:
    if first is not None and first.stake is not None:
        time, share = first.stake.per_step, first.stake.share
        steps = first.stake.steps.removeprefix("steady ")
        whose = f"of the mean rank's {steps}" if ledger.of_mean_rank else f"of a {steps}"
        limit = "about" if time.how == "predicted" else "at most"
        text = first.headline
        if time.how == "predicted" and len(share.parts) == 2:
            text = sentence("{} The share is of {}, the mean of the steps that were valued.", text, share.parts[1])
        if limit == "at most" and any(_larger(finding, first.stake) for finding in findings):
            text = sentence("{} The time above is of this alone; other findings have more at stake, less surely.", text)
        return Answer(GAIN, f"{limit} {time} ({share}) {whose}", text, finding=first.id)
    if first is not None:
        short = "nothing found in MoE layers" if first.kind == VERDICT else "memory, not time"
        return Answer(GAIN, short, first.headline, finding=first.id)
    if ledger.step_time is None:
        return Answer(GAIN, UNKNOWN, sentence("The results have no GPU time of steps."), "weak")
    maybe = next((finding for finding in findings if finding.kind == WEAK and finding.stake is not None), None)
    if maybe is not None:
        return Answer(GAIN, UNKNOWN, maybe.headline, "weak", finding=maybe.id)
    why = cannot_tell(ledger) or "no finding says how much"
    return Answer(GAIN, UNKNOWN, sentence("{}.", capital(why)), "weak")


def _larger(finding: Finding, first: Stake) -> bool:
    """Return True for a problem of the same steps with more time at stake than the first one."""
    stake = finding.stake
    if finding.kind != COST or stake is None or stake.steps != first.steps:
        return False
    return stake.per_step.value > first.per_step.value


def _with_asides(answer: Answer, findings: Sequence[Finding], ledger: Ledger) -> Answer:
    """Return the answer with what other findings have for the first screen."""
    if cannot_tell(ledger):
        return answer
    for finding in findings:
        aside = finding.first_screen
        if aside is not None and not str(answer.text).startswith(str(aside)):
            answer = replace(answer, text=sentence("{} {}", answer.text, aside))
    return answer


def _next(findings: Sequence[Finding], first: Finding | None, ledger: Ledger) -> Answer:
    """Return the next step of an incomplete capture, else of the first finding that has one."""
    urgent = next((finding for finding in findings if finding.kind == INCOMPLETE), first)
    chosen = urgent if urgent is not None and urgent.next_step is not None else None
    chosen = chosen or next((finding for finding in findings if finding.next_step is not None), None)
    if chosen is None and first is None and filters(ledger):
        text = sentence("Analyse again without the filters of layers, ranks and steps.")
        return Answer(NEXT, "analyse all", text, command=analyze_all(ledger.source))
    if chosen is None or chosen.next_step is None:
        text = sentence("Record a longer run, with GPU time: `nvtxmoe profile` under nsys.")
        return Answer(NEXT, "record more", text, command="nvtxmoe profile --num-requests 100 -- vllm serve MODEL")
    step = chosen.next_step
    text = sentence("{} Expected: {}", step.action, step.expected)
    return Answer(NEXT, step.short, text, command=step.command, finding=chosen.id)


def _certainty(findings: Sequence[Finding], first: Finding | None, ledger: Ledger, trust: Trust) -> Answer:
    incomplete = next((finding for finding in findings if finding.kind == INCOMPLETE), None)
    if incomplete is not None:
        return Answer(CERTAINTY, "incomplete", incomplete.headline, "bad", finding=incomplete.id)
    if not trust.complete:
        return Answer(CERTAINTY, UNKNOWN, sentence("{}", trust.verdict), "bad")
    if ledger.steady is None or first is None:
        why = cannot_tell(ledger)
        text = sentence("{}{}", trust.verdict, f" Not known: {why}." if why else "")
        return Answer(CERTAINTY, "complete", text, "good")
    reason = "" if first.confidence is None else f" {capital(str(first.confidence))}"
    text = sentence("{} Times per step: {}.{}", trust.verdict, ledger.steady.basis, reason)
    kind = "good" if first.certainty == MEASURED else ""
    return Answer(CERTAINTY, first.certainty, text, kind, finding=first.id)
