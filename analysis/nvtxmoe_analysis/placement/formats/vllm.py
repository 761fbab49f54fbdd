"""For vLLM, which takes no placement: the order in which to renumber a checkpoint's experts.

vLLM 0.33 has no option for one: without EPLB rank r holds a contiguous block of experts, with it experts begin in their
order (distributed/eplb/eplb_state.py, build_initial_global_physical_to_logical_map) and its own policy moves them. So
the experts themselves are renumbered: expert i of the new checkpoint is expert ``order[i]`` of the old one, with its
weights, its row of the gate, and its entry of a routing bias. vLLM's contiguous blocks are then this placement, with
the same kernels.
"""

from __future__ import annotations

import json

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.placement.formats import Placement

SUFFIX = ".vllm.json"


def dump(placement: Placement) -> str:
    """Return ``checkpoint_order``: by number of the layer the old number of each new expert.

    Raises:
        NvtxmoeError: there are redundant experts, or ranks have other numbers of experts than vLLM gives them.
    """
    for number, layout in placement.layers.items():
        if len(layout.order) != placement.experts[number]:
            raise NvtxmoeError("redundant experts, which a checkpoint can't hold")
        if (layout.sizes[:-1] < layout.sizes[1:]).any() or layout.sizes.max() - layout.sizes.min() > 1:
            raise NvtxmoeError("ranks have other numbers of experts than vLLM gives them")
    lines = ",\n  ".join(
        f'"{number}": {json.dumps(layout.order.tolist())}' for number, layout in sorted(placement.layers.items())
    )
    return f'{{"checkpoint_order": {{\n  {lines}\n}}}}\n'
