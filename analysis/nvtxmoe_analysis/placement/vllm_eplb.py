"""Facts about vLLM's EPLB that decide whether a predicted gain can be had with it. Read in vLLM 0.33.0."""

from __future__ import annotations

from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.placement.predict import TODAY, Prediction

VERSION = "0.33"
#: distributed/eplb/eplb_state.py, rearrange: the relative fall of max/mean below which nothing is rearranged.
LEAST_FALL = 0.05
#: The algorithm that stands for EPLB's.
EPLB = "redundant"


def imbalance(rank_tokens: Floats) -> float:
    """Return vLLM's measure: the largest rank's tokens over the mean rank's, all layers added up first.

    Parameters:
        rank_tokens: float64 [layers, ranks].
    """
    loads = rank_tokens.sum(axis=0)
    return float(loads.max() / loads.mean()) if loads.sum() > 0 else 1.0


def considered(prediction: Prediction) -> list[str]:
    """Return what of vLLM's EPLB bears on the verdict, in sentences."""
    facts = []
    threshold = (
        f"vLLM {VERSION}'s EPLB leaves experts where they are if max/mean of the ranks' tokens, all layers added up, "
        f"would fall by less than {100 * LEAST_FALL:.0f} %, but only on ROCm and without use_async; elsewhere it "
        "rearranges at each step_interval, whatever it gains."
    )
    others = [placement for placement in prediction.placements if placement.reason is None and placement.name != TODAY]
    if others:
        like_eplb = next((placement for placement in others if placement.name == EPLB), others[-1])
        before, after = (imbalance(placement.rank_tokens) for placement in (prediction.find(TODAY), like_eplb))
        fall = 1 - after / before
        verb = "would" if fall >= LEAST_FALL else "would not"
        threshold += f" Here max/mean goes from {before:.3f} to {after:.3f} ({like_eplb.label}): that test {verb} pass."
    facts.append(threshold)
    modular = (
        f"EPLB in vLLM {VERSION} rules out monolithic kernels (most trtllm_* ones, gpt-oss's Triton kernel): a model "
        "that runs one changes to a modular kernel, whose time is not in this prediction."
    )
    if prediction.run.monolithic:
        modular += " This run has a monolithic kernel."
    facts.append(modular)
    ran, whose_kernels = (
        ("ran", "their kernels are") if prediction.run.eplb else ("did not run", "their kernels are not")
    )
    facts.append(f"EPLB maps ids and counts load in every layer: it {ran} here, so {whose_kernels} in the times.")
    return facts
