"""Router logits held by reference, where a kernel routes inside itself: the experts are computed after the forward."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from nvtxmoe.capture.recording.routing_rule import Chosen, RoutingRule, choose
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RouterLogits:
    """The logits of a layer, by reference: the memory stays as it was while this is held.

    Attributes:
        logits: [rows, num_experts], floating; rows past the step's tokens are padding.
        bias: [num_experts], the correction bias of the choice; None without one.
        table: [vocabulary, top_k], experts by token id; None unless a hash table routes.
        input_ids: [rows], with a table.
        start: first row that is this rank's.
        token_offset: the step's token in that row, 0 unless the step runs as micro-batches.
    """

    layer: int
    num_experts: int
    top_k: int
    logits: torch.Tensor
    rule: RoutingRule
    bias: torch.Tensor | None = None
    table: torch.Tensor | None = None
    input_ids: torch.Tensor | None = None
    start: int = 0
    token_offset: int = 0

    @property
    def held_bytes(self) -> int:
        """Memory that this keeps from being used again."""
        return int(self.logits.numel() * self.logits.element_size())

    @property
    def own_rows(self) -> int:
        """Rows from the first own one on."""
        return int(self.logits.shape[0]) - self.start

    @property
    def is_cuda(self) -> bool:
        """Whether a GPU has it."""
        return bool(self.logits.is_cuda)

    def without_weights(self) -> RouterLogits:
        """There is nothing to let go."""
        return self

    def starting_at(self, start: int) -> RouterLogits:
        """The same with another first own row."""
        return self if start == self.start else replace(self, start=start)

    def chosen(self, num_tokens: int) -> Chosen:
        """Choose experts for the step's tokens with PyTorch's operations."""
        rows = slice(self.start, self.start + num_tokens)
        tokens = None if self.input_ids is None else self.input_ids[rows]
        return choose(self.logits[rows], self.top_k, self.rule, self.bias, self.table, tokens)

    def as_ids(self, num_tokens: int) -> RoutingTensors:
        """The step's tokens as a router would have given them."""
        choice = self.chosen(num_tokens)
        return RoutingTensors(self.layer, self.num_experts, choice.ids, choice.weights)


#: What is known of a layer's routing in a step.
Routed: TypeAlias = RoutingTensors | RouterLogits


@dataclass(frozen=True)
class SameRuleLogits:
    """Logits of layers that are alike, counted together."""

    members: tuple[RouterLogits, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the layers."""
        return tuple(member.layer for member in self.members)


def alike_logits(routed: Iterable[Routed]) -> tuple[SameRuleLogits, ...]:
    """Logits by rule, number of experts, top_k, dtypes, strides and device."""
    groups: dict[tuple[Any, ...], list[RouterLogits]] = {}
    for logits in routed:
        if isinstance(logits, RouterLogits):
            shape = (
                logits.num_experts,
                logits.top_k,
                logits.rule,
                logits.logits.dtype,
                logits.logits.stride(),
                logits.logits.device,
            )
            key = (*shape, None if logits.bias is None else logits.bias.dtype, logits.table is None)
            groups.setdefault(key, []).append(logits)
    return tuple(SameRuleLogits(tuple(members)) for members in groups.values())


def only_ids(routed: Iterable[Routed]) -> tuple[RoutingTensors, ...]:
    """Those of which the router's own ids are held."""
    return tuple(tensors for tensors in routed if isinstance(tensors, RoutingTensors))


def overwritten(routed: Iterable[Routed]) -> set[int]:
    """Layers whose logits share memory: a compiled program used it again, so that it holds the last of them only."""
    spans = sorted(
        (logits.logits.data_ptr(), logits.held_bytes, logits.layer)
        for logits in routed
        if isinstance(logits, RouterLogits)
    )
    layers: set[int] = set()
    for (at, size_bytes, layer), (following, _, other) in itertools.pairwise(spans):
        if following < at + size_bytes:
            layers |= {layer, other}
    return layers
