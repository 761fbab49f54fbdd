"""vLLM's own choice of experts, run again on router logits: for layers whose kernel routes inside."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

#: Kernels whose routing is triton_kernels' top-k with a softmax over the chosen.
TRITON_KERNELS = ("OAITritonMxfp4ExpertsMonolithic",)


def routing(runner: Any, kernel: str) -> tuple[Callable[[Any], tuple[Any, Any]], str]:
    """A function from logits [tokens, experts] to (weights, ids), both [tokens, top_k], and its name.

    Parameters:
        runner: vLLM's runner of the layer.
        kernel: the class that runs its experts.
    """
    if kernel in TRITON_KERNELS:
        renormalise = bool(getattr(runner.router, "renormalize", True))
        return lambda logits: triton_kernels_topk(logits, runner.router.top_k, renormalise), "triton_kernels.topk"
    compute = runner.router._compute_routing

    def by_router(logits: Any) -> tuple[Any, Any]:
        weights, ids = compute(logits, logits, None)
        return weights, ids

    return by_router, f"{type(runner.router).__name__}._compute_routing"


def triton_kernels_topk(logits: Any, top_k: int, renormalise: bool) -> tuple[Any, Any]:
    """The top-k that vLLM's gpt-oss kernel uses: (weights, ids), each row in ascending order of the experts."""
    import torch  # noqa: PLC0415
    from vllm.utils.import_utils import has_triton_kernels  # noqa: PLC0415

    if not has_triton_kernels():  # it also makes the name importable
        raise RuntimeError("this vLLM has no triton_kernels")
    topk = import_module("triton_kernels.topk").topk
    scores = logits.contiguous() if renormalise else torch.softmax(logits, dim=-1)
    chosen = topk(scores, top_k, apply_softmax=renormalise)
    weights, ids = (chosen[0], chosen[1]) if isinstance(chosen, tuple) else (chosen.vals, chosen.indx)
    return weights, ids


def tied(logits: Any, top_k: int) -> Any:
    """Rows whose k-th and (k+1)-th largest score are equal, [tokens] bool: either may have been chosen."""
    import torch  # noqa: PLC0415

    if logits.shape[1] <= top_k:
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    best = torch.topk(logits.float(), top_k + 1, dim=1).values
    return best[:, top_k - 1] == best[:, top_k]
