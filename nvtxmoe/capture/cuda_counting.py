"""From routing tensors to counts on a GPU, without the host ever waiting for it.

One small kernel a step counts all layers, and writes the counts straight into pinned memory of the host; an event
says when they have arrived. It runs on the stream of the forward, after it, so that the next forward can't overwrite
what is being read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.model import Step
from nvtxmoe.capture.routed import Alike, Cells, Counted, Routed, Sample, alike

if TYPE_CHECKING:
    import torch

#: Launches the counting of a group: (launch, table of addresses, int32 [layers x experts] pinned, tokens).
Histogram = Callable[["Launch", Any, Any, int], None]

#: Steps that may be on their way to the host; more are left out (and counted), never waited for.
MOST_PENDING = 256
#: Plans kept for routing tensors that come again and again: those of CUDA graphs.
MOST_PLANS = 512


@dataclass(frozen=True)
class Launch:
    """What the kernel has to know of a group of tensors; their addresses are in the table.

    Attributes:
        row_stride: elements from one token's row to the next.
        item_bytes: of an id, 4 or 8.
    """

    layers: tuple[int, ...]
    experts: int
    top_k: int
    physical: bool
    row_stride: int
    item_bytes: int
    device: torch.device

    @property
    def cells(self) -> int:
        """Counts that come out."""
        return len(self.layers) * self.experts


@dataclass(frozen=True)
class _Plan:
    """How to count a set of tensors: launches, and tables of addresses in pinned memory.

    Attributes:
        groups: the tensors themselves, where PyTorch's operations must count them; a kept plan holds none.
    """

    launches: tuple[Launch, ...]
    tables: tuple[Any, ...]
    groups: tuple[Alike | None, ...]
    devices: tuple[torch.device, ...]
    size: int


@dataclass
class _Slot:
    """Pinned memory for one step's counts, and the events that they have arrived, one a device."""

    host: Any
    numbers: Any
    events: tuple[Any, ...]


@dataclass
class _Pending:
    """A step on its way. It holds no routing tensor: what reads them is enqueued, and memory is reused in that order.

    The tables are held: PyTorch does not know that a kernel of ours reads them.
    """

    step: Step
    launches: tuple[Launch, ...]
    tables: tuple[Any, ...]
    slot: _Slot
    samples: list[tuple[int, Any, Any]] = field(default_factory=list)


class CudaCounter:
    """Counts tensors of GPUs.

    Parameters:
        histogram: launches the kernel of a group; ``None`` takes Triton's where it is there, else PyTorch's own
            operations do it.
    """

    def __init__(self, histogram: Histogram | None = None) -> None:
        self.dropped = 0
        self._histogram = histogram or best_histogram()
        self._plans: dict[Hashable, _Plan] = {}
        self._free: dict[Hashable, list[_Slot]] = {}
        self._pending: deque[_Pending] = deque()
        self._parked: list[Any] = []

    def submit(self, step: Step, routed: tuple[Routed, ...], sample: bool, key: Hashable | None = None) -> None:
        """Enqueue the kernel on the current stream."""
        if len(self._pending) >= MOST_PENDING:
            self.dropped += 1
            return
        plan = self._plan(routed, key)
        slot = self._slot(plan)
        try:
            self._launch(plan, slot, step.num_tokens)
            pending = _Pending(step, plan.launches, plan.tables, slot)
            if sample:
                pending.samples = [_sampled(one, step.num_tokens) for one in routed]
            for event, device in zip(slot.events, plan.devices, strict=True):
                with _on(device, len(plan.devices) > 1):
                    event.record()
        except BaseException:
            self._parked.append((slot, plan.tables))  # a kernel may be running on them: never to be used again
            raise
        self._pending.append(pending)

    def drain(self, wait: bool = False) -> Iterator[Counted]:
        """Steps whose counts have arrived, in order. Only ``wait`` waits for the device."""
        while self._pending:
            first = self._pending[0]
            if not all(event.query() for event in first.slot.events):
                if not wait:
                    return
                for event in first.slot.events:
                    event.synchronize()
            self._pending.popleft()
            counted = _counted(first)
            self._free[_slot_key(first.launches)].append(first.slot)
            yield counted

    def _launch(self, plan: _Plan, slot: _Slot, num_tokens: int) -> None:
        at = 0
        for launch, table, group in zip(plan.launches, plan.tables, plan.groups, strict=True):
            out = slot.host[at : at + launch.cells]
            at += launch.cells
            with _on(launch.device, len(plan.devices) > 1):
                if group is not None:
                    torch_histogram(group, out, num_tokens)
                elif self._histogram is not None:
                    self._histogram(launch, table, out, num_tokens)

    def _plan(self, routed: tuple[Routed, ...], key: Hashable | None) -> _Plan:
        plan = None if key is None else self._plans.get(key)
        if plan is None:
            groups = alike(routed)
            launches = tuple(_launch_of(group) for group in groups)
            plain = tuple(None if self._histogram is not None and _fits_kernel(group) else group for group in groups)
            plan = _Plan(
                launches=launches,
                tables=tuple(_addresses(group) for group in groups),
                groups=plain,
                devices=tuple(dict.fromkeys(launch.device for launch in launches)),
                size=sum(launch.cells for launch in launches),
            )
            if key is not None and not any(plain):
                if len(self._plans) >= MOST_PLANS:
                    self._plans.clear()
                self._plans[key] = plan
        return plan

    def _slot(self, plan: _Plan) -> _Slot:
        import torch  # noqa: PLC0415  only where there are tensors of a GPU

        free = self._free.setdefault(_slot_key(plan.launches), [])
        if free:
            return free.pop()
        host = torch.empty(plan.size, dtype=torch.int32, pin_memory=True)
        return _Slot(host, host.numpy(), tuple(torch.cuda.Event() for _ in plan.devices))


def _slot_key(launches: tuple[Launch, ...]) -> Hashable:
    return sum(launch.cells for launch in launches), tuple(dict.fromkeys(launch.device for launch in launches))


def _launch_of(group: Alike) -> Launch:
    ids = group.tensors[0][0]
    return Launch(
        group.layers, group.experts, group.top_k, group.physical, ids.stride(0), ids.element_size(), ids.device
    )


def _fits_kernel(group: Alike) -> bool:
    ids = group.tensors[0][0]
    return ids.element_size() in (4, 8) and (ids.stride(1) == 1 or ids.shape[1] == 1)


def _on(device: torch.device, several: bool) -> AbstractContextManager[object]:
    """With several devices, the one that is meant; with one it is the current one."""
    if not several:
        return nullcontext()
    import torch  # noqa: PLC0415

    guard: AbstractContextManager[object] = torch.cuda.device(device)
    return guard


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
    for one in pending.launches:
        counts = pending.slot.numbers[at : at + one.cells].reshape(len(one.layers), one.experts).copy()
        cells.append(Cells(one.layers, one.top_k, counts, one.physical))
        at += one.cells
    samples = tuple(
        Sample(layer, ids.numpy(), None if weights is None else weights.float().numpy())
        for layer, ids, weights in pending.samples
    )
    return Counted(pending.step, tuple(cells), samples)


def best_histogram() -> Histogram | None:
    """The kernel, where this machine has Triton; None where PyTorch's own operations must do."""
    try:
        from nvtxmoe.capture.triton_histogram import histogram  # noqa: PLC0415  Triton is optional
    except ImportError as error:
        logger().info("counting with PyTorch's own operations: %s", error)
        return None
    return histogram


def torch_histogram(group: Alike, out: torch.Tensor, num_tokens: int) -> None:
    """Count a group with PyTorch's operations: a scatter a layer and one copy. Experts out of range are left out."""
    import torch  # noqa: PLC0415

    with torch.inference_mode():
        counts = torch.zeros(len(group.layers), group.experts, dtype=torch.int32, device=group.tensors[0][0].device)
        for row, (ids, start) in zip(counts, group.tensors, strict=True):
            chosen = ids[start : start + num_tokens].reshape(-1).to(torch.int64)
            inside = (chosen >= 0) & (chosen < group.experts)
            row.scatter_add_(0, chosen.clamp(0, group.experts - 1), inside.to(torch.int32))
        out.copy_(counts.view(-1), non_blocking=True)
