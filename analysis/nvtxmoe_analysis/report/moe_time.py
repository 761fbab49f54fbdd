"""Time that MoE layers cost per steady step, and whether it is the time to look at."""

from __future__ import annotations

from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import SourcedNumber, percent, total
from nvtxmoe_analysis.report.own_time import own_column
from nvtxmoe_analysis.report.selected import filtered_out, some_layers
from nvtxmoe_analysis.report.steady import CORRELATION, LEAST_STEPS, STEP
from nvtxmoe_analysis.report.theme import CLASSES
from nvtxmoe_analysis.report.waterfall_bars import bar

#: Share of a step below which MoE layers are not the problem, and from which they are.
LITTLE_PCT, MUCH_PCT = 10.0, 30.0
#: Classes of work outside the layers that are neither waiting nor ours.
OTHER_WORK = tuple(name for name in CLASSES if name not in ("moe layers", "collective", "recording", "unplaced"))


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


def moe_share(ledger: Ledger) -> SourcedNumber | None:
    """Return the share of a steady step that MoE layers cost; None if it is unknown."""
    parts, step = moe_parts(ledger), ledger.step_time
    if not parts or step is None or not step.value or some_layers(ledger):
        return None
    return percent(total(*parts.values()), step)


def other_work(ledger: Ledger) -> dict[str, SourcedNumber]:
    """Return the work outside MoE layers per steady step by class, the longest first, without collectives."""
    frame = ledger.source.frame(CORRELATION, [f"step_{name}_ns" for name in OTHER_WORK])
    if ledger.steady is None or frame is None:
        return {}
    classes = {name: ledger.per_step(CORRELATION, f"step_{name}_ns", once=STEP) for name in OTHER_WORK}
    return {name: classes[name] for name in sorted(classes, key=lambda name: -classes[name].value)}
