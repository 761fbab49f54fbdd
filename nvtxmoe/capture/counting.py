"""From routing tensors to counts: at once on the CPU; on a GPU without the host ever waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from nvtxmoe.capture.model import Step
from nvtxmoe.capture.routed import Cell, Counted, Routed

if TYPE_CHECKING:
    import torch


class Counter(Protocol):
    """Turns routing into counts, in the order of the steps."""

    def submit(self, step: Step, routed: Sequence[Routed], sample: bool) -> None:
        """Begin to count a step. Every tensor has at least ``start + num_tokens`` rows."""

    def drain(self, wait: bool = False) -> Iterator[Counted]:
        """Steps that are counted by now; with ``wait`` all of them."""


class CpuCounter:
    """Counts CPU tensors when they are submitted."""

    def __init__(self) -> None:
        self._done: deque[Counted] = deque()

    def submit(self, step: Step, routed: Sequence[Routed], sample: bool) -> None:
        """Count now."""
        self._done.append(Counted(step, tuple(_cell(step.num_tokens, one, sample) for one in routed)))

    def drain(self, wait: bool = False) -> Iterator[Counted]:  # noqa: ARG002  nothing to wait for
        """All that was submitted."""
        while self._done:
            yield self._done.popleft()


def _cell(num_tokens: int, one: Routed, sample: bool) -> Cell:
    rows = slice(one.start, one.start + num_tokens)
    ids = one.ids[rows].numpy()
    return Cell(
        layer=one.layer,
        num_tokens=num_tokens,
        top_k=ids.shape[1],
        counts=_counts(ids, one.num_experts),
        physical=None if one.physical is None else _counts(one.physical[rows].numpy(), one.num_physical),
        experts=ids.copy() if sample else None,
        weights=one.weights[rows].float().numpy().copy() if sample and one.weights is not None else None,
    )


def _counts(ids: npt.NDArray[Any], experts: int) -> npt.NDArray[np.int64]:
    counts = np.bincount(ids.ravel(), minlength=experts)
    if len(counts) > experts:
        raise ValueError(f"expert {len(counts) - 1} of {experts}")
    return counts


class DeviceCounter:
    """Counts tensors of a GPU with PyTorch's own operations.

    A step's counts are one int32 buffer on the device, copied to pinned memory without waiting; an event says when
    it has arrived. Counts of experts out of range are left out there, and the sum shows it.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[Step, Sequence[Routed], Any, Any, list[tuple[Any, Any]]]] = deque()

    def submit(self, step: Step, routed: Sequence[Routed], sample: bool) -> None:
        """Enqueue counting and the copy on the current stream."""
        import torch  # noqa: PLC0415  only where there are tensors of a GPU

        if not routed:
            self._pending.append((step, routed, None, None, []))
            return
        with torch.inference_mode():
            widths = [(one.num_experts, one.num_physical if one.physical is not None else 0) for one in routed]
            buffer = torch.zeros(sum(map(sum, widths)), dtype=torch.int32, device=routed[0].ids.device)
            at = 0
            for one, (experts, physical) in zip(routed, widths, strict=True):
                _scatter(buffer[at : at + experts], one.ids, one.start, step.num_tokens)
                at += experts
                if one.physical is not None:
                    _scatter(buffer[at : at + physical], one.physical, one.start, step.num_tokens)
                    at += physical
            host = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True)
            host.copy_(buffer, non_blocking=True)
            samples = [_sampled(one, step.num_tokens) for one in routed] if sample else []
            event = torch.cuda.Event()
            event.record()
        self._pending.append((step, routed, host, event, samples))

    def drain(self, wait: bool = False) -> Iterator[Counted]:
        """Steps whose copies have arrived, in order. Only ``wait`` waits for the device."""
        while self._pending:
            step, routed, host, event, samples = self._pending[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self._pending.popleft()
            yield Counted(step, tuple(_arrived(step, routed, host, samples)))


def _scatter(counts: torch.Tensor, ids: torch.Tensor, start: int, num_tokens: int) -> None:
    import torch  # noqa: PLC0415

    chosen = ids[start : start + num_tokens].reshape(-1).to(torch.int64)
    inside = (chosen >= 0) & (chosen < len(counts))
    counts.scatter_add_(0, chosen.clamp(0, len(counts) - 1), inside.to(torch.int32))


def _sampled(one: Routed, num_tokens: int) -> tuple[Any, Any]:
    rows = slice(one.start, one.start + num_tokens)
    return _to_host(one.ids[rows]), None if one.weights is None else _to_host(one.weights[rows].float())


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    import torch  # noqa: PLC0415

    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    return host


def _arrived(step: Step, routed: Sequence[Routed], host: Any, samples: list[tuple[Any, Any]]) -> Iterator[Cell]:
    numbers = None if host is None else host.numpy().astype(np.int64)
    at = 0
    for place, one in enumerate(routed):
        assert numbers is not None
        counts = numbers[at : at + one.num_experts]
        at += one.num_experts
        physical = None
        if one.physical is not None:
            physical = numbers[at : at + one.num_physical]
            at += one.num_physical
        ids, weights = samples[place] if samples else (None, None)
        yield Cell(
            layer=one.layer,
            num_tokens=step.num_tokens,
            top_k=one.ids.shape[1],
            counts=counts,
            physical=physical,
            experts=None if ids is None else ids.numpy(),
            weights=None if weights is None else weights.numpy(),
        )
