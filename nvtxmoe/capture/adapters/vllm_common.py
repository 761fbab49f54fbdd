"""What the shapes of vLLM have in common: the worker's step, routers, reductions, and who this process is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nvtxmoe import schema
from nvtxmoe.capture.adapters.identity import identify
from nvtxmoe.capture.adapters.needs import Need
from nvtxmoe.capture.adapters.requests import RequestLengths
from nvtxmoe.capture.adapters.rows import UnknownLayoutError, own_start
from nvtxmoe.capture.emission import Emitter
from nvtxmoe.capture.graphs import hook_graphs
from nvtxmoe.capture.hooks import Hook, put, registered, wrap
from nvtxmoe.capture.log import logger
from nvtxmoe.capture.model import LayerInfo
from nvtxmoe.capture.recorder import Recorder
from nvtxmoe.capture.routed import Routed

FUSED = "vllm.model_executor.layers.fused_moe"
NEEDS = (
    Need("vllm.v1.worker.gpu_worker", "Worker.execute_model", ("scheduler_output",)),
    Need("vllm.v1.worker.gpu_worker", "Worker.sample_tokens"),
    Need("vllm.v1.worker.gpu_worker", "Worker.execute_dummy_batch"),
    Need("vllm.v1.worker.gpu_worker", "Worker.load_model"),
    Need("vllm.v1.worker.gpu_worker", "Worker.shutdown"),
    Need(f"{FUSED}.runner.moe_runner", "MoERunner._maybe_dispatch"),
    Need(f"{FUSED}.runner.moe_runner", "MoERunner._maybe_combine"),
    Need(f"{FUSED}.router.base_router", "BaseRouter._apply_eplb_mapping", ("topk_ids",)),
    Need("vllm.distributed.parallel_state", "GroupCoordinator._all_reduce_out_place"),
    Need("vllm.forward_context", "get_forward_context"),
)


@dataclass(frozen=True)
class Found:
    """An MoE layer of the loaded model, as an adapter finds it.

    Attributes:
        key: the object that the layer hook sees.
        experts: the module that holds the experts' weights.
    """

    key: Any
    layer_id: int
    name: str
    moe_config: Any
    router: Any
    experts: Any
    expert_map: Any
    monolithic: bool


class _Thread(threading.local):
    """What the thread is in the middle of."""

    layer: int | None = None
    logical: Any = None
    physical: Any = None
    collective: int | None = None


class Capture:
    """The hooks' state in one process.

    Parameters:
        ranges: emits layer and phase ranges; None for no ranges.
    """

    def __init__(self, recorder: Recorder, ranges: Emitter | None) -> None:
        self.recorder = recorder
        self.ranges = ranges
        self.thread = _Thread()
        self.layers: dict[int, LayerInfo] = {}  # by id() of the key; the model keeps the keys
        self.dp_rank = 0
        self.requests = RequestLengths()

    # Hooks inside a layer ----------------------------------------------------------------------------------------

    def layer_hook(self, key_of: Callable[..., Any], reduces: Callable[[Any], bool]) -> Hook:
        """Around a layer's forward. ``key_of`` takes its arguments."""

        def enter(*args: Any, **kwargs: Any) -> Any:
            key = key_of(*args, **kwargs)
            info = self.layers.get(id(key))
            before, self.thread.layer = self.thread.layer, None if info is None else info.layer
            self.thread.collective = None
            if info is not None:
                self._push(f"{schema.LAYER_PREFIX}{info.layer}", info.layer, "layer")
            return before, info, key

        def close(state: Any) -> None:
            self.thread.layer = state[0]
            if state[1] is not None:
                self._pop()

        def leave(state: Any, _: Any) -> None:
            close(state)
            if state[1] is not None and reduces(state[2]):
                self.thread.collective = state[1].layer

        hook = self._hook("layer", enter, leave, close)
        unwind = hook.unwind

        def outside(depth: int) -> None:
            self.thread.layer = self.thread.collective = None  # else later routers would count for this layer
            unwind(depth)

        hook.unwind = outside
        return hook

    def phase_hook(self, phase: str) -> Hook:
        """Around a phase of the layer that this thread is in."""
        name = schema.PHASE_PREFIX + phase

        def enter(*_: Any, **__: Any) -> bool:
            layer = self.thread.layer
            if layer is not None:
                self._push(name, layer, "phase")
            return layer is not None

        def close(pushed: bool) -> None:
            if pushed:
                self._pop()

        return self._hook(phase, enter, lambda pushed, _: close(pushed), close)

    def router_hook(self) -> Hook:
        """Around a router: the phase, and what it chose."""
        phase = schema.PHASE_PREFIX + "route"

        def enter(router: Any, *_: Any, **__: Any) -> Any:
            layer = self.thread.layer
            self.thread.logical = self.thread.physical = None
            if layer is not None:
                self._push(phase, layer, "phase")
            return router, layer

        def close(state: Any) -> None:
            if state[1] is not None:
                self._pop()

        def leave(state: Any, result: Any) -> None:
            close(state)
            if state[1] is not None and self.recorder.listens(state[1]):
                router, layer = state
                self._routed(router, layer, result)

        return self._hook("route", enter, leave, close)

    def _routed(self, router: Any, layer: int, result: Any) -> None:
        from vllm.forward_context import get_forward_context  # noqa: PLC0415  inside vLLM only

        weights, _ = result
        logical, physical = self.thread.logical, self.thread.physical
        self.thread.logical = self.thread.physical = None
        info = next(one for one in self.layers.values() if one.layer == layer)
        if logical is None:  # the hook that sees it is off, and has said so
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
            Routed(
                layer=layer,
                num_experts=info.num_experts,
                ids=logical,
                weights=weights,
                physical=physical,
                num_physical=info.num_physical or 0,
                start=start,
            )
        )

    def eplb_hook(self) -> Hook:
        """Around the mapping from logical to physical experts: it sees both, whoever else captures them."""

        def enter(_: Any, topk_ids: Any) -> Any:
            self.thread.logical = topk_ids
            return topk_ids

        def leave(logical: Any, result: Any) -> None:
            self.thread.physical = None if result is logical else result

        return self._hook("eplb", enter, leave)

    def collective_hook(self) -> Hook:
        """Around all-reduces: the first one after a layer that needs it sums that layer's result."""

        def enter(group: Any, *_: Any, **__: Any) -> bool:
            layer = self.thread.collective
            if layer is None or not str(group.unique_name).startswith("tp"):
                return False
            self.thread.collective = None
            self._push(schema.COLLECTIVE, layer, "phase")
            return True

        def close(pushed: bool) -> None:
            if pushed:
                self._pop()

        return self._hook("collective", enter, lambda pushed, _: close(pushed), close)

    # Hooks of the worker -----------------------------------------------------------------------------------------

    def step_hook(self) -> Hook:
        """Around ``execute_model``. The step goes on to the end of ``sample_tokens`` where that follows."""

        def enter(_: Any, scheduler_output: Any) -> bool:
            scheduled = scheduler_output
            self.requests.forget(scheduled.finished_req_ids)
            tokens = scheduled.total_num_scheduled_tokens
            if not tokens:
                return False
            prefill = self.requests.prefill_tokens(scheduled)
            self.recorder.begin_step(tokens, len(scheduled.num_scheduled_tokens), prefill, tokens - prefill)
            return True

        def leave(began: bool, result: Any) -> None:
            if began:
                self.recorder.forward_done()
                if result is not None:
                    self.recorder.end_step()

        hook = self._hook("step", enter, leave, lambda _: self.recorder.abandon_step())
        unwind = hook.unwind

        def give_up(depth: int) -> None:
            self.recorder.abandon_step()  # closes the step's range, which is the recorder's to close
            unwind(depth)

        hook.unwind = give_up
        return hook

    def sample_hook(self) -> Hook:
        """Around ``sample_tokens``: the step ends with it."""
        return self._hook("sample", leave=lambda *_: self.recorder.end_step())

    def idle_hook(self) -> Hook:
        """Around a data-parallel rank's dummy batch."""

        def enter(*_: Any, **__: Any) -> None:
            self.recorder.skip_step()
            self._push(schema.IDLE, 0, "idle")

        return self._hook("idle", enter, lambda *_: self._pop(), lambda _: self._pop())

    def load_hook(self, find: Callable[[dict[str, Any]], list[Found]]) -> Hook:
        """After the model is loaded: which layers there are."""

        def leave(worker: Any, _: Any) -> None:
            found = find(worker.vllm_config.compilation_config.static_forward_context)
            self.dp_rank = worker.vllm_config.parallel_config.data_parallel_rank
            identity, by_key, hidden = identify(worker, found)
            self.layers = {id(one.key): info for one, info in zip(found, by_key, strict=True)}
            self.recorder.model_loaded(identity)
            for layer, reason in hidden.items():
                if self.recorder.records(layer):
                    self.recorder.hide(layer, reason)

        return self._hook("load", lambda worker, *_, **__: worker, leave)

    def shutdown_hook(self) -> Hook:
        """Before the worker ends. Its process closes the recorder: it may get another model before that."""
        return self._hook("shutdown", lambda *_, **__: self.recorder.rest())

    # -------------------------------------------------------------------------------------------------------------

    def _hook(
        self,
        name: str,
        enter: Callable[..., Any] = lambda *_, **__: None,
        leave: Callable[[Any, Any], None] = lambda *_: None,
        abandon: Callable[[Any], None] = lambda _: None,
    ) -> Hook:
        hook = Hook(name, enter, leave, abandon)
        if self.ranges is not None:
            hook.depth, hook.unwind = self.ranges.depth, self._unwind
        return registered(hook)

    def _push(self, name: str, layer: int, category: str) -> None:
        if self.ranges is not None:
            self.ranges.push(name, layer, category)

    def _pop(self) -> None:
        if self.ranges is not None:
            self.ranges.pop()

    def _unwind(self, depth: int) -> None:
        while self.ranges is not None and self.ranges.depth() > depth:
            self.ranges.pop()


def install(capture: Capture, runner: type, find: Callable[[dict[str, Any]], list[Found]]) -> None:
    """Hook what every shape has."""
    import torch  # noqa: PLC0415  inside vLLM only
    from vllm.distributed.parallel_state import GroupCoordinator  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter  # noqa: PLC0415
    from vllm.v1.worker.gpu_worker import Worker  # noqa: PLC0415

    if torch.cuda.is_available():
        hook_graphs(capture.recorder.graphs, capture.recorder.replayed)
    wrap(Worker, "load_model", capture.load_hook(find))
    wrap(Worker, "execute_model", capture.step_hook())
    wrap(Worker, "sample_tokens", capture.sample_hook())
    wrap(Worker, "execute_dummy_batch", capture.idle_hook())
    wrap(Worker, "shutdown", capture.shutdown_hook())
    wrap(runner, "_maybe_dispatch", capture.phase_hook("dispatch"))
    wrap(runner, "_maybe_combine", capture.phase_hook("combine"))
    wrap(BaseRouter, "_apply_eplb_mapping", capture.eplb_hook())
    # Outside the opaque op a compiler may trace this call: then it runs bare.
    wrap(GroupCoordinator, "_all_reduce_out_place", capture.collective_hook(), skip=torch.compiler.is_compiling)


def route_through_the_op(runner: Any) -> None:
    """On a CPU a compiled model calls the layer as plain Python, where hooks would break the compiler.

    There, as on GPUs, the layer is called through vLLM's own opaque operation.
    """
    import torch  # noqa: PLC0415  inside vLLM only
    from vllm.config import get_current_vllm_config  # noqa: PLC0415
    from vllm.platforms import current_platform  # noqa: PLC0415

    if not current_platform.is_cpu() or "_select_forward" not in vars(runner):
        return
    original = runner._select_forward

    def select_forward(self: Any) -> Any:
        chosen = original(self)
        try:
            if not get_current_vllm_config().compilation_config.mode:
                return chosen
            operations = torch.ops.vllm
            return operations.moe_forward if self._shared_experts is None else operations.moe_forward_shared
        except Exception:  # fails open
            logger().warning("a compiled layer could not be routed through vLLM's operation", exc_info=True)
            return chosen

    put(runner, "_select_forward", select_forward)
