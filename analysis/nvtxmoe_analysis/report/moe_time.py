"""Time that MoE layers cost per steady step, and whether it is the time to look at."""

from __future__ import annotations

from collections.abc import Mapping

from nvtxmoe_analysis.report.commands import export_perfetto
from nvtxmoe_analysis.report.finding import NextStep
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.number_text import capital
from nvtxmoe_analysis.report.numbers import SourcedNumber, difference, percent, total
from nvtxmoe_analysis.report.own_time import own_column
from nvtxmoe_analysis.report.selected import filtered_out, some_layers
from nvtxmoe_analysis.report.sentences import Sentence, sentence, together
from nvtxmoe_analysis.report.steady import CORRELATION, LEAST_STEPS, STEP
from nvtxmoe_analysis.report.theme import CLASS_WORDS, CLASSES
from nvtxmoe_analysis.report.waterfall_bars import bar

COLLECTIVES = "collectives"
TIMINGS, COPIES = "layer_timings", ("memcpy_time_ns", "memset_time_ns")
#: Share of a step below which MoE layers are not the problem, and from which they are.
LITTLE_PCT, MUCH_PCT = 10.0, 30.0
#: Share of a step from which waiting for other ranks hides what the work is.
LONG_WAIT_PCT = 30.0
#: Classes of work outside the layers that are neither waiting nor ours.
OTHER_WORK = tuple(
    name for name in CLASSES if name not in ("moe layers", "collective", "waiting", "recording", "unplaced")
)


def cannot_tell(ledger: Ledger) -> str:
    """Return why there is no verdict on where a step's time goes, as a clause; empty if there can be one."""
    if why := filtered_out(ledger):
        return why
    if ledger.steady is None:
        return "the results have no GPU time of steps"
    many = len(ledger.steady.numbers)
    return "" if many >= LEAST_STEPS else f"too few steady steps: {many}, at least {LEAST_STEPS} needed"


def moe_parts(ledger: Ledger) -> dict[str, SourcedNumber]:
    """Return what MoE layers cost per steady step: ``own`` kernels, ``transfer`` in their collectives and waiting for
    ``uneven`` ranks. Waiting for other reasons is not theirs. Empty without GPU time; parts of 0 are left out."""
    if ledger.steady is None:
        return {}
    frame = ledger.source.loaded.frame(CORRELATION)
    own = ledger.per_step(CORRELATION, own_column(frame))
    bars = {"transfer": bar(ledger, "transfer"), "uneven": bar(ledger, "uneven_ranks")}
    return {"own": own, **{name: number for name, number in bars.items() if number is not None and number.value > 0}}


def beyond_parts(ledger: Ledger) -> dict[str, SourcedNumber]:
    """Return what the waterfall's total has beside ``moe_parts``, by what it is: copies, waiting for other reasons and
    collectives that could not be split. Empty if one of them is unknown; parts of 0 are left out."""
    correlation = None if ledger.steady is None else ledger.source.frame(CORRELATION, ["own_ns"])
    copies = ledger.source.frame(TIMINGS, COPIES)
    if correlation is None or copies is None or own_column(correlation) != "own_ns":
        return {}
    waits = [number for name in ("unequal_speed", "waiting") if (number := bar(ledger, name)) is not None]
    parts = {
        "copies": total(*(ledger.per_step(TIMINGS, name) for name in COPIES)),
        "waiting for other reasons": total(*waits) if waits else None,
        "collectives that could not be split": bar(ledger, "collectives_not_split"),
    }
    return {name: number for name, number in parts.items() if number is not None and number.value}


def moe_share(ledger: Ledger) -> SourcedNumber | None:
    """Return the share of a steady step that MoE layers cost; None if it is unknown."""
    parts, step = moe_parts(ledger), ledger.step_time
    if not parts or step is None or not step.value or some_layers(ledger):
        return None
    return percent(total(*parts.values()), step)


def how_sure(parts: Mapping[str, SourcedNumber]) -> Sentence:
    """Return which of ``moe_parts`` are measured."""
    if any(number.is_estimated for number in parts.values()):
        text = "kernels and transfer are measured, as nsys recorded them; waiting for uneven ranks is estimated."
        return sentence(text)
    return sentence("measured: kernels as nsys recorded them.")


def waiting(ledger: Ledger) -> SourcedNumber | None:
    """Return what ranks wait for one another per steady step, but for uneven ranks, which is in ``moe_parts``. None if
    it is unknown."""
    frame = ledger.source.frame(COLLECTIVES, ["wait_ns", "layer_idx"])
    if ledger.steady is None or frame is None or some_layers(ledger):
        return None
    wait, uneven = ledger.per_step(COLLECTIVES, "wait_ns"), moe_parts(ledger).get("uneven")
    remaining = wait if uneven is None else difference(wait, uneven)
    return remaining if remaining.value > 0 else None


def long_wait(ledger: Ledger) -> SourcedNumber | None:
    """Return ``waiting`` if it takes LONG_WAIT_PCT of a step or more."""
    wait, step = waiting(ledger), ledger.step_time
    if wait is None or step is None or not step.value:
        return None
    return wait if percent(wait, step).value >= LONG_WAIT_PCT else None


def share_without(ledger: Ledger, wait: SourcedNumber) -> SourcedNumber:
    """Return the share of MoE layers in a steady step less ``wait``. There is a ``moe_share``."""
    assert ledger.step_time is not None
    return percent(total(*moe_parts(ledger).values()), difference(ledger.step_time, wait))


def outside(ledger: Ledger) -> dict[str, SourcedNumber]:
    """Return what a steady step takes outside MoE layers by class, the longest first: ``other_work``, ``waiting`` and
    the other time of ``collective`` outside layers. Empty if the classes are unknown; classes of 0 are left out."""
    classes = other_work(ledger)
    if not classes or ledger.source.frame(CORRELATION, ["step_collective_ns"]) is None:
        return {}
    collective, wait = ledger.per_step(CORRELATION, "step_collective_ns", once=STEP), waiting(ledger)
    if wait is not None:
        classes["waiting"] = wait
        waited = ledger.per_step(COLLECTIVES, "wait_ns", where={"layer_idx": None})
        collective = difference(collective, waited) if waited.value > 0 else collective
    classes["collective"] = collective
    ranked = sorted(classes, key=lambda name: -classes[name].value)
    return {name: classes[name] for name in ranked if classes[name].value > 0}


def longest(classes: Mapping[str, SourcedNumber], step: SourcedNumber, max_classes: int) -> Sentence:
    """Return the first classes in words, with their shares of a step."""
    text, first = "{} ({}) for {}", list(classes.items())[:max_classes]
    return together([sentence(text, time, percent(time, step), CLASS_WORDS.get(name, name)) for name, time in first])


def look_at(ledger: Ledger, classes: Mapping[str, SourcedNumber], lead: str) -> NextStep:
    """Return the advice to look at the longest class, of ``other`` at the next. There is a class.

    Parameters:
        lead: see ``other_kinds.lead``.
    """
    name = next((name for name in classes if name != "other"), "other")
    return NextStep(
        "look elsewhere",
        capital(f"{lead}look at {CLASS_WORDS.get(name, name)} first."),
        sentence("at most {} less per step{} if it took no time at all.", classes[name], ledger.of_mean_rank),
        export_perfetto(ledger.source),
    )


def other_work(ledger: Ledger) -> dict[str, SourcedNumber]:
    """Return the work outside MoE layers per steady step by class, the longest first, without collectives."""
    frame = ledger.source.frame(CORRELATION, [f"step_{name}_ns" for name in OTHER_WORK])
    if ledger.steady is None or frame is None:
        return {}
    classes = {name: ledger.per_step(CORRELATION, f"step_{name}_ns", once=STEP) for name in OTHER_WORK}
    return {name: classes[name] for name in sorted(classes, key=lambda name: -classes[name].value)}
