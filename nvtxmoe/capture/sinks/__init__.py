"""Sinks for the recorder's events: NVTX, and the journal of direct mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nvtxmoe.capture.run_identity import Step


class Sink(Protocol):
    """Takes the events of one process in order."""

    encoding: str
    #: Counts may wait for so many steps and then be sent together, which takes less time than one step at a time. A
    #: session of nsys may stop after any step: there they may not wait. Of a GPU's counts it only matters whether it is
    #: 1: a thread sends them (``recording.sending``).
    steps_a_send: int

    def meta(self, text: bytes) -> None:
        """``moe.meta``; the last one counts."""

    def step_begins(self, step: Step) -> None:
        """``moe.step`` opens."""

    def step_ends(self) -> None:
        """``moe.step`` closes."""

    def payload(self, event: str, payload: Any) -> None:
        """``moe.topk`` and the like: a numpy array in the layout of ``nvtxmoe.formats.schema``."""

    def payloads(self, event: str, rows: Any) -> None:
        """``moe.counts`` and the like of several layers: a structured array, a row per layer.

        The caller changes the array afterwards: a sink keeps a copy.
        """

    def pause(self) -> None:
        """No step follows for now: have what was sent written soon. The caller does not wait."""

    def conclude(self, summary: Mapping[str, Any]) -> None:
        """Have what was sent written, now: the process may be killed soon. More may follow."""

    def close(self, summary: Mapping[str, Any]) -> None:
        """The process ends; a second call does nothing."""
