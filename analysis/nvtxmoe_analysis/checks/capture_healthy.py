"""Capture itself lost nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed, warned
from nvtxmoe_analysis.core.text import spans
from nvtxmoe_analysis.events.capture_state import CaptureState
from nvtxmoe_analysis.events.meta import Meta

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 80
EXPORTS_ONLY = False

NAME = "capture_healthy"
#: What is shown of a text and of a list in moe.meta.
MOST_TEXT, MOST_NAMES = 200, 10


def check(results: RunMetrics) -> Check:
    """No hook failed, no event was lost, no layer's routing was hidden, as far as the processes say.

    They say it in the last moe.meta and, later, at the end of their journal.
    """
    states = [state for report in results.reports for state in report.events.capture_states().values()]
    if not states:
        return not_applicable(NAME, "No process says how its capture went.")
    metas = [meta for report in results.reports for meta in report.metas.values()]
    changed = _changed_program(metas)
    unrecorded = _unrecorded(metas)
    if unrecorded or not all(state.healthy for state in states):
        return failed(NAME, " ".join([*sentences(states), *unrecorded, *changed]), **_evidence(states))
    if changed:
        return warned(NAME, " ".join(["No process reports a failure or a loss.", *changed]), processes=len(states))
    return passed(NAME, "No process reports a failure or a loss.", processes=len(states))


def _changed_program(metas: Sequence[Meta]) -> list[str]:
    reasons = {text for meta in metas if isinstance(text := meta.raw.get("changed_program"), str)}
    return [f"Capture changed the program that ran: {_one_line(text)[:MOST_TEXT]}." for text in sorted(reasons)]


def _unrecorded(metas: Sequence[Meta]) -> list[str]:
    """Experts of classes that no hook sees, by class; each rank of the run has the same ones."""
    unrecorded_classes = [classes for meta in metas if isinstance(classes := meta.raw.get("unrecorded_experts"), dict)]
    names = sorted({_one_line(name)[:MOST_TEXT] for classes in unrecorded_classes for name in classes})
    return [f"Experts of these classes are not recorded: {', '.join(names[:MOST_NAMES])}."] if names else []


def sentences(states: Sequence[CaptureState]) -> list[str]:
    """What went wrong, a sentence a kind; empty when nothing did."""
    texts = [
        f"No counts of {'layer' if len(layers) == 1 else 'layers'} {spans(layers)}: {_one_line(reason)}."
        for reason, layers in _hidden(states).items()
    ]
    lost = _lost(states)
    if lost:
        open_ended = {what for state in states if not state.ended for what in state.lost}
        numbers = {what: f"{'at least ' * (what in open_ended)}{count:,}" for what, count in lost.items()}
        texts.append(f"Capture lost {', '.join(f'{_one_line(what)} ({count})' for what, count in numbers.items())}.")
    failures = _failures(states)
    if failures:
        texts.append(f"Hooks that failed: {'; '.join(f'{hook}: {_one_line(why)}' for hook, why in failures.items())}.")
    return texts


def _evidence(states: Sequence[CaptureState]) -> Mapping[str, JsonValue]:
    return {
        "processes": len(states),
        "hidden_layers": {str(layer): reason for reason, layers in _hidden(states).items() for layer in layers},
        "lost": {**_lost(states)},
        "failures": {**_failures(states)},
        **({"ranks_changed": [*changes]} if (changes := ranks_changed(states)) else {}),
    }


def ranks_changed(states: Iterable[CaptureState]) -> list[str]:
    """Return each change of ranks or experts that a process reports, as its text, once."""
    return sorted({_one_line(change)[:MOST_TEXT] for state in states for change in state.ranks_changed})


def _hidden(states: Sequence[CaptureState]) -> dict[str, list[int]]:
    """Layers by reason, in order; tensor-parallel ranks hide the same ones."""
    layers_by_reason: dict[str, set[int]] = {}
    for state in states:
        for layer, reason in state.hidden.items():
            layers_by_reason.setdefault(reason, set()).add(layer)
    return {
        reason: sorted(layers) for reason, layers in sorted(layers_by_reason.items(), key=lambda item: min(item[1]))
    }


def _lost(states: Sequence[CaptureState]) -> dict[str, int]:
    total: dict[str, int] = {}
    for state in states:
        for what, count in state.lost.items():
            total[what] = total.get(what, 0) + count
    return dict(sorted(total.items()))


def _failures(states: Sequence[CaptureState]) -> dict[str, str]:
    return {hook: why for state in reversed(states) for hook, why in state.failures.items()}


def _one_line(text: str) -> str:
    """Without what would end the sentence, on one line."""
    return " ".join(text.split()).rstrip(".")
