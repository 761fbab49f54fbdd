"""The hook around a monolithic kernel: its sink is kept bound, or its logits are held."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from nvtxmoe.capture.hooks import Hook
from nvtxmoe.capture.recording.router_logits import RouterLogits
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from nvtxmoe.capture.run_identity import LayerInfo
from nvtxmoe.capture.vllm.layer_hooks import Capture
from nvtxmoe.capture.vllm.monolithic import Way, kernel_of, way_of
from nvtxmoe.capture.vllm.own_rows import UnknownLayoutError, own_start
from nvtxmoe.formats import schema


class SinkChain:
    """The callback of a sink: what was there before is called first, with the same ids."""

    def __init__(self, before: Any, take: Any) -> None:
        self.before = before
        self.take = take

    def __call__(self, ids: Any) -> None:
        """Ids of a forward, [rows, top_k]."""
        if self.before is not None:
            self.before(ids)
        self.take(ids)


class MonolithicLayers:
    """Records the layers of monolithic kernels of a process.

    Parameters:
        routers: the router of each layer by id() of its experts; filled when the model is loaded.
    """

    def __init__(self, capture: Capture, routers: dict[int, Any]) -> None:
        self._capture = capture
        self._routers = routers
        self._ways: WeakKeyDictionary[Any, tuple[Any, Way]] = WeakKeyDictionary()
        self._take = capture.hook("sink")  # off once taking ids has failed

    def hook(self) -> Hook:
        """Around ``forward_monolithic``: the range of the experts, and what the layer is recorded by."""
        capture = self._capture
        phase = capture.phase_hook("experts")

        def enter(experts: Any, x: Any, router_logits: Any = None, input_ids: Any = None, **_: Any) -> Any:
            pushed = phase.enter(experts, x)
            self._prepare(experts, router_logits, input_ids)
            return pushed

        return capture.hook("monolithic", enter, phase.leave, phase.abandon)

    def _prepare(self, experts: Any, logits: Any, input_ids: Any) -> None:
        info, recorder = self._capture.thread.info, self._capture.recorder
        if info is None:
            return
        if not recorder.records(info.layer):
            self._release(experts)
            return
        way = self._way(experts, info)
        if way.reason is None and way.recording != info.recording:
            way = Way(way.recording, reason="its weights were loaded again into a kernel that is recorded another way")
        if way.reason is not None:
            self._release(experts)
            recorder.hide(info.layer, way.reason)
        elif way.recording == schema.SINK:
            self._bind(experts)
        elif recorder.listens(info.layer) or recorder.warming_up:
            self._hold(info, way, logits, input_ids)

    def _way(self, experts: Any, info: LayerInfo) -> Way:
        """The way, found again where a reload of the weights has made another kernel."""
        kernel = kernel_of(experts)
        known = self._ways.get(experts)
        if known is None or known[0] is not kernel:
            known = self._ways[experts] = kernel, way_of(experts, self._routers.get(id(experts)), info.num_experts)
        return known[1]

    def _bind(self, experts: Any) -> None:
        """Have the kernel's ids, whoever else has them. vLLM may bind its own sink later: it is found here."""
        sink = experts.routing_sink
        if sink is None:
            from vllm.model_executor.layers.fused_moe.routed_experts_capturer import (  # noqa: PLC0415  in vLLM only
                RoutedExpertsSink,
            )

            experts.routing_sink = RoutedExpertsSink(kernel_of(experts).moe_config, SinkChain(None, self._taken))
        elif not isinstance(sink.capture_fn, SinkChain):
            sink.capture_fn = SinkChain(sink.capture_fn, self._taken)

    def _release(self, experts: Any) -> None:
        """Leave the layer as vLLM made it: a kernel without a sink refuses one."""
        sink = getattr(experts, "routing_sink", None)
        chain = getattr(sink, "capture_fn", None)
        if isinstance(chain, SinkChain):
            sink.capture_fn = chain.before  # type: ignore[union-attr]
            if chain.before is None:
                experts.routing_sink = None

    def _taken(self, ids: Any) -> None:
        if self._take.failure is not None:
            return
        try:
            info = self._capture.thread.info
            if info is not None and self._capture.recorder.listens(info.layer):
                self._keep_ids(info, ids)
        except Exception as error:  # fails open: this is called from vLLM's own code
            self._take.fail(error, 0)

    def _keep_ids(self, info: LayerInfo, ids: Any) -> None:
        start = self._start(info, ids.shape[0])
        if start is not None:
            self._capture.recorder.routed(
                RoutingTensors(
                    info.layer,
                    info.num_experts,
                    ids,
                    None,
                    start=start,
                    token_offset=self._capture.token_offset(),
                    lives_on=True,
                )
            )

    def _hold(self, info: LayerInfo, way: Way, logits: Any, input_ids: Any) -> None:
        recorder, recorder_rule = self._capture.recorder, way.rule
        if logits is None or logits.ndim != 2 or logits.shape[1] != info.num_experts or recorder_rule is None:
            shape = None if logits is None else list(logits.shape)
            recorder.hide(info.layer, f"its kernel is given logits {shape}, not [tokens, {info.num_experts}]")
            return
        if recorder_rule.table is not None and (input_ids is None or input_ids.shape[0] != logits.shape[0]):
            recorder.hide(info.layer, "a hash table routes, and its kernel is not given the rows' token ids")
            return
        router_logits = RouterLogits(
            layer=info.layer,
            num_experts=info.num_experts,
            top_k=info.top_k,
            logits=logits,
            rule=recorder_rule.rule,
            bias=recorder_rule.bias,
            table=recorder_rule.table,
            input_ids=None if recorder_rule.table is None else input_ids,
            token_offset=self._capture.token_offset(),
        )
        if recorder.warming_up and not recorder.listens(info.layer):
            recorder.prepare_for_logits(router_logits)
            return
        start = self._start(info, logits.shape[0])
        if start is not None:
            recorder.routed(router_logits.starting_at(start))

    def _start(self, info: LayerInfo, rows: int) -> int | None:
        """First own row; None for a layer that is hidden, since its rows can't be told apart."""
        from vllm.forward_context import get_forward_context  # noqa: PLC0415  inside vLLM only

        try:
            return own_start(rows, get_forward_context().dp_metadata, self._capture.dp_rank)
        except UnknownLayoutError as error:
            self._capture.recorder.hide(info.layer, str(error))
            return None
