"""An MoE layer as an adapter finds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvtxmoe.capture.vllm.monolithic import Way


@dataclass(frozen=True)
class MoeLayer:
    """An MoE layer of the loaded model, as an adapter finds it.

    Attributes:
        key: the object that the layer hook sees.
        experts: the module that holds the experts' weights.
        way: how a monolithic layer is recorded; None if it can't be, and for other layers.
    """

    key: Any
    layer_id: int
    name: str
    moe_config: Any
    router: Any
    experts: Any
    expert_map: Any
    monolithic: bool
    way: Way | None = None
