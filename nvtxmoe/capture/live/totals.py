"""Sums of the counts of one process: since its start, over the last minute, and per step for the last steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nvtxmoe.capture.live.last_steps import KINDS, MOST_STEPS, LastSteps
from nvtxmoe.capture.live.rank_facts import RankFacts
from nvtxmoe.capture.run_identity import Step
from nvtxmoe.formats import schema

#: Steps that may wait for their counts.
MOST_WAITING = 16384
#: The recent sums are of the last half to whole of so many seconds in which steps ran.
RECENT_S = 60.0


class Begun(NamedTuple):
    """A step that began, with its Unix time."""

    begun_ns: int
    step: Step


class _Recent:
    """Sums of a stretch of time, [layers] and [layers, experts]."""

    def __init__(self, layers: int, experts: int) -> None:
        self.steps = np.zeros(layers, dtype=np.int64)
        self.max_over_mean = np.zeros(layers)
        self.active = np.zeros(layers, dtype=np.int64)
        self.counts = np.zeros((layers, experts), dtype=np.int64)

    def add(self, at: npt.NDArray[np.int64], counts: npt.NDArray[Any], sums: npt.NDArray[Any]) -> None:
        """Counts of steps, [steps, layers, experts], and their sums, [steps, layers]; ``counts`` stays as it is."""
        experts = counts.shape[2]
        self.steps[at] += np.count_nonzero(sums, axis=0)
        self.max_over_mean[at] += (counts.max(axis=2) * (experts / np.maximum(sums, 1))).sum(axis=0)
        self.active[at] += np.count_nonzero(counts > 0, axis=2).sum(axis=0)


class Totals:
    """Sums of one process. One thread adds and reads.

    Attributes:
        steps, prefill_tokens, decode_tokens: of steps whose counts have arrived.
        missing: steps without counts that began before one whose counts have arrived.
        assignments: of all layers.
    """

    def __init__(self, facts: RankFacts) -> None:
        self.facts = facts
        self.steps = self.prefill_tokens = self.decode_tokens = self.missing = self.assignments = 0
        self._recent_steps: deque[Begun] = deque()
        self._last = -1
        self._at = {layer.layer: place for place, layer in enumerate(facts.layers)}
        layers, experts = len(facts.layers), max((layer.experts for layer in facts.layers), default=0)
        self._shape = layers, experts
        self._counts = np.zeros(self._shape, dtype=np.int64)
        self._loads = np.zeros((layers, facts.ep_size), dtype=np.int64)
        self._now, self._before = _Recent(*self._shape), _Recent(*self._shape)
        self._turned_s: float | None = None
        self._last_steps = LastSteps(layers, facts.ep_size)

    def add(self, new_steps: Iterable[Begun], rows: Sequence[tuple[str, npt.NDArray[np.void]]], now_s: float) -> None:
        """Add what arrived.

        Parameters:
            new_steps: steps in order; a step comes before its counts, or together with them.
            rows: names of events with rows as ``nvtxmoe.formats.schema.counts_dtype`` has them, in order.
            now_s: a clock that does not go back.
        """
        self._recent_steps.extend(new_steps)
        while len(self._recent_steps) > MOST_WAITING:
            self._recent_steps.popleft()
            self.missing += 1
        if not rows:
            return
        self._turn(now_s)
        for first in range(0, len(rows), MOST_STEPS):
            part = rows[first : first + MOST_STEPS]
            for _, row in part:
                if len(row):
                    self._arrived(int(row["step"][0]))
            same_shape: dict[tuple[Any, ...], list[npt.NDArray[np.void]]] = {}
            for event, row in part:
                same_shape.setdefault((event, row["counts"].shape[1], row["layer"].tobytes()), []).append(row)
            for (event, _, _), arrays in same_shape.items():
                self._add_alike(event, arrays)

    def _turn(self, now_s: float) -> None:
        if self._turned_s is None:
            self._turned_s = now_s
        elif now_s - self._turned_s >= RECENT_S / 2:
            self._before, self._now, self._turned_s = self._now, _Recent(*self._shape), now_s

    def _arrived(self, number: int) -> None:
        """The first rows of a step: it is among those that began."""
        if number == self._last:
            return
        while self._recent_steps and self._recent_steps[0].step.number < number:
            self._recent_steps.popleft()
            self.missing += 1
        if not self._recent_steps or self._recent_steps[0].step.number != number:
            return
        self._last = number
        begun_ns, step = self._recent_steps.popleft()
        self.steps += 1
        self.prefill_tokens += step.prefill_tokens
        self.decode_tokens += step.decode_tokens
        self._last_steps.begin(number, begun_ns, _kind(step))

    def _add_alike(self, event: str, rows: list[npt.NDArray[np.void]]) -> None:
        known = [place for place, layer in enumerate(rows[0]["layer"].tolist()) if layer in self._at]
        at = np.array([self._at[int(rows[0]["layer"][place])] for place in known], dtype=np.int64)
        counts = np.stack([row["counts"] for row in rows])
        if len(known) < counts.shape[1]:
            counts = counts[:, known]
        if event == schema.COUNTS:  # 64 steps of 2**26 assignments fit into 32 bits, and take half the time of 64
            sums = counts.sum(axis=2, dtype=np.uint32)
            self.assignments += int(sums.sum(dtype=np.int64))
        if not self.facts.counts_layers:
            return
        if event == schema.COUNTS:
            total = counts.sum(axis=0, dtype=np.uint32)
            self._counts[at, : counts.shape[2]] += total
            self._now.counts[at, : counts.shape[2]] += total
            self._now.add(at, counts, sums)
        if event == (schema.PHYSICAL if self.facts.eplb else schema.COUNTS):
            self._add_loads([int(row["step"][0]) for row in rows], at, counts)

    def _add_loads(self, numbers: list[int], at: npt.NDArray[np.int64], counts: npt.NDArray[Any]) -> None:
        by_slots: dict[int, list[int]] = {}
        for place, layer in enumerate(at.tolist()):
            if self.facts.layers[layer].slots == counts.shape[2] and self.facts.layers[layer].first_slots is not None:
                by_slots.setdefault(counts.shape[2], []).append(place)
        for columns in by_slots.values():
            facts = self.facts.layers[int(at[columns[0]])]
            sums = self._last_steps.add(
                numbers, at[columns], facts, counts if len(columns) == counts.shape[1] else counts[:, columns]
            )
            if sums is not None:
                self._loads[at[columns]] += sums

    def header(self) -> dict[str, Any]:
        """Numbers and facts, as JSON has them."""
        facts = self.facts
        names = ("rank", "world_size", "tp_size", "ep_size", "dp_size", "counts_layers", "counts_tokens")
        return {
            **{name: getattr(facts, name) for name in (*names, "hidden", "failed")},
            "extra": dict(facts.extra),
            "placed": [layer.first_slots is not None for layer in facts.layers],
            **{name: getattr(self, name) for name in ("steps", "prefill_tokens", "decode_tokens", "missing")},
            "assignments": self.assignments,
        }

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """By name; none where another rank of the tensor-parallel group has the same."""
        if not self.facts.counts_layers:
            return {}
        now, before = self._now, self._before
        return {
            "layers": np.array([layer.layer for layer in self.facts.layers], dtype=np.int64),
            "experts": np.array([layer.experts for layer in self.facts.layers], dtype=np.int64),
            "counts": self._counts,
            "rank_loads": self._loads,
            "recent_steps": now.steps + before.steps,
            "recent_max_over_mean": now.max_over_mean + before.max_over_mean,
            "recent_active": now.active + before.active,
            "recent_counts": now.counts + before.counts,
            **self._last_steps.arrays(),
        }


def _kind(step: Step) -> int:
    if not step.decode_tokens:
        return KINDS.index("prefill")
    return KINDS.index("mixed" if step.prefill_tokens else "decode")
