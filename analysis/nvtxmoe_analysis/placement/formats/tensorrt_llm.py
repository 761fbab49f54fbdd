"""TensorRT-LLM's ``moe_config.load_balancer``: YAML with ``num_slots`` and ``initial_global_assignments``.

``initial_global_assignments`` has by number of the layer the experts by slot, rank by rank
(llmapi/llm_args.py, MoeLoadBalancerConfig; examples/wide_ep/ep_load_balancer). ``layer_updates_per_iter: 0`` keeps
them.
"""

from __future__ import annotations

from nvtxmoe_analysis.placement.formats import Placement

SUFFIX = ".tensorrt_llm.yaml"


def dump(placement: Placement) -> str:
    """Return the configuration."""
    _, slots = placement.slots()
    lines = "".join(f"  {number}: {layout.order.tolist()}\n" for number, layout in sorted(placement.layers.items()))
    return f"num_slots: {slots}\ninitial_global_assignments:\n{lines}layer_updates_per_iter: 0\n"
