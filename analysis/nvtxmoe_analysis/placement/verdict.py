"""One verdict in words: worth it, not worth it, cannot tell, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nvtxmoe_analysis.placement.phase import Phase
from nvtxmoe_analysis.placement.predict import TODAY, Prediction, Valued
from nvtxmoe_analysis.placement.run_data import PHASE_WORDS
from nvtxmoe_analysis.placement.valuing import CONFIDENCE, Estimate
from nvtxmoe_analysis.placement.vllm_eplb import considered

#: Name of the placement that vLLM's EPLB makes.
EPLB = "redundant"
WORTH, NOT_WORTH, CANNOT_TELL = "worth it", "not worth it", "cannot tell"
#: Share of loads beyond those that the fit saw, above which a gain is not believed.
MOST_OUTSIDE = 0.05
#: By how much the model may overstate how far today's ranks are apart.
MOST_OVERSTATED = 1.25


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        sentence: answer, number and reason in one sentence.
        placement: the one that saves most, or that the answer is about; None where none has a value.
        saves: what that one saves per step, net of moving where that is known.
        at_most_ns: no placement compared saves more per step, at 95 %; None where unknown.
        step_ns: GPU time of a step, what shares are of: the mean of the steps that were valued; None where unknown.
        considered: what of vLLM's EPLB was taken into account.
        phases: by phase, for numbers per step of that phase.
    """

    answer: str
    sentence: str
    placement: str | None
    saves: Estimate | None
    at_most_ns: float | None
    step_ns: float | None
    considered: list[str]
    phases: Mapping[str, InPhase] = field(default_factory=dict)


@dataclass(frozen=True)
class _Base:
    """Time that gains are a share of: that of the steps that were valued, or where it is unknown, of their MoE layers.

    Attributes:
        ns: the time, 0 where unknown.
        step_ns: the same if it is that of steps, else None.
        noun: in words.
    """

    ns: float
    step_ns: float | None
    noun: str


@dataclass(frozen=True)
class InPhase:
    """Times per step of a phase.

    Attributes:
        saves: what the verdict's placement saves, net of moving where that is known; None without a model.
        at_most_ns: no placement compared saves more, at 95 %; None where unknown.
        step_ns: GPU time of the steps that were valued: the mean over steps and ranks; None where unknown.
        steps: how many steps were valued.
        eplb: what vLLM's EPLB saves likewise, without its own kernels; None without a value.
    """

    saves: Estimate | None
    at_most_ns: float | None
    step_ns: float | None
    steps: int
    eplb: Estimate | None = None


def net(prediction: Prediction, placement: Valued) -> Estimate:
    """Return what a placement saves per step over all valued phases, less what moving costs where that is known."""
    saved = {name: sums.saved() for name, sums in placement.sums.items()}
    return _less_moving(prediction, placement, prediction.all_steps(saved))


def _less_moving(prediction: Prediction, placement: Valued, gross: Estimate) -> Estimate:
    options = prediction.options
    moving = placement.move.ns_per_step(options.link_gbs, options.rearrange_every) or 0.0
    return Estimate(gross.mean_ns - moving, gross.error_ns, gross.df)


def verdict(prediction: Prediction) -> Verdict:
    """Return the verdict over the placements compared with today's.

    It is worth it where a placement's interval lies above the least gain, not worth it where none reaches it, or where
    not even equal ranks would. The intervals are widened for the number of placements.
    """
    base = _base(prediction)
    least = prediction.options.least_gain_pct / 100 * base.ns
    measured = [phase for phase in prediction.phases.values() if phase.calibration is not None]
    bound = _bound(prediction, prediction.valued_phases or measured)
    others = [placement for placement in prediction.placements if placement.name != TODAY and placement.sums]
    if not prediction.valued_phases or not others:
        return _without_model(prediction, base, least, bound, measured)
    confidence = 1 - (1 - CONFIDENCE) / len(others)
    values = {placement.name: net(prediction, placement) for placement in others}
    ends = {name: value.interval(confidence) for name, value in values.items()}
    highest = max(others, key=lambda placement: ends[placement.name][1])
    at_most = max(0.0, min(ends[highest.name][1], bound))
    whose = "what equally fast ranks would save"
    if ends[highest.name][1] <= bound:
        whose = f"the upper end for {highest.label}, 95 % for all {len(others)} placements together"
    best = max(others, key=lambda placement: values[placement.name].mean_ns)
    doubt = _doubt(prediction, best)
    gains = [placement for placement in others if ends[placement.name][0] >= least >= 0 and ends[placement.name][0] > 0]
    if at_most < least:
        text = (
            f"Not worth it: rebalancing saves at most {_us(at_most)} per step ({whose}), {_pct(at_most, base)}"
            f"{_least(prediction)}{_left_out(prediction)}."
        )
        return _verdict(prediction, NOT_WORTH, text, best, values, at_most, base)
    if gains and doubt is None:
        chosen = max(gains, key=lambda placement: values[placement.name].mean_ns)
        value = values[chosen.name]
        low, high = value.interval()
        text = (
            f"Worth it: the placement {chosen.label} saves {_us(value.mean_ns)} per step (95 % interval {_us(low)} to "
            f"{_us(high)}), {_pct(value.mean_ns, base)}{_moving(prediction, chosen)}{_left_out(prediction)}."
        )
        return _verdict(prediction, WORTH, text, chosen, values, at_most, base)
    low, high = ends[best.name]
    why = doubt or (
        f"{_us(low)} to {_us(high)} (95 % for all {len(others)} placements together) reaches from below the least gain "
        f"of {_us(least)} to above it"
    )
    if low > high or not np.isfinite(low):
        why = "too few steps tell how much it scatters"
    text = (
        f"Cannot tell: the best placement ({best.label}) saves {_us(values[best.name].mean_ns)} per step, but {why}"
        f"{_left_out(prediction)}."
    )
    return _verdict(prediction, CANNOT_TELL, text, best, values, at_most, base)


def _verdict(
    prediction: Prediction,
    answer: str,
    text: str,
    chosen: Valued,
    values: dict[str, Estimate],
    at_most: float,
    base: _Base,
) -> Verdict:
    facts = considered(prediction)
    phases = {phase.name: _in_phase(prediction, phase, chosen) for phase in prediction.valued_phases}
    return Verdict(answer, text, chosen.name, values[chosen.name], at_most, base.step_ns, facts, phases)


def _in_phase(prediction: Prediction, phase: Phase, chosen: Valued) -> InPhase:
    others = [placement for placement in prediction.placements if placement.name != TODAY and placement.sums]
    confidence = 1 - (1 - CONFIDENCE) / len(others)

    def saves(placement: Valued) -> Estimate:
        return _less_moving(prediction, placement, placement.sums[phase.name].saved())

    ends = [saves(placement).interval(confidence)[1] for placement in others]
    at_most = max(0.0, min(max(ends), _bound(prediction, [phase])))
    eplb = next((saves(placement) for placement in others if placement.name == EPLB), None)
    valued = len(_valued_steps(prediction, phase))
    return InPhase(saves(chosen), _finite(at_most), _valued_ns(prediction, phase), valued, eplb)


def _valued_steps(prediction: Prediction, phase: Phase) -> set[int]:
    """Return the steps of the half that placements are valued on."""
    valued = zip(prediction.run.layers, phase.values, strict=True)
    return {step for layer, chosen in valued for step in layer.steps[chosen].tolist()}


def _valued_ns(prediction: Prediction, phase: Phase) -> float | None:
    steps = _valued_steps(prediction, phase)
    times = [prediction.run.time_ns[step] for step in steps & prediction.run.time_ns.keys()]
    return float(np.mean(times)) if times else None


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _without_model(
    prediction: Prediction, base: _Base, least: float, bound: float, measured: Sequence[Phase]
) -> Verdict:
    """Return the verdict where nothing could be predicted: how far today's ranks are apart may be enough."""
    reasons = "; ".join(
        f"{PHASE_WORDS[phase.name]} steps: {phase.reason}" for phase in prediction.phases.values() if phase.reason
    )
    facts = considered(prediction)
    phases = {
        phase.name: InPhase(
            None,
            _finite(_bound(prediction, [phase])),
            _valued_ns(prediction, phase),
            len(_valued_steps(prediction, phase)),
        )
        for phase in measured
    }
    if np.isfinite(bound) and bound < least:
        text = (
            f"Not worth it: ranks that all took the mean's time would save at most {_us(bound)} per step, "
            f"{_pct(bound, base)}{_least(prediction)}. What placements would cost can't be told ({reasons})."
        )
        return Verdict(NOT_WORTH, text, None, None, bound, base.step_ns, facts, phases)
    text = f"Cannot tell: {reasons}."
    return Verdict(CANNOT_TELL, text, None, None, _finite(bound), base.step_ns, facts, phases)


def _base(prediction: Prediction) -> _Base:
    valued = [(prediction.run.steps[phase.name], _valued_ns(prediction, phase)) for phase in prediction.valued_phases]
    if valued and all(time is not None for _, time in valued):
        mean = sum(many * (time or 0.0) for many, time in valued) / sum(many for many, _ in valued)
        return _Base(mean, mean, "the mean of these steps")
    if prediction.valued_phases:
        today = prediction.find(TODAY)
        layers = prediction.all_steps({name: sums.predicted() for name, sums in today.sums.items()}).mean_ns
        return _Base(layers, None, "the predicted time of their MoE layers")
    known = [time for time in prediction.run.step_ns.values() if time is not None]
    return _Base(min(known), min(known), "the mean of these steps") if known else _Base(0.0, None, "")


def _bound(prediction: Prediction, phases: Sequence[Phase]) -> float:
    """Return the upper end of what equal ranks would save per step of phases, as measured; infinite where unknown.

    A placement without replicas makes ranks equal at best. Where today's has replicas, one without them saves work too.
    """
    if any(sum(layer.slots) > layer.experts for layer in prediction.run.layers):
        return np.inf
    if not phases:
        return np.inf
    steps = [prediction.run.steps[phase.name] for phase in phases]
    ends = [phase.calibration.measured.interval()[1] if phase.calibration else np.inf for phase in phases]
    return float(sum(many * end for many, end in zip(steps, ends, strict=True)) / sum(steps))


def _doubt(prediction: Prediction, best: Valued) -> str | None:
    """Return why a gain of the placement is not to be believed."""
    outside = max(sums.outside for sums in best.sums.values())
    if outside > MOST_OUTSIDE:
        return f"{100 * outside:.0f} % of its loads are beyond those that were measured"
    for phase in prediction.valued_phases:
        calibration = phase.calibration
        assert calibration is not None
        if calibration.predicted_ns > MOST_OVERSTATED * max(0.0, calibration.measured.interval()[1]):
            return (
                f"in {PHASE_WORDS[phase.name]} steps the model has today's slowest ranks "
                f"{_us(calibration.predicted_ns)} per step above the mean, and measured are "
                f"{_us(calibration.measured.mean_ns)}"
            )
    return None


def _left_out(prediction: Prediction) -> str:
    unvalued = [phase for phase in prediction.phases.values() if phase.reason and prediction.run.steps[phase.name]]
    return "".join(f"; {PHASE_WORDS[phase.name]} steps are not in it ({phase.reason})" for phase in unvalued)


def _moving(prediction: Prediction, placement: Valued) -> str:
    options = prediction.options
    moving = placement.move.ns_per_step(options.link_gbs, options.rearrange_every)
    if moving is not None:
        return f", net of {_us(moving)} for moving weights every {options.rearrange_every:,} steps"
    reason = placement.move.reason or "add --link-gbs GB/S to count it"
    return f", without what moving the weights costs ({reason})"


def _least(prediction: Prediction) -> str:
    return f" (below the least gain of {prediction.options.least_gain_pct:g} %)"


def _pct(value: float, base: _Base) -> str:
    return f"{100 * value / base.ns:.2g} % of {base.noun}" if base.ns > 0 else "of a step of unknown length"


def _us(value: float) -> str:
    return f"{value / 1000:,.1f} us"
