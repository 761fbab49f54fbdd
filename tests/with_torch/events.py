"""A sink that keeps what it is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nvtxmoe.capture.run_identity import Identity, LayerInfo, Step

EXPERTS, TOP_K = 8, 2


def identity(layers: int = 2, rank: int = 0) -> Identity:
    """A process with some layers."""
    return Identity(rank=rank, layers=tuple(LayerInfo(n, f"layers.{n}", EXPERTS, TOP_K) for n in range(layers)))


class Kept:
    """The events in order."""

    encoding = "kept"
    steps_a_send = 1

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.closed: Mapping[str, Any] | None = None

    def meta(self, text: bytes) -> None:
        self.events.append(("meta", json.loads(text)))

    def step_begins(self, step: Step) -> None:
        self.events.append(("step", step))

    def step_ends(self) -> None:
        self.events.append(("end", None))

    def payload(self, event: str, payload: Any) -> None:
        self.events.append((event, payload.copy()))

    def payloads(self, event: str, rows: Any) -> None:
        self.events += [(event, row.copy()) for row in rows]

    def pause(self) -> None:
        """Nothing waits here."""

    def conclude(self, summary: Mapping[str, Any]) -> None:
        self.events.append(("conclude", None))

    def close(self, summary: Mapping[str, Any]) -> None:
        self.closed = summary

    def of(self, event: str) -> list[Any]:
        """Payloads of one event."""
        return [payload for name, payload in self.events if name == event]

    def counts(self) -> dict[tuple[int, int], list[int]]:
        """Counts by (step, layer)."""
        return {(int(r["step"]), int(r["layer"])): r["counts"].tolist() for r in self.of("moe.counts")}
