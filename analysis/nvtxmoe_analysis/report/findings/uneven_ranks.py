"""Finding: ranks get uneven work by routing, and what another placement of experts would save."""

from __future__ import annotations

from typing import Any

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.placement.document import verdict_document
from nvtxmoe_analysis.placement.predict import LEAST_GAIN_PCT, place
from nvtxmoe_analysis.placement.run_data import DECODE, PHASE_WORDS, PREFILL
from nvtxmoe_analysis.placement.verdict import CANNOT_TELL, EPLB, WORTH
from nvtxmoe_analysis.report import commands
from nvtxmoe_analysis.report.finding import COST, NOTE, WEAK, Finding, NextStep, Stake, stake
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.number_text import shown
from nvtxmoe_analysis.report.numbers import SourcedNumber, interval_words, percent
from nvtxmoe_analysis.report.selected import filters
from nvtxmoe_analysis.report.sentences import Sentence, sentence
from nvtxmoe_analysis.report.steady import CORRELATION
from nvtxmoe_analysis.report.waterfall_bars import bar

ID = "uneven-ranks"
#: The page that says how to apply a placement.
MOVE_EXPERTS = "docs/how-to/move-experts.md"
ORDER = 2
MEANING = (
    "Hot experts give some ranks more work, and the others wait. At stake: what `nvtxmoe place` predicts that another "
    "placement saves, or, if it cannot tell, what even loads would save (`uneven_ranks` of `moe_waterfall`)."
)

TOPIC = "Uneven ranks"
RENUMBER = (
    "Renumber the checkpoint's experts by {}.vllm.json, which the command writes "
    f"({MOVE_EXPERTS}). Then record the same load again."
)
REARRANGE = f"Turn on vLLM's EPLB: --enable-eplb ({MOVE_EXPERTS}). Then record the same load again."
SAME_REQUESTS = (
    "The interval is for the requests of this capture: a step has mostly the requests of the step before. Record many "
    "requests to know it for your traffic."
)
MOVING = (
    "What moving the weights costs is not in it; `nvtxmoe place --link-gbs GB_PER_S` counts it for weights that move "
    "again and again."
)
FITTED = (
    "a formula for the ranks' own time, fitted to one half of the steps, predicts the other half; the interval is how "
    "much the saving scatters from step to step."
)
ALL = "Analyse the capture without filters: placements are predicted from all ranks, layers and steps."
EXACT = "Record a longer run of the same load (300 decode steps or more), and ask `nvtxmoe place` again."


def find(ledger: Ledger) -> list[Finding]:
    """Return what uneven loads cost. Placements are predicted only if even loads could save LEAST_GAIN_PCT."""
    frame = ledger.source.frame(CORRELATION)
    if frame is None or frame["rank"].n_unique() < 2 or ledger.step_time is None:
        return []
    even = bar(ledger, "uneven_ranks")
    if even is not None and percent(even, ledger.step_time).value < LEAST_GAIN_PCT:
        return [_even(ledger, stake(even, ledger.step_time))]
    try:
        verdict = ledger.source.once(ID, lambda: verdict_document(place(ledger.source.loaded)))
    except NvtxmoeError as error:
        ledger.source.absent["placement"] = f"what rebalancing experts would save: {error.what}"
        return [] if even is None else [_measured(ledger, stake(even, ledger.step_time), error.what)]
    return _of_verdict(ledger, verdict, None if even is None else stake(even, ledger.step_time))


def _even(ledger: Ledger, at_stake: Stake) -> Finding:
    """Return that ranks are even enough."""
    assert ledger.steady is not None
    text = "Loads of the ranks are even: equal ones would save about {} per {} of the mean rank{}."
    headline = sentence(text, at_stake.per_step, ledger.steady.noun, interval_words(at_stake.per_step))
    confidence = sentence("what ranks waited in their layers' collectives for the one with most work.")
    return Finding(TOPIC, headline, [], confidence, NOTE, "stragglers", at_stake, first_screen=headline)


def _measured(ledger: Ledger, at_stake: Stake, reason: str, aside: Sentence | None = None) -> Finding:
    """Return what even loads would save, where no placement is predicted.

    Parameters:
        aside: for the first screen.
    """
    assert ledger.steady is not None
    text = "Uneven loads of the ranks cost {} per {} of the mean rank{}."
    headline = sentence(text, at_stake.per_step, ledger.steady.noun, interval_words(at_stake.per_step))
    details = [sentence("What another placement would save cannot be told: {}.", reason.rstrip("."))]
    text = "about {} less per step of the mean rank if loads were perfectly even."
    expected = sentence(text, at_stake.per_step)
    confidence = sentence("what ranks waited in their layers' collectives for the one with most work.")
    kind = COST if at_stake.matters else NOTE
    next_step = NextStep("predict placements", EXACT, expected, commands.place(ledger.source))
    if filters(ledger):
        next_step = NextStep("analyse all", ALL, expected, commands.analyze_all(ledger.source))
    return Finding(TOPIC, headline, details, confidence, kind, "stragglers", at_stake, next_step, first_screen=aside)


def _of_verdict(ledger: Ledger, verdict: dict[str, Any], even: Stake | None) -> list[Finding]:
    """Return the finding in the words of ``nvtxmoe place``, with its numbers for the phase of the steady steps."""
    assert ledger.steady is not None
    several = len(verdict["phases"]) > 1
    confidence = sentence("{}{}", "Over all kinds of steps: " if several else "", verdict["sentence"])
    phase = PREFILL if ledger.steady.kind in ("prefill", "mixed") else DECODE
    noun, saved = ledger.steady.noun, _predicted(ledger, verdict, phase, "net_saved")
    if verdict["answer"] == WORTH and saved is not None and saved.per_step.value > 0:
        time = saved.per_step
        headline = sentence("Rebalancing experts saves {} per {}{}: worth it.", time, noun, interval_words(time))
        step = _valued_step(ledger, verdict, phase)
        of_step = sentence("") if step is None else sentence(" of {}", step)
        text = "{}{} less per step, predicted for steps that were not used for the fit."
        expected = sentence(text, time, of_step)
        chosen = str(verdict["placement"])
        action = REARRANGE if chosen == EPLB else RENUMBER.format(chosen)
        next_step = NextStep("rebalance experts", action, expected, commands.place(ledger.source))
        text = "Predicted for {} {} steps that were not used for the fit; these take {} each (mean)."
        valued = f"{verdict['phases'][phase]['steps_valued']:,}"
        details = [] if step is None else [sentence(text, valued, PHASE_WORDS[phase], step)]
        details += [] if chosen == EPLB else _eplb(ledger, verdict, phase)
        details += [*(_over_all(ledger, verdict) if several else []), sentence(SAME_REQUESTS)]
        details += [sentence(MOVING)] if chosen == EPLB else []
        confidence = sentence(FITTED)
        return [
            Finding(TOPIC, headline, details, confidence, COST, "stragglers", saved, next_step, first_screen=headline)
        ]
    at_most = _predicted(ledger, verdict, phase, "saves_at_most")
    headline = sentence("Whether another placement of experts saves time in {}s cannot be told.", noun)
    if at_most is not None:
        text = "Rebalancing experts saves at most {} per {}: {}."
        headline = sentence(text, at_most.per_step, noun, verdict["answer"])
    if verdict["answer"] == CANNOT_TELL and even is not None and even.matters:
        return [_measured(ledger, even, str(verdict["sentence"]), headline)]
    kind = WEAK if verdict["answer"] == CANNOT_TELL or at_most is None else NOTE
    return [Finding(TOPIC, headline, [], confidence, kind, "stragglers", at_most, first_screen=headline)]


def _eplb(ledger: Ledger, verdict: dict[str, Any], phase: str) -> list[Sentence]:
    """Return what vLLM's EPLB saves per step of a phase, which is not what the verdict's placement saves."""
    saved = _number(ledger, verdict["phases"][phase], f"phases.{phase}.", "eplb_net_saved")
    if saved is None:
        return []
    text = "The other way, vLLM's EPLB (--enable-eplb), saves {} per step{}, less the time of its own kernels."
    return [sentence(text, saved, interval_words(saved))]


def _number(ledger: Ledger, values: dict[str, Any], prefix: str, name: str) -> SourcedNumber | None:
    """Return a time of the verdict with its interval; None if it is unknown. No file holds it, it is predicted."""
    value, low, high = (values.get(f"{name}{end}_ns") for end in ("", "_low", "_high"))
    if value is None:
        return None
    key, unit = f"{prefix}{name}_ns", ledger.time_unit
    interval = None if low is None or high is None else (float(low), float(high))
    file, text = ledger.source.file(CORRELATION), shown(float(value), key, unit)
    return SourcedNumber(float(value), text, file, key, "predicted", interval=interval, time_unit=unit)


def _over_all(ledger: Ledger, verdict: dict[str, Any]) -> list[Sentence]:
    """Return what the placement saves per step of all phases together."""
    kinds, saved = ", ".join(PHASE_WORDS[name] for name in verdict["phases"]), _number(ledger, verdict, "", "net_saved")
    if saved is None:
        return []
    return [sentence("Over {} steps together it saves {} per step{}.", kinds, saved, interval_words(saved))]


def _predicted(ledger: Ledger, verdict: dict[str, Any], phase: str, name: str) -> Stake | None:
    """Return a time of the verdict per step of a phase, as a share of the steps that were valued; None if the phase
    has none."""
    time = _number(ledger, verdict["phases"].get(phase, {}), f"phases.{phase}.", name)
    if time is None or ledger.step_time is None:
        return None
    step = _valued_step(ledger, verdict, phase)
    return stake(time, ledger.step_time if step is None else step)


def _valued_step(ledger: Ledger, verdict: dict[str, Any], phase: str) -> SourcedNumber | None:
    """Return the GPU time of the steps that placements were valued on; they may be longer than the steady ones."""
    return _number(ledger, verdict["phases"].get(phase, {}), f"phases.{phase}.", "step_gpu")
