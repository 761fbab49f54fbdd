"""Tokens of recomputed layers whose last expert rounding decides: running totals for moe.meta."""

from __future__ import annotations

from collections import Counter
from typing import Any

from nvtxmoe.capture.recording.routing_tensors import StepCounts


class AmbiguousTokens:
    """Totals of a process.

    Attributes:
        tokens: tokens of recomputed layers, each layer's added up.
        by_layer: ambiguous ones; layers without any are absent.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.by_layer: Counter[int] = Counter()

    def add(self, counted: StepCounts) -> None:
        """Add a step."""
        for layer, ambiguous in counted.ambiguous:
            self.tokens += counted.step.num_tokens
            if ambiguous:
                self.by_layer[layer] += ambiguous

    def as_meta(self) -> dict[str, Any]:
        """Keys of moe.meta; none while nothing was recomputed."""
        if not self.tokens:
            return {}
        by_layer = {str(layer): self.by_layer[layer] for layer in sorted(self.by_layer)}
        return {"recomputed_tokens": self.tokens, "ambiguous_tokens": by_layer}
