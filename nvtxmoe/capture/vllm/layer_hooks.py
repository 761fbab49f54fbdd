"""The hooks inside a layer: ranges of layers and phases, what routers choose, and the reduction of a layer's result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from nvtxmoe.capture.hooks import Hook, nothing, registered
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from nvtxmoe.capture.run_identity import LayerInfo
from nvtxmoe.capture.sinks.nvtx_emitter import Emitter
from nvtxmoe.capture.vllm.changed_identity import Place
from nvtxmoe.capture.vllm.own_rows import UnknownLayoutError, own_start, token_offset_of_thread
from nvtxmoe.formats import schema


class _Thread(threading.local):
    """What the thread is in the middle of."""

    layer: int | None = None
    info: LayerInfo | None = None
    logical: Any = None
    physical: Any = None
    collective: int | None = None


class Capture:
    """The hooks' state in one process.

    Parameters:
        ranges: emits layer and phase ranges; None for no ranges.
        keep_router: whether vLLM is kept from replacing routers, though that changes the program that runs.

    Attributes:
        place: where the worker was in the run when its layers were found.
    """

    def __init__(self, recorder: Recorder, ranges: Emitter | None, keep_router: bool = False) -> None:
        self.recorder = recorder
        self.keep_router = keep_router
        self.place: Place | None = None
        self.ranges = ranges
        self.thread = _Thread()
        self.layers: dict[int, LayerInfo] = {}  # by id() of the key; the model keeps the keys
        self.dp_rank = 0
        self.token_offset = token_offset_of_thread() or (lambda: 0)

    def layer_hook(self, key_of: Callable[..., Any], reduces: Callable[[Any], bool], name: str = "layer") -> Hook:
        """Around a layer's forward. ``key_of`` takes its arguments."""

        def enter(*args: Any, **kwargs: Any) -> Any:
            key = key_of(*args, **kwargs)
            info = self.layers.get(id(key))
            before = self.thread.layer, self.thread.info
            self.thread.layer, self.thread.info = None if info is None else info.layer, info
            self.thread.collective = None
            if info is not None:
                self.push(f"{schema.LAYER_PREFIX}{info.layer}", info.layer, "layer")
            return before, info, key

        def close(state: Any) -> None:
            self.thread.layer, self.thread.info = state[0]
            if state[1] is not None:
                self.pop()

        def leave(state: Any, _: Any) -> None:
            close(state)
            if state[1] is not None and reduces(state[2]):
                self.thread.collective = state[1].layer

        hook = self.hook(name, enter, leave, close)
        unwind = hook.unwind

        def outside(depth: int) -> None:
            self.thread.layer = self.thread.info = self.thread.collective = (
                None  # else later routers would count for this layer
            )
            unwind(depth)

        hook.unwind = outside
        return hook

    def phase_hook(self, phase: str) -> Hook:
        """Around a phase of the layer that this thread is in."""
        name = schema.PHASE_PREFIX + phase

        def enter(*_: Any, **__: Any) -> bool:
            layer = self.thread.layer
            if layer is not None:
                self.push(name, layer, "phase")
            return layer is not None

        def close(pushed: bool) -> None:
            if pushed:
                self.pop()

        return self.hook(phase, enter, lambda pushed, _: close(pushed), close)

    def router_hook(self) -> Hook:
        """Around a router: the phase, and what it chose."""
        phase = schema.PHASE_PREFIX + "route"

        def enter(router: Any, *_: Any, **__: Any) -> Any:
            layer = self.thread.layer
            self.thread.logical = self.thread.physical = None
            if layer is not None:
                self.push(phase, layer, "phase")
            return router, layer

        def close(state: Any) -> None:
            if state[1] is not None:
                self.pop()

        def leave(state: Any, result: Any) -> None:
            close(state)
            if state[1] is not None and self.recorder.listens(state[1]):
                router, layer = state
                self._routed(router, layer, result)

        return self.hook("route", enter, leave, close)

    def _routed(self, router: Any, layer: int, result: Any) -> None:
        from vllm.forward_context import get_forward_context  # noqa: PLC0415  inside vLLM only

        weights, _ = result
        logical, physical = self.thread.logical, self.thread.physical
        self.thread.logical = self.thread.physical = None
        info = self.thread.info
        if info is None or logical is None:  # the hook that sees it is off, and has said so
            return
        if logical.ndim != 2 or logical.shape[1] != router.top_k:
            self.recorder.hide(layer, f"its router gives {list(logical.shape)}, not [tokens, {router.top_k}]")
            return
        try:
            start = own_start(logical.shape[0], get_forward_context().dp_metadata, self.dp_rank)
        except UnknownLayoutError as error:
            self.recorder.hide(layer, str(error))
            return
        self.recorder.routed(
            RoutingTensors(
                layer=layer,
                num_experts=info.num_experts,
                ids=logical,
                weights=weights,
                physical=physical,
                num_physical=info.num_physical or 0,
                start=start,
                token_offset=self.token_offset(),
            )
        )

    def eplb_hook(self) -> Hook:
        """Around the mapping from logical to physical experts: it sees both, whoever else captures them."""

        def enter(_: Any, topk_ids: Any) -> Any:
            self.thread.logical = topk_ids
            return topk_ids

        def leave(logical: Any, result: Any) -> None:
            self.thread.physical = None if result is logical else result

        return self.hook("eplb", enter, leave)

    def collective_hook(self) -> Hook:
        """Around all-reduces: the first one after a layer that needs it sums that layer's result."""

        def enter(group: Any, *_: Any, **__: Any) -> bool:
            layer = self.thread.collective
            if layer is None or not str(group.unique_name).startswith("tp"):
                return False
            self.thread.collective = None
            self.push(schema.COLLECTIVE, layer, "phase")
            return True

        def close(pushed: bool) -> None:
            if pushed:
                self.pop()

        return self.hook("collective", enter, lambda pushed, _: close(pushed), close)

    def hook(
        self,
        name: str,
        enter: Callable[..., Any] = nothing,
        leave: Callable[[Any, Any], None] = nothing,
        abandon: Callable[[Any], None] = nothing,
    ) -> Hook:
        """The hook of that name, made now or before; a failure in it closes the ranges that it left open."""
        hook = Hook(name, enter, leave, abandon)
        if self.ranges is not None:
            hook.depth, hook.unwind = self.ranges.depth, self._unwind
        return registered(hook)

    def push(self, name: str, layer: int, category: str) -> None:
        """Open a range, where ranges are wanted."""
        if self.ranges is not None and not self.recorder.quiet:
            self.ranges.push(name, layer, category)

    def pop(self) -> None:
        """Close it. Whether ranges are wanted changes between steps only, while none is open."""
        if self.ranges is not None and not self.recorder.quiet:
            self.ranges.pop()

    def _unwind(self, depth: int) -> None:
        while self.ranges is not None and self.ranges.depth() > depth:
            self.ranges.pop()
