"""From routing tensors to counts on a GPU, without the host ever waiting for it.

One small kernel a step counts all layers, and writes the counts straight into pinned memory of the host; an event
says when they have arrived. It runs on the stream of the forward, after it, so that the next forward can't overwrite
what is being read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from nvtxmoe.capture.recording.counts_memory import Slot, new_slot
from nvtxmoe.capture.recording.current_stream import CurrentStreams
from nvtxmoe.capture.recording.driver_trial import counts_by_driver
from nvtxmoe.capture.recording.kernel_launch import (
    Histogram,
    Pairs,
    Recompute,
    best_kernels,
    best_recompute,
    torch_histogram,
)
from nvtxmoe.capture.recording.launch import Launch
from nvtxmoe.capture.recording.logits_launch import (
    LogitsLaunch,
    addresses,
    fits_kernel,
    launch_of,
    torch_recompute,
)
from nvtxmoe.capture.recording.pair_counter import PairCounts
from nvtxmoe.capture.recording.router_logits import Routed, RouterLogits, SameRuleLogits, alike_logits, only_ids
from nvtxmoe.capture.recording.routing_tensors import (
    Cells,
    RoutingTensors,
    SameShapeTensors,
    Sample,
    StepCounts,
    group_by_shape,
)
from nvtxmoe.capture.run_identity import Step

if TYPE_CHECKING:
    import torch

#: Steps that may be on their way to the host; more are left out (and counted), never waited for.
MOST_PENDING = 256
#: Plans kept for routing tensors that come again and again: those of CUDA graphs.
MOST_PLANS = 512


@dataclass(frozen=True)
class _Plan:
    """How to count a set of tensors: launches, and tables of addresses in pinned memory.

    Attributes:
        groups: the tensors themselves, where PyTorch's operations must count them; a kept plan holds none.
        free: slots for these layers that nothing is under way to.
        calls: launches of a kept plan into a slot, by the slot's ``number``; each is given the tokens.
        comes_again: whether it is kept for steps to come.
    """

    launches: tuple[Launch | LogitsLaunch, ...]
    tables: tuple[Any, ...]
    groups: tuple[SameShapeTensors | SameRuleLogits | None, ...]
    devices: tuple[torch.device, ...]
    free: list[Slot]
    calls: dict[int, tuple[Callable[[int], None], ...]] = field(default_factory=dict)
    comes_again: bool = False


class _Pending(NamedTuple):
    """A step on its way. It holds no routing tensor: what reads them is enqueued, and memory is reused in that order.

    The tables are held: PyTorch does not know that a kernel of ours reads them.
    """

    step: Step
    tables: tuple[Any, ...]
    slot: Slot
    free: list[Slot]
    samples: Sequence[tuple[int, Any, Any]]


class CudaCounter:
    """Counts tensors of GPUs.

    Parameters:
        histogram, pairs, recompute: launch the kernels of a group; without any, Triton's are taken where it is there,
            else PyTorch's own operations do it.
    """

    arrives_later = True

    def __init__(
        self, histogram: Histogram | None = None, pairs: Pairs | None = None, recompute: Recompute | None = None
    ) -> None:
        self.dropped = 0
        given_kernels = histogram is not None or recompute is not None
        self._histogram, self._pairs = (histogram, pairs) if given_kernels else best_kernels()
        self._recompute = recompute if given_kernels else best_recompute()
        self._plans: dict[Hashable, _Plan] = {}
        self._free: dict[Hashable, list[Slot]] = {}
        self._pending: deque[_Pending] = deque()
        self._parked: list[Any] = []
        self._streams = CurrentStreams()
        self._device: torch.device | None = None
        self._by_driver = False

    def launch_by_driver(self, by_driver: bool) -> None:
        """Have the CUDA driver launch kernels of kept plans, or Triton, from the next step on."""
        self._by_driver = by_driver
        self._plans.clear()

    def submit(
        self,
        step: Step,
        routed: tuple[Routed, ...],
        sample: bool,
        key: Hashable | None = None,
        pairs: PairCounts | None = None,
    ) -> None:
        """Enqueue the kernel on the current stream."""
        if len(self._pending) >= MOST_PENDING:
            self.dropped += 1
            return
        plan = (None if key is None else self._plans.get(key)) or self._make_plan(routed, key)
        slot = plan.free.pop() if plan.free else new_slot(plan.launches, len(plan.devices))
        several = len(plan.devices) > 1
        try:
            if several:
                self._launch_on_each(plan, slot, step.num_tokens)
            elif calls := plan.calls.get(slot.number):
                for call in calls:
                    call(step.num_tokens)
            else:
                self._launch_first(plan, slot, step.num_tokens)
            if pairs is not None:
                self._add_pairs(plan, step, routed, pairs)
            samples = [_sampled(tensors, step.num_tokens) for tensors in routed] if sample else ()
            if several:
                for event, device in zip(slot.events, plan.devices, strict=True):
                    with _on(device):
                        event.record()
            else:
                self._streams.record(slot.events[0], plan.devices[0])
        except BaseException:
            self._parked.append((slot, plan.tables))  # a kernel may be running on them: never to be used again
            raise
        fields = step, plan.tables, slot, plan.free, samples
        self._pending.append(tuple.__new__(_Pending, fields))  # _Pending() would run Python of its own

    def drain(self, wait: bool = False) -> Iterator[StepCounts]:
        """Steps whose counts have arrived, in order. Only ``wait`` waits for the device.

        A step's counts are valid until the next step is asked for: later steps overwrite them.
        """
        while self._pending:
            first = self._pending[0]
            for event in first.slot.events:
                if not event.query():
                    if not wait:
                        return
                    event.synchronize()
            self._pending.popleft()
            yield _arrived(first)
            first.free.append(first.slot)

    def oldest(self) -> int | None:
        """Number of the first step that is not drained."""
        return self._pending[0].step.number if self._pending else None

    def enter_thread(self) -> bool:
        """Make the GPU current: asked for an event, CUDA would else start on the first GPU. False before any count."""
        import torch  # noqa: PLC0415

        device = self._device
        if device is not None and device.type == "cuda":
            torch.cuda.set_device(device)
        return device is not None

    def warm_up(self, shapes: Sequence[tuple[int, int]], pairs: bool) -> None:
        """Compile the kernels for (experts, top_k) now, on the current device: else the first request waits for it.

        The launch by the CUDA driver is tried out, and taken from here on where its counts are right.
        """
        import torch  # noqa: PLC0415

        if self._histogram is None:
            return
        for experts, top_k in shapes:
            ids = torch.zeros(1, top_k, dtype=torch.int32, device="cuda")
            unused = PairCounts() if pairs else None
            self.submit(Step(-1, 0, 1, 1, 0, 1), (RoutingTensors(0, experts, ids, None),), sample=False, pairs=unused)
        for _ in self.drain(wait=True):
            pass
        self.launch_by_driver(counts_by_driver(self, shapes))

    def warm_up_logits(self, logits: RouterLogits) -> None:
        """Compile the kernel for logits like these now, likewise. Nothing of it is counted."""
        if self._recompute is None:
            return
        self.submit(Step(-1, 0, 1, 1, 0, 1), (logits,), sample=False)
        for _ in self.drain(wait=True):
            pass

    def _launch_on_each(self, plan: _Plan, slot: Slot, num_tokens: int) -> None:
        for launch, call in zip(plan.launches, self._calls(plan, slot), strict=True):
            with _on(launch.device):
                call(num_tokens)

    def _launch_first(self, plan: _Plan, slot: Slot, num_tokens: int) -> None:
        """Launch into a slot for the first time, which may compile, and keep how to do it again."""
        calls = self._calls(plan, slot)
        for call in calls:
            call(num_tokens)
        if plan.comes_again:
            plan.calls[slot.number] = tuple(
                self._quickest(*each) for each in zip(calls, plan.launches, plan.tables, slot.outs, strict=True)
            )

    def _quickest(
        self, call: Callable[[int], None], launch: Launch | LogitsLaunch, table: Any, out: Any
    ) -> Callable[[int], None]:
        prepared = launch.prepared.get("count")
        quicker = prepared.into(launch.device, table, out) if self._by_driver and prepared is not None else None
        return quicker or call

    def _calls(self, plan: _Plan, slot: Slot) -> tuple[Callable[[int], None], ...]:
        """The plan's launches into a slot."""
        return tuple(self._call(*each) for each in zip(plan.groups, plan.launches, plan.tables, slot.outs, strict=True))

    def _call(
        self, group: SameShapeTensors | SameRuleLogits | None, launch: Launch | LogitsLaunch, table: Any, out: Any
    ) -> Callable[[int], None]:
        if isinstance(group, SameRuleLogits):
            return partial(torch_recompute, group, out)
        if group is not None:
            return partial(torch_histogram, group, out)
        if isinstance(launch, LogitsLaunch):
            assert self._recompute is not None  # else the plan has a group
            return partial(self._recompute, launch, table, out)
        assert self._histogram is not None
        return partial(self._histogram, launch, table, out)

    def _add_pairs(self, plan: _Plan, step: Step, routed: tuple[Routed, ...], pairs: PairCounts) -> None:
        """Before the step's event: until then the tables are held."""
        kernel = self._pairs
        # Pairs of recomputed layers cost operations of PyTorch in every step: who asks for pairs pays for them.
        if any(isinstance(tensors, RouterLogits) for tensors in routed):
            pairs.add(
                step, tuple(tensors.as_ids(step.num_tokens) for tensors in routed if isinstance(tensors, RouterLogits))
            )
        if kernel is None or any(plan.groups) or len(plan.devices) > 1:
            pairs.add(step, only_ids(routed))
            return
        for launch, table in zip(plan.launches, plan.tables, strict=True):
            if isinstance(launch, Launch) and not launch.physical:
                pairs.add_group(
                    step,
                    launch.layers,
                    launch.experts,
                    launch.device,
                    lambda squares, launch=launch, table=table: kernel(launch, table, squares, step.num_tokens),  # type: ignore[misc]
                )

    def _make_plan(self, routed: tuple[Routed, ...], key: Hashable | None) -> _Plan:
        ids, logits = group_by_shape(only_ids(routed)), alike_logits(routed)
        launches: tuple[Launch | LogitsLaunch, ...] = (
            *(_launch_of(group) for group in ids),
            *(launch_of(group) for group in logits),
        )
        plain = (
            *(None if self._histogram is not None and _fits_kernel(group) else group for group in ids),
            *(None if self._recompute is not None and fits_kernel(group) else group for group in logits),
        )
        for launch, group in zip(launches, plain, strict=True):
            if isinstance(launch, LogitsLaunch) and group is not None:
                launch.parts = 1  # PyTorch's operations do it in one
        devices = tuple(dict.fromkeys(launch.device for launch in launches))
        self._device = devices[0]
        plan = _Plan(
            launches=launches,
            tables=(*(_addresses(group) for group in ids), *(addresses(group) for group in logits)),
            groups=plain,
            devices=devices,
            free=self._free.setdefault((tuple((type(launch), launch.counted) for launch in launches), devices), []),
            comes_again=key is not None and not any(plain),
        )
        if plan.comes_again:
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan


def _launch_of(group: SameShapeTensors) -> Launch:
    ids = group.tensors[0][0]
    return Launch(
        group.layers, group.experts, group.top_k, group.physical, ids.stride(0), ids.element_size(), ids.device
    )


def _fits_kernel(group: SameShapeTensors) -> bool:
    ids = group.tensors[0][0]
    return ids.element_size() in (2, 4, 8) and (ids.stride(1) == 1 or ids.shape[1] == 1)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Make this device the current one, where there are several."""
    import torch  # noqa: PLC0415

    guard: AbstractContextManager[object] = torch.cuda.device(device)
    return guard


def _addresses(group: SameShapeTensors) -> Any:
    """Where each tensor's first own row is: int64 in pinned memory, which the kernel reads as it is."""
    import torch  # noqa: PLC0415

    addresses = [ids.data_ptr() + start * ids.stride(0) * ids.element_size() for ids, start in group.tensors]
    table = torch.empty(len(addresses), dtype=torch.int64, pin_memory=True)
    table.numpy()[:] = addresses
    return table


def _sampled(tensors: Routed, num_tokens: int) -> tuple[int, Any, Any]:
    if isinstance(tensors, RouterLogits):
        tensors = tensors.as_ids(num_tokens)
    rows = slice(tensors.start, tensors.start + num_tokens)
    return (
        tensors.layer,
        _to_host(tensors.ids[rows]),
        None if tensors.weights is None else _to_host(tensors.weights[rows]),
    )


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    import torch  # noqa: PLC0415

    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    return host


def _arrived(pending: _Pending) -> StepCounts:
    slot = pending.slot
    samples = _samples(pending) if pending.samples else ()
    if not slot.recomputed:
        return StepCounts(pending.step, slot.cells, samples)
    cells = list(slot.cells)
    ambiguous: list[tuple[int, int]] = []
    for launch, counts in slot.recomputed:
        total = counts.sum(axis=1) if launch.parts > 1 else counts[:, 0]
        cells.append(Cells(launch.layers, launch.top_k, total[:, :-1]))
        ambiguous += zip(launch.layers, total[:, -1].tolist(), strict=True)
    return StepCounts(pending.step, tuple(cells), samples, tuple(ambiguous))


def _samples(pending: _Pending) -> tuple[Sample, ...]:
    return tuple(
        Sample(layer, ids.numpy(), None if weights is None else weights.float().numpy())
        for layer, ids, weights in pending.samples
    )
