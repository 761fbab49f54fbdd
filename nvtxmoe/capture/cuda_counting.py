"""From routing tensors to counts on a GPU, without the host ever waiting for it.

One small kernel a step counts all layers, and writes the counts straight into pinned memory of the host; an event
says when they have arrived. It runs on the stream of the forward, after it, so that the next forward can't overwrite
what is being read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.model import Step
from nvtxmoe.capture.routed import Alike, Cells, Counted, Routed, Sample, alike

if TYPE_CHECKING:
    import torch

#: Steps that may be on their way to the host; more are left out (and counted), never waited for.
MOST_PENDING = 256
#: Plans kept for routing tensors that come again and again: those of CUDA graphs.
MOST_PLANS = 512


@dataclass
class _Plan:
    """How to count a set of tensors: groups of equal shape, and tables of their addresses in pinned memory."""

    groups: tuple[Alike, ...]
    tables: tuple[Any, ...]
    shapes: tuple[tuple[tuple[int, ...], int, int, bool], ...]
    size: int


@dataclass
class _Slot:
    """Pinned memory for one step's counts, and the event that they have arrived."""

    host: Any
    numbers: Any
    event: Any


@dataclass
class _Pending:
    """A step on its way. It holds no routing tensor: what reads them is enqueued, and memory is reused in that order.

    The tables are held: PyTorch does not know that a kernel of ours reads them.
    """

    step: Step
    shapes: tuple[tuple[tuple[int, ...], int, int, bool], ...]
    tables: tuple[Any, ...]
    slot: _Slot
    samples: list[tuple[int, Any, Any]] = field(default_factory=list)


class CudaCounter:
    """Counts tensors of one GPU.

    Parameters:
        histogram: launches the kernel of a group; ``None`` takes Triton's where it is there, else PyTorch's own
            operations.
    """

    def __init__(self, histogram: Callable[..., None] | None = None) -> None:
        self.dropped = 0
        self._histogram = histogram or best_histogram()
        self._plans: dict[Hashable, _Plan] = {}
        self._free: dict[int, list[_Slot]] = {}
        self._pending: deque[_Pending] = deque()

    def submit(self, step: Step, routed: tuple[Routed, ...], sample: bool, key: Hashable | None = None) -> None:
        """Enqueue the kernel on the current stream."""
        if len(self._pending) >= MOST_PENDING:
            self.dropped += 1
            return
        plan = self._plan(routed, key)
        slot = self._slot(plan.size)
        at = 0
        for group, table in zip(plan.groups, plan.tables, strict=True):
            cells = len(group.layers) * group.experts
            self._histogram(group, table, slot.host[at : at + cells], step.num_tokens)
            at += cells
        pending = _Pending(step, plan.shapes, plan.tables, slot)
        if sample:
            pending.samples = [_sampled(one, step.num_tokens) for one in routed]
        slot.event.record()
        self._pending.append(pending)

    def drain(self, wait: bool = False) -> Iterator[Counted]:
        """Steps whose counts have arrived, in order. Only ``wait`` waits for the device."""
        while self._pending:
            first = self._pending[0]
            if not first.slot.event.query():
                if not wait:
                    return
                first.slot.event.synchronize()
            self._pending.popleft()
            counted = _counted(first)
            self._free[len(first.slot.numbers)].append(first.slot)
            yield counted

    def _plan(self, routed: tuple[Routed, ...], key: Hashable | None) -> _Plan:
        plan = None if key is None else self._plans.get(key)
        if plan is None:
            groups = alike(routed)
            plan = _Plan(
                groups=groups,
                tables=tuple(_addresses(group) for group in groups),
                shapes=tuple((group.layers, group.experts, group.top_k, group.physical) for group in groups),
                size=sum(len(group.layers) * group.experts for group in groups),
            )
            if key is not None:
                if len(self._plans) >= MOST_PLANS:
                    self._plans.clear()
                self._plans[key] = plan
        return plan

    def _slot(self, size: int) -> _Slot:
        import torch  # noqa: PLC0415  only where there are tensors of a GPU

        free = self._free.setdefault(size, [])
        if free:
            return free.pop()
        host = torch.empty(size, dtype=torch.int32, pin_memory=True)
        return _Slot(host, host.numpy(), torch.cuda.Event())


def _addresses(group: Alike) -> Any:
    """Where each tensor's first own row is: int64 in pinned memory, which the kernel reads as it is."""
    import torch  # noqa: PLC0415

    places = [ids.data_ptr() + start * ids.stride(0) * ids.element_size() for ids, start in group.tensors]
    table = torch.empty(len(places), dtype=torch.int64, pin_memory=True)
    table.numpy()[:] = places
    return table


def _sampled(one: Routed, num_tokens: int) -> tuple[int, Any, Any]:
    rows = slice(one.start, one.start + num_tokens)
    return one.layer, _to_host(one.ids[rows]), None if one.weights is None else _to_host(one.weights[rows])


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    import torch  # noqa: PLC0415

    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    return host


def _counted(pending: _Pending) -> Counted:
    cells, at = [], 0
    for layers, experts, top_k, physical in pending.shapes:
        size = len(layers) * experts
        counts = pending.slot.numbers[at : at + size].reshape(len(layers), experts).copy()
        cells.append(Cells(layers, top_k, counts, physical))
        at += size
    samples = tuple(
        Sample(layer, ids.numpy(), None if weights is None else weights.float().numpy())
        for layer, ids, weights in pending.samples
    )
    return Counted(pending.step, tuple(cells), samples)


def best_histogram() -> Callable[..., None]:
    """The fastest way to count that this machine has."""
    try:
        from nvtxmoe.capture.triton_histogram import histogram  # noqa: PLC0415  Triton is optional
    except ImportError as error:
        logger().info("counting with PyTorch's own operations: %s", error)
        return torch_histogram
    return histogram


def torch_histogram(group: Alike, table: Any, out: torch.Tensor, num_tokens: int) -> None:  # noqa: ARG001  as histogram
    """Count a group with PyTorch's operations: a scatter a layer and one copy. Experts out of range are left out."""
    import torch  # noqa: PLC0415

    with torch.inference_mode():
        counts = torch.zeros(len(group.layers), group.experts, dtype=torch.int32, device=group.tensors[0][0].device)
        for row, (ids, start) in zip(counts, group.tensors, strict=True):
            chosen = ids[start : start + num_tokens].reshape(-1).to(torch.int64)
            inside = (chosen >= 0) & (chosen < group.experts)
            row.scatter_add_(0, chosen.clamp(0, group.experts - 1), inside.to(torch.int32))
        out.copy_(counts.view(-1), non_blocking=True)
