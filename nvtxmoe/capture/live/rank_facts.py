"""Facts of moe.meta that live metrics need: the process's place in the run, and its layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LayerFacts:
    """One layer.

    Attributes:
        slots: experts that ranks share: physical ones where EPLB is on.
        first_slots: of each rank the first slot that it holds, int64 [ep_size]; None where that is not known.
    """

    layer: int
    experts: int
    slots: int
    first_slots: Ints | None


@dataclass(frozen=True)
class RankFacts:
    """One process.

    Attributes:
        eplb: whether the slots of ranks are physical experts.
        hidden, failed: layers whose routing can't be seen, and hooks that are off.
    """

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    ep_rank: int
    ep_size: int
    dp_size: int
    eplb: bool
    layers: tuple[LayerFacts, ...]
    hidden: int
    failed: int
    extra: Mapping[str, str]

    @property
    def counts_layers(self) -> bool:
        """Whether its counts are added up: the other ranks of a tensor-parallel group see the same tokens."""
        return self.tp_rank == 0

    @property
    def counts_tokens(self) -> bool:
        """Whether its tokens are added up: all stages of a pipeline see the same ones."""
        return self.rank % max(1, self.world_size // self.dp_size) == 0

    def layers_alike(self, other: RankFacts) -> bool:
        """Whether sums of the one can go on with those of the other."""
        own_layers, other_layers = (
            [(layer.layer, layer.experts, layer.slots) for layer in facts.layers] for facts in (self, other)
        )
        return own_layers == other_layers and self.ep_size == other.ep_size


def rank_facts(meta: bytes) -> RankFacts:
    """Read moe.meta.

    Raises:
        ValueError, KeyError: it is not what ``run_identity.meta_text`` makes.
    """
    document = json.loads(meta)
    ep_rank, ep_size = int(document["ep_rank"]), int(document["ep_size"])
    eplb = bool(document.get("eplb"))
    layers = tuple(_layer(layer, ep_rank, ep_size, eplb) for layer in document["layers"])
    capture = document.get("capture") or {}
    return RankFacts(
        rank=int(document["rank"]),
        world_size=int(document["world_size"]),
        tp_rank=int(document["tp_rank"]),
        tp_size=int(document["tp_size"]),
        ep_rank=ep_rank,
        ep_size=ep_size,
        dp_size=int(document.get("dp_size") or 1),
        eplb=eplb,
        layers=tuple(sorted(layers, key=lambda layer: layer.layer)),
        hidden=len(capture.get("hidden_layers", ())),
        failed=len(capture.get("failures", ())),
        extra={key: str(document.get(key, "")) for key in ("nvtxmoe", "vllm", "model")},
    )


def _layer(entry: Mapping[str, Any], ep_rank: int, ep_size: int, eplb: bool) -> LayerFacts:
    experts = int(entry["num_experts"])
    slots = int(entry.get("num_physical_experts") or experts) if eplb else experts
    return LayerFacts(int(entry["layer"]), experts, slots, _blocks(entry.get("local_experts"), slots, ep_rank, ep_size))


def _blocks(local: list[int] | None, slots: int, ep_rank: int, ep_size: int) -> Ints | None:
    """Contiguous blocks, the first ranks one more where they don't divide: vLLM's default. None where the experts of
    this rank are others, or not known."""
    if ep_size == 1:
        return np.zeros(1, dtype=np.int64)
    if local is None or ep_size > slots:
        return None
    sizes = np.full(ep_size, slots // ep_size, dtype=np.int64)
    sizes[: slots % ep_size] += 1
    first = np.cumsum(sizes) - sizes
    own_experts = range(int(first[ep_rank]), int(first[ep_rank] + sizes[ep_rank]))
    return first if sorted(local) == list(own_experts) else None
