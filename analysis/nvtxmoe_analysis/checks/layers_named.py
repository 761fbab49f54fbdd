"""moe.meta names every MoE layer of the model."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed, warned
from nvtxmoe_analysis.core.text import number, spans
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 41
EXPORTS_ONLY = False

NAME = "layers_named"


def check(results: RunMetrics) -> Check:
    """The layers of moe.meta are as many as it says, and those that have ranges (moe.layer.N).

    A layer may have ranges and not be in moe.meta: NVTXMOE_LAYERS leaves layers out. ``model_layers`` of moe.meta tells
    how many; without it, a range of an unnamed layer is worth knowing.
    """
    processes = named_processes = 0
    wrong: list[str] = []
    unclear: list[str] = []
    for report in results.reports:
        for pid, meta in report.metas.items():
            processes += 1
            named_processes += type(meta.raw.get("num_layers")) is int
            ranged = {layer for of, layer in report.range_gaps.layers_seen if of == pid}
            problem, sure = _problem(meta, sorted(ranged - set(meta.layers)))
            if problem:
                (wrong if sure else unclear).append(f"{problem} (rank {meta.rank})")
    evidence = {"processes": processes, "without_number": processes - named_processes, "contradictions": len(wrong)}
    if wrong:
        return failed(NAME, f"Layers are missing from moe.meta: {wrong[0]}.", **evidence)
    if unclear:
        return warned(
            NAME,
            f"{unclear[0].capitalize()}. Its moe.meta does not contain whether NVTXMOE_LAYERS left them out.",
            **evidence,
        )
    if not named_processes:
        return not_applicable(NAME, "No moe.meta contains the number of its layers.", **evidence)
    return passed(NAME, f"moe.meta of {number(named_processes, 'process', 'processes')} names every layer.", **evidence)


def _problem(meta: Meta, unnamed: list[int]) -> tuple[str, bool]:
    """What contradicts the list of layers, empty if nothing does, and whether that is certain."""
    listed, in_model = meta.raw.get("num_layers"), meta.raw.get("model_layers")
    if type(listed) is int and listed != len(meta.layers):
        return f"it names {len(meta.layers)} of {number(listed, 'layer')}", True
    named = f"{'layer' if len(unnamed) == 1 else 'layers'} {spans(unnamed)}"
    verb = "has" if len(unnamed) == 1 else "have"
    ranges = f"{named} {verb} ranges and {'is' if len(unnamed) == 1 else 'are'} not named"
    if type(in_model) is not int:
        return (ranges, False) if unnamed else ("", True)
    left_out = in_model - len(meta.layers)
    if left_out < 0:
        return f"it names {number(len(meta.layers), 'layer')} of a model with {in_model}", True
    return (ranges, True) if len(unnamed) > left_out else ("", True)
