"""Exact co-selection: how often two experts were chosen by the same token, accumulated on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvtxmoe import schema
from nvtxmoe.capture.model import Step
from nvtxmoe.capture.routed import Routed


@dataclass
class _Span:
    first_step: int
    last_step: int
    num_tokens: int
    square: Any  # float32 [experts, experts], on the device of the ids; sums of ones are exact up to 2**24
    event: Any = None


class PairCounts:
    """One square a layer, from ``begin`` to ``begin``; the finished ones arrive without anybody waiting."""

    def __init__(self) -> None:
        self._spans: dict[int, _Span] = {}
        self._leaving: deque[tuple[int, _Span]] = deque()

    def add(self, step: Step, routed: tuple[Routed, ...]) -> None:
        """Count the pairs of a step, on the tensors' own device."""
        import torch  # noqa: PLC0415  only where there are tensors

        with torch.inference_mode():
            for one in routed:
                span = self._spans.get(one.layer)
                if span is None:
                    square = torch.zeros(one.num_experts, one.num_experts, device=one.ids.device)
                    span = self._spans[one.layer] = _Span(step.number, step.number, 0, square)
                ids = one.ids[one.start : one.start + step.num_tokens].to(torch.int64)
                inside = (ids >= 0) & (ids < one.num_experts)  # an index out of range would end a GPU's context
                chosen = torch.zeros(len(ids), one.num_experts, device=ids.device)
                chosen.scatter_reduce_(1, ids.clamp(0, one.num_experts - 1), inside.to(chosen.dtype), "amax")
                span.square.addmm_(chosen.t(), chosen)
                span.last_step = step.number
                span.num_tokens += step.num_tokens

    def begin(self) -> None:
        """Close the spans, and begin new ones with the next step."""
        import torch  # noqa: PLC0415

        spans, self._spans = self._spans, {}
        for layer, span in sorted(spans.items()):
            if span.square.is_cuda:
                with torch.inference_mode():
                    host = torch.empty(span.square.shape, dtype=span.square.dtype, pin_memory=True)
                    host.copy_(span.square, non_blocking=True)
                span.square, span.event = host, torch.cuda.Event()
                span.event.record()
            self._leaving.append((layer, span))

    def arrived(self, rank: int, wait: bool = False) -> Iterator[Any]:
        """Payloads of moe.pairs, one a layer and span. Only ``wait`` waits for the device."""
        while self._leaving:
            layer, span = self._leaving[0]
            if span.event is not None and not span.event.query():
                if not wait:
                    return
                span.event.synchronize()
            self._leaving.popleft()
            square = span.square.numpy()
            triangle = square[np.triu_indices(len(square), 1)].round().astype(np.uint32)
            head = (span.first_step, span.last_step, layer, rank, span.num_tokens)
            yield np.array((*head, triangle), schema.pairs_dtype(len(square)))
