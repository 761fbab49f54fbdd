"""Experts on several ranks without a GPU: what vLLM for CPUs 0.32 lacks, for try-outs of the scripts of this folder.

``engine_settings.ON_CPU`` brings it into each worker. vLLM for CPUs hands ids
of experts on other ranks to its kernel, which ends the process (SIGSEGV), and has no exchange of tokens between
data-parallel ranks (NotImplementedError). No measurement rests on this module.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

from scripts.gpu.placed_experts import PlacedExperts


class PlacedExpertsOnCpu(PlacedExperts):
    """Methods of ``PlacedExperts``. The import of its module changes vLLM."""


def local_experts(
    weights: torch.Tensor, ids: torch.Tensor, expert_map: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and local ids of the experts of each token; other ranks' experts get weight 0 and id 0.

    Parameters:
        weights: float of shape (tokens, top_k).
        ids: ids among all experts, int of shape (tokens, top_k).
        expert_map: local id of each expert, -1 for those of other ranks, int of shape (experts,).
    """
    local = expert_map.to(ids.device)[ids.long()].to(ids.dtype)
    return weights.masked_fill(local < 0, 0), local.clamp(min=0)


def all_gatherv(
    self: Any, input_: torch.Tensor | list[torch.Tensor], _dim: int = 0, sizes: list[int] | None = None
) -> torch.Tensor | list[torch.Tensor]:
    """Return the rows of all ranks, in the order of ranks; of a list, of each tensor."""
    if isinstance(input_, list):
        return [all_gatherv(self, tensor, _dim, sizes) for tensor in input_]
    rows = list(sizes or [len(input_)] * self.world_size)
    padded = input_.new_zeros((max(rows), *input_.shape[1:]))
    padded[: len(input_)] = input_
    parts = [torch.empty_like(padded) for _ in rows]
    torch.distributed.all_gather(parts, padded, group=self.device_group)
    return torch.cat([part[:number] for part, number in zip(parts, rows, strict=True)])


def reduce_scatterv(self: Any, input_: torch.Tensor, _dim: int = -1, sizes: list[int] | None = None) -> torch.Tensor:
    """Return this rank's rows of the sum over ranks, added up in float32."""
    rows = list(sizes or [len(input_) // self.world_size] * self.world_size)
    total = input_.to(torch.float32, copy=True)
    torch.distributed.all_reduce(total, group=self.device_group)
    first = sum(rows[: self.rank_in_group])
    return total[first : first + rows[self.rank_in_group]].to(input_.dtype)


def install() -> None:
    """Change vLLM's classes in this process, once."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe  # noqa: PLC0415

    CpuCommunicator.all_gatherv = all_gatherv
    CpuCommunicator.reduce_scatterv = reduce_scatterv
    for experts in list(vars(cpu_moe).values()):
        apply = vars(experts).get("apply") if inspect.isclass(experts) else None
        if apply is not None and experts.__module__ == cpu_moe.__name__ and not hasattr(apply, "__wrapped__"):
            experts.apply = _with_local_experts(apply)


def _with_local_experts(apply: Any) -> Any:
    signature = inspect.signature(apply)

    @functools.wraps(apply)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        words = call.arguments
        if words.get("expert_map") is not None:
            words["topk_weights"], words["topk_ids"] = local_experts(
                words["topk_weights"], words["topk_ids"], words["expert_map"]
            )
        return apply(*call.args, **call.kwargs)

    return wrapped


install()
