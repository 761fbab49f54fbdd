"""The hooks on the worker: its steps, its idle batches, its model, its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

from nvtxmoe.capture.hooks import Hook, wrap
from nvtxmoe.capture.log import logger
from nvtxmoe.capture.vllm import fused_front
from nvtxmoe.capture.vllm.changed_identity import Place
from nvtxmoe.capture.vllm.identity import identify
from nvtxmoe.capture.vllm.layer_hooks import Capture
from nvtxmoe.capture.vllm.moe_layer import MoeLayer
from nvtxmoe.capture.vllm.prefill_tokens import RequestLengths
from nvtxmoe.formats import schema


def step_hook(capture: Capture) -> Hook:
    """Around ``execute_model``. The step goes on to the end of ``sample_tokens`` where that follows."""
    by_worker: WeakKeyDictionary[Any, RequestLengths] = WeakKeyDictionary()  # names of requests repeat
    latest: tuple[Callable[[], Any], RequestLengths] = (lambda: None), RequestLengths()
    recorder = capture.recorder

    def enter(worker: Any, scheduler_output: Any) -> bool:
        nonlocal latest
        scheduled = scheduler_output
        reference, requests = latest  # to ask the dictionary takes longer
        if reference() is not worker:
            requests = by_worker.setdefault(worker, RequestLengths())
            latest = ref(worker), requests
        if scheduled.finished_req_ids:
            requests.forget(scheduled.finished_req_ids)
        if capture.place is not None:
            _notice_change(capture, capture.place)
        tokens = scheduled.total_num_scheduled_tokens
        if not tokens:
            return False
        if recorder.recorded.windowed and recorder.pass_step():
            requests.learn(scheduled)
            return False
        prefill = requests.prefill_tokens(scheduled)
        recorder.begin_step(tokens, len(scheduled.num_scheduled_tokens), prefill, tokens - prefill)
        return True

    def leave(began: bool, result: Any) -> None:
        if began:
            recorder.forward_done()
            if result is not None:
                recorder.end_step()

    hook = capture.hook("step", enter, leave, lambda _: capture.recorder.abandon_step())
    unwind = hook.unwind

    def give_up(depth: int) -> None:
        capture.recorder.abandon_step()  # closes the step's range, which is the recorder's to close
        unwind(depth)

    hook.unwind = give_up
    return hook


def _notice_change(capture: Capture, place: Place) -> None:
    if (change := place.change()) is not None:
        capture.recorder.stop(change)
        capture.place = None


def sample_hook(capture: Capture) -> Hook:
    """Around ``sample_tokens``: the step ends with it."""
    return capture.hook("sample", leave=lambda *_: capture.recorder.end_step())


def idle_hook(capture: Capture) -> Hook:
    """Around a data-parallel rank's dummy batch."""

    def enter(*_: Any, **__: Any) -> None:
        if capture.place is not None:
            _notice_change(capture, capture.place)
        capture.recorder.skip_step()
        capture.push(schema.IDLE, 0, "idle")

    return capture.hook("idle", enter, lambda *_: capture.pop(), lambda _: capture.pop())


def warm_up_hook(capture: Capture) -> Hook:
    """Around ``compile_or_warm_up_model``: the steps in it, of model runner V2 for one, are the engine's own."""

    def enter(worker: Any, *_: Any, **__: Any) -> None:
        capture.recorder.warming_up = True
        if worker.device.type == "cuda":
            capture.recorder.prepare_for_gpu()

    def close(_: Any) -> None:
        capture.recorder.warming_up = False

    hook = capture.hook("warm_up", enter, lambda state, _: close(state), close)
    hook.unwind = close  # else nothing would be recorded ever after
    return hook


def load_hook(capture: Capture, find: Callable[[dict[str, Any]], list[MoeLayer]]) -> Hook:
    """After the model is loaded: which layers there are."""

    warm_up = warm_up_hook(capture)

    def leave(worker: Any, _: Any) -> None:
        wrap(type(worker), "compile_or_warm_up_model", warm_up)  # workers of other devices have their own
        layers = find(worker.vllm_config.compilation_config.static_forward_context)
        capture.dp_rank = worker.vllm_config.parallel_config.data_parallel_rank
        kept_routers = capture.keep_router and fused_front.keep_routers(worker, layers)
        identity, by_key, hidden = identify(worker, layers, fused_front.CHANGED if kept_routers else None)
        before = capture.recorder.identity
        if before is not None and not capture.recorder.same_layers(identity):
            capture.recorder.refuse_second_model()
            return
        capture.layers.update({id(layer.key): info for layer, info in zip(layers, by_key, strict=True)})
        capture.place = Place(worker, layers)
        capture.recorder.model_loaded(identity)
        logger().info("rank %d: MoE layers %s", identity.rank, [layer.layer for layer in identity.layers])
        for layer, reason in hidden.items():
            if capture.recorder.records(layer):
                capture.recorder.hide(layer, reason)

    return capture.hook("load", lambda worker, *_, **__: worker, leave)


def shutdown_hook(capture: Capture) -> Hook:
    """Before the worker ends. Its process closes the recorder: it may get another model before that."""
    return capture.hook("shutdown", lambda *_, **__: capture.recorder.flush())
