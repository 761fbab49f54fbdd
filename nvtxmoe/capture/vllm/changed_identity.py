"""Notices that a worker's place in the run has changed without a load, as elastic expert parallelism changes it."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from nvtxmoe.capture.vllm.moe_layer import MoeLayer

#: Of vLLM's parallel_config.
RANKS = ("data_parallel_rank", "data_parallel_size", "world_size", "tensor_parallel_size")
#: Of a layer's moe_config, and of the moe_parallel_config in it.
EXPERTS, EXPERT_RANKS = ("num_experts", "num_local_experts"), ("ep_rank", "ep_size")
#: All of them in one call, which takes a fraction of the time: it is done in every step.
_ranks_of = attrgetter(*RANKS)
_experts_of = attrgetter(
    *(f"moe_config.{name}" for name in EXPERTS), *(f"moe_config.moe_parallel_config.{name}" for name in EXPERT_RANKS)
)


class Place:
    """Ranks, sizes and numbers of experts as they were when the identity was made.

    Parameters:
        worker: vLLM's worker; its parallel_config is changed in place.
        layers: the first one stands for all, which vLLM changes together.
    """

    def __init__(self, worker: Any, layers: Sequence[MoeLayer]) -> None:
        self._parallel = worker.vllm_config.parallel_config
        self._layer = layers[0].key if layers else None
        self._before = self._now()
        self._ranks, self._experts = self._before[: len(RANKS)], self._before[len(RANKS) :]

    def change(self) -> str | None:
        """Return what is different now, as ``data_parallel_size 2 -> 4``; None where nothing is."""
        try:
            if _ranks_of(self._parallel) == self._ranks and _experts_of(self._layer) == self._experts:
                return None
        except AttributeError:
            pass
        now = self._now()
        if now == self._before:
            return None
        return ", ".join(
            f"{name} {before} -> {after}"
            for name, before, after in zip((*RANKS, *EXPERTS, *EXPERT_RANKS), self._before, now, strict=True)
            if before != after
        )

    def _now(self) -> tuple[Any, ...]:
        try:
            return _ranks_of(self._parallel) + _experts_of(self._layer)
        except AttributeError:
            return self._each_or_none()

    def _each_or_none(self) -> tuple[Any, ...]:
        config = getattr(self._layer, "moe_config", None)
        ranks = getattr(config, "moe_parallel_config", None)
        return (
            *(getattr(self._parallel, name, None) for name in RANKS),
            *(getattr(config, name, None) for name in EXPERTS),
            *(getattr(ranks, name, None) for name in EXPERT_RANKS),
        )
