"""How a load fared: latencies, and failures by reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from nvtxmoe_analysis.core.text import number

_PERCENTILES = (50, 90, 99)


@dataclass
class LoadReport:
    """Answers so far.

    Attributes:
        latencies_s: from the request to the end of the answer, for each that succeeded.
        first_tokens_s: to the first token, where the answers were streamed.
        failures: how many requests failed, by reason.
        seconds: since the first request.
    """

    latencies_s: list[float] = field(default_factory=list)
    first_tokens_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, latency_s: float, first_token_s: float | None) -> None:
        """Count a request that succeeded."""
        self.latencies_s.append(latency_s)
        if first_token_s is not None:
            self.first_tokens_s.append(first_token_s)

    def add_failure(self, reason: str) -> None:
        """Count a request that failed."""
        self.failures[reason] += 1

    @property
    def failed(self) -> int:
        """Requests that failed."""
        return self.failures.total()

    @property
    def finished(self) -> int:
        """Requests that are over, either way."""
        return len(self.latencies_s) + self.failed

    def line(self) -> str:
        """All of it in one line, for people."""
        rate = self.finished / self.seconds if self.seconds else 0.0
        parts = [f"{number(self.finished, 'request')} in {self.seconds:.1f} s ({rate:.1f} a second)"]
        if self.latencies_s:
            parts.append(f"latency {percentiles(self.latencies_s)}")
        if self.first_tokens_s:
            parts.append(f"first token {percentiles(self.first_tokens_s)}")
        reasons = "".join(f"; {count:,} x {reason}" for reason, count in self.failures.most_common())
        parts.append(f"{self.failed:,} failed{reasons}")
        return ", ".join(parts)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` per cent of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(percent / 100 * len(ordered))) - 1]


def percentiles(seconds: Sequence[float]) -> str:
    """p50, p90 and p99 with a unit that fits."""
    return " ".join(f"p{percent} {_time(percentile(seconds, percent))}" for percent in _PERCENTILES)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
