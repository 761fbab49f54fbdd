"""Exact co-selection: how often two experts were chosen by the same token, accumulated on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    square: Any  # int32 [experts, experts] on the device of the ids


class PairCounts:
    """One square a layer; ``take`` gives the spans since the last call."""

    def __init__(self) -> None:
        self._spans: dict[int, _Span] = {}

    def add(self, step: Step, routed: Sequence[Routed]) -> None:
        """Count the pairs of a step, on the tensors' own device."""
        import torch  # noqa: PLC0415  only where there are tensors

        with torch.inference_mode():
            for one in routed:
                span = self._spans.get(one.layer)
                if span is None:
                    square = torch.zeros(one.num_experts, one.num_experts, device=one.ids.device)
                    span = self._spans[one.layer] = _Span(step.number, step.number, 0, square)
                ids = one.ids[one.start : one.start + step.num_tokens].to(torch.int64)
                chosen = torch.zeros(len(ids), one.num_experts, device=ids.device)
                chosen.scatter_(1, ids, 1.0)
                # float32 sums of ones are exact up to 2**24, more than a span holds
                span.square.addmm_(chosen.t(), chosen)
                span.last_step = step.number
                span.num_tokens += step.num_tokens

    def take(self, rank: int) -> Iterator[Any]:
        """Payloads of moe.pairs, one a layer. This waits for the device."""
        spans, self._spans = self._spans, {}
        for layer, span in sorted(spans.items()):
            square = span.square.cpu().numpy()
            triangle = square[np.triu_indices(len(square), 1)].round().astype(np.uint32)
            head = (span.first_step, span.last_step, layer, rank, span.num_tokens)
            yield np.array((*head, triangle), schema.pairs_dtype(len(square)))
