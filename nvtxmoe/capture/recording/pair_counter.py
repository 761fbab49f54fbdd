"""Exact co-selection: how often two experts were chosen by the same token, accumulated on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from nvtxmoe.capture.run_identity import Step
from nvtxmoe.formats import schema

if TYPE_CHECKING:
    import torch


@dataclass
class _Span:
    """Squares of some layers, [layers, experts, experts], on the device of the ids: only the upper triangles count."""

    layers: tuple[int, ...]
    first_step: int
    last_step: int
    num_tokens: int
    squares: Any
    event: Any = None


class PairCounts:
    """One square a layer, from ``begin`` to ``begin``; the finished ones arrive without anybody waiting."""

    def __init__(self) -> None:
        self._spans: dict[tuple[int, ...], _Span] = {}
        self._leaving: deque[_Span] = deque()

    def add(self, step: Step, routed: tuple[RoutingTensors, ...]) -> None:
        """Count the pairs of a step with PyTorch's operations, on the tensors' own device."""
        import torch  # noqa: PLC0415  only where there are tensors

        with torch.inference_mode():
            for tensors in routed:
                # Sums of ones are exact in float32 up to 2**24.
                (square,) = self._squares(
                    step, (tensors.layer,), tensors.num_experts, tensors.ids.device, torch.float32
                )
                ids = tensors.ids[tensors.start : tensors.start + step.num_tokens].to(torch.int64)
                inside = (ids >= 0) & (ids < tensors.num_experts)  # an index out of range would end a GPU's context
                chosen = torch.zeros(len(ids), tensors.num_experts, device=ids.device)
                chosen.scatter_reduce_(1, ids.clamp(0, tensors.num_experts - 1), inside.to(chosen.dtype), "amax")
                square.addmm_(chosen.t(), chosen)

    def add_group(
        self,
        step: Step,
        layers: tuple[int, ...],
        experts: int,
        device: torch.device,
        launch: Callable[[torch.Tensor], None],
    ) -> None:
        """Have ``launch`` add the pairs of a step to int32 squares [layers, experts, experts], on the device."""
        import torch  # noqa: PLC0415

        with torch.inference_mode():
            launch(self._squares(step, layers, experts, device, torch.int32))

    def _squares(
        self, step: Step, layers: tuple[int, ...], experts: int, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        import torch  # noqa: PLC0415

        span = self._spans.get(layers)
        if span is None or span.squares.dtype != dtype:
            if span is not None:
                self._leave(span)
            squares = torch.zeros(len(layers), experts, experts, dtype=dtype, device=device)
            span = self._spans[layers] = _Span(layers, step.number, step.number, 0, squares)
        span.last_step = step.number
        span.num_tokens += step.num_tokens
        pair_squares: torch.Tensor = span.squares
        return pair_squares

    def begin(self) -> None:
        """Close the spans, and begin new ones with the next step."""
        spans, self._spans = self._spans, {}
        for _, span in sorted(spans.items()):
            self._leave(span)

    def _leave(self, span: _Span) -> None:
        import torch  # noqa: PLC0415

        if span.squares.is_cuda:
            with torch.inference_mode():
                host = torch.empty(span.squares.shape, dtype=span.squares.dtype, pin_memory=True)
                host.copy_(span.squares, non_blocking=True)
            span.squares, span.event = host, torch.cuda.Event()
            span.event.record()
        self._leaving.append(span)

    def arrived(self, rank: int, wait: bool = False) -> Iterator[Any]:
        """Payloads of moe.pairs, one a layer and span. Only ``wait`` waits for the device."""
        while self._leaving:
            span = self._leaving[0]
            if span.event is not None and not span.event.query():
                if not wait:
                    return
                span.event.synchronize()
            self._leaving.popleft()
            for layer, square in zip(span.layers, span.squares.numpy(), strict=True):
                triangle = square[np.triu_indices(len(square), 1)].round().astype(np.uint32)
                head = (span.first_step, span.last_step, layer, rank, span.num_tokens)
                yield np.array((*head, triangle), schema.pairs_dtype(len(square)))
