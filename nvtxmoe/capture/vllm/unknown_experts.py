"""Names the classes of experts in a model that no hook sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from nvtxmoe.capture.vllm.moe_layer import MoeLayer

#: Part of a layer's shared experts, which every token uses: nothing is routed to them.
SHARED = "Shared"
#: In the name of a class of experts.
NAMED = "Experts"


def unknown_experts(model: Any, layers: Iterable[MoeLayer]) -> dict[str, int]:
    """Return how many modules of each class look like routed experts and are part of no known layer.

    Parameters:
        model: the target model, with ``named_modules``; any other object has none.
    """
    if not hasattr(model, "named_modules"):
        return {}
    modules: dict[str, Any] = dict(model.named_modules())
    keys = {id(part) for layer in layers for part in (layer.key, layer.experts)}
    known = {name for name, module in modules.items() if id(module) in keys}
    candidates = {
        name: module for name, module in modules.items() if _looks_like_experts(module) and not _related(name, known)
    }
    if any(NAMED in type(module).__name__ for module in candidates.values()):  # routers have the same numbers
        candidates = {name: module for name, module in candidates.items() if NAMED in type(module).__name__}
    # Of a block and the experts inside, the experts are meant.
    innermost = [name for name in candidates if not any(other.startswith(f"{name}.") for other in candidates)]
    return dict(Counter(type(candidates[name]).__name__ for name in innermost))


def _looks_like_experts(module: Any) -> bool:
    name = type(module).__name__
    if SHARED in name:
        return False
    numbers = (getattr(module, "num_experts", None), getattr(module, "top_k", None))
    return NAMED in name or all(type(number) is int and number > 0 for number in numbers)


def _related(name: str, known: set[str]) -> bool:
    """Whether a module is the model itself, holds a known layer, or is in the block of one (its gate, for example)."""
    blocks = {other.rpartition(".")[0] or other for other in known}
    return (
        not name
        or any(other.startswith(f"{name}.") for other in known)
        or any(name == block or name.startswith(f"{block}.") for block in blocks)
    )
