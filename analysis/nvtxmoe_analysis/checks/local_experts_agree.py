"""Each expert lies on one expert-parallel rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed
from nvtxmoe_analysis.events.meta import Layer
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.run.expert_placement import ExpertGroup, expert_groups

ORDER = 44
EXPORTS_ONLY = False

NAME = "local_experts_agree"
#: Contradictions that a message contains.
MOST_TOLD = 3


def check(results: RunMetrics) -> Check:
    """local_experts of moe.meta names existing experts, each once, and no expert on two ranks.

    If all ranks of an expert-parallel group are in the inputs, every expert is on one of them.
    """
    metas = [report.metas for report in results.reports]
    lists = sum(layer.local_experts is not None for of in metas for m in of.values() for layer in m.layers.values())
    contradictions = [text for group in expert_groups(metas) for text in _contradictions(group)]
    evidence: dict[str, JsonValue] = {"lists": lists, "contradictions": len(contradictions)}
    if contradictions:
        more = f"; and {len(contradictions) - MOST_TOLD:,} more" if len(contradictions) > MOST_TOLD else ""
        return failed(
            NAME, f"local_experts of moe.meta can't be: {'; '.join(contradictions[:MOST_TOLD])}{more}.", **evidence
        )
    if not lists:
        return not_applicable(NAME, "No moe.meta contains local_experts.", **evidence)
    return passed(NAME, "local_experts name existing experts, each on one rank.", **evidence)


def _contradictions(group: ExpertGroup) -> Iterator[str]:
    for number in sorted({number for meta in group.metas for number in meta.layers}):
        meta_layers = [(meta, meta.layers[number]) for meta in group.metas if number in meta.layers]
        where: dict[int, int] = {}
        listing_ranks = 0
        for meta, layer in meta_layers:
            slots = _slots(layer)
            if layer.local_experts is None:
                continue
            listing_ranks += 1
            at = f"layer {number} of rank {meta.rank}"
            outside = [expert for expert in layer.local_experts if not 0 <= expert < slots]
            twice = [expert for expert, times in Counter(layer.local_experts).items() if times > 1]
            if outside:
                yield f"{at} names expert {outside[0]} of {slots}"
            if twice:
                yield f"{at} names expert {twice[0]} twice"
            if group.ep_size > 1:
                shared = [expert for expert in layer.local_experts if where.get(expert, meta.rank) != meta.rank]
                if shared:
                    yield f"expert {shared[0]} of layer {number} is on ranks {where[shared[0]]} and {meta.rank}"
                where.update(dict.fromkeys(layer.local_experts, meta.rank))
        if listing_ranks == group.ep_size > 1 and (absent := _slots(meta_layers[0][1]) - len(where)) > 0:
            yield f"{absent:,} of {_slots(meta_layers[0][1])} experts of layer {number} are on no rank"


def _slots(layer: Layer) -> int:
    return layer.num_physical or layer.num_experts
