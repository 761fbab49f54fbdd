"""SGLang's ``--init-expert-location FILE.json``: ``physical_to_logical_map``, [hidden layers, physical experts].

SGLang (srt/eplb/expert_location.py, compute_initial_expert_location_metadata) passes every key of the file on as an
argument, so there is no other. It numbers all hidden layers: those without experts before the last get the trivial
placement. The server needs ``--ep-num-redundant-experts`` = physical - logical experts.
"""

from __future__ import annotations

import json

from nvtxmoe_analysis.placement.formats import Placement

SUFFIX = ".sglang.json"


def dump(placement: Placement) -> str:
    """Return the map, a row per hidden layer up to the last one with experts."""
    experts, slots = placement.slots()
    trivial = [slot % experts for slot in range(slots)]
    rows = [
        placement.layers[layer].order.tolist() if layer in placement.layers else trivial
        for layer in range(max(placement.layers) + 1)
    ]
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    return f'{{"physical_to_logical_map": [\n  {lines}\n]}}\n'
