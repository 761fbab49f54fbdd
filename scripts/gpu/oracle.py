"""What a real vLLM routed, step by step, without any of nvtxmoe's hooks: the oracle that a capture is compared with.

Three sources of a layer's experts:

- ``copies``: this module has the router copy its ids and weights into buffers, inside the graph; a layer whose kernel
  routes inside copies its router logits, and vLLM's own top-k gives the experts afterwards.
- ``vllm``: the buffer of vLLM's routed-experts capturer (``enable_return_routed_experts``).
- ids that a stand-in kernel reports (``scripts/gpu/stand_in_sink.py``).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scripts.gpu import vllm_state, vllm_topk

#: Parameters that are a router's matrix.
GATES = ("gate.weight", "router.weight")


@dataclass
class Steps:
    """What the oracle keeps.

    Attributes:
        layers: numbers of the target model's MoE layers.
        ids: per step, logical experts, [tokens, layers, top_k] int64.
        physical: per step, experts after EPLB's mapping, likewise; empty when the source does not know them.
        weights: per step, routing weights, likewise float32; empty when the source does not know them.
        ties: per step, tokens whose k-th and (k+1)-th score are equal, [tokens, layers] bool; empty when no layer
            routes in its kernel.
        replays: CUDA graph replays per step.
        micro_batches: per step, first token of every micro-batch that vLLM divided it into; empty when it did not.
        sizes: per step, ranks in vLLM's group of data parallelism and in that of expert parallelism.
        idle: steps without tokens of this rank.
        kernels: (quantisation method, class of the experts, class of the router, routes inside) and its layers.
        runner: the model runner's module.
        sources: where the experts of a layer that routes inside come from, by layer.
    """

    layers: list[int] = field(default_factory=list)
    ids: list[np.ndarray[Any, Any]] = field(default_factory=list)
    physical: list[np.ndarray[Any, Any]] = field(default_factory=list)
    weights: list[np.ndarray[Any, Any]] = field(default_factory=list)
    ties: list[np.ndarray[Any, Any]] = field(default_factory=list)
    replays: list[int] = field(default_factory=list)
    micro_batches: list[list[int]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    idle: int = 0
    kernels: list[dict[str, Any]] = field(default_factory=list)
    runner: str = ""
    sources: dict[int, str] = field(default_factory=dict)


class Oracle:
    """Ids of every step, from buffers that the forward itself fills.

    Parameters:
        kind: ``copies`` or ``vllm``.
        most_tokens: rows of a buffer.
        file: where ``Steps`` go after every step, for a process that another one compares; None to keep them here.
    """

    def __init__(self, kind: str, most_tokens: int, file: Path | None = None) -> None:
        self.kind = kind
        self.most_tokens = most_tokens
        self.file = file
        self.device = "cpu"
        self.recorded = Steps()
        self._buffers: dict[str, dict[int, Any]] = {"ids": {}, "physical": {}, "weights": {}, "logits": {}}
        self._routing: dict[int, Callable[[Any], tuple[Any, Any]]] = {}
        self._experts: dict[int, int] = {}
        self._dtypes: dict[int, Any] = {}
        self._replayed = 0
        self._micro_batches: list[int] = []
        self._warming_up = False

    def install(self) -> None:
        """Wrap the worker outermost, and count replays."""
        import torch  # noqa: PLC0415
        from vllm.v1.worker.gpu_worker import Worker  # noqa: PLC0415

        self.wrap(Worker)
        if not torch.cuda.is_available():
            return
        self.device = "cuda"
        vllm_state.watch_micro_batches(self._divided)
        replay = torch.cuda.CUDAGraph.replay

        def replayed(graph: Any) -> Any:
            self._replayed += 1
            return replay(graph)

        torch.cuda.CUDAGraph.replay = replayed

    def _divided(self, first_tokens: list[int]) -> None:
        self._micro_batches = first_tokens

    def wrap(self, worker_class: Any) -> None:
        """Put the oracle around the methods of a worker's class."""
        load, execute = worker_class.load_model, worker_class.execute_model
        warm_up, dummy = worker_class.compile_or_warm_up_model, worker_class.execute_dummy_batch

        def loaded(worker: Any, *args: Any, **kwargs: Any) -> Any:
            result = load(worker, *args, **kwargs)
            self.loaded(worker)
            return result

        def executed(worker: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            self._replayed, self._micro_batches = 0, []
            result = execute(worker, scheduled, *args, **kwargs)
            if (tokens := scheduled.total_num_scheduled_tokens) and not self._warming_up:
                self.step(worker, tokens)
            return result

        def warmed_up(worker: Any, *args: Any, **kwargs: Any) -> Any:
            self._warming_up = True  # model runner V2 runs steps of its own
            try:
                return warm_up(worker, *args, **kwargs)
            finally:
                self._warming_up = False

        def idled(worker: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._warming_up:
                self.idle_step()
            return dummy(worker, *args, **kwargs)

        worker_class.load_model, worker_class.execute_model = loaded, executed
        worker_class.compile_or_warm_up_model, worker_class.execute_dummy_batch = warmed_up, idled

    def loaded(self, worker: Any) -> None:
        """Find the target model's layers, draw their gates anew and have them copy what they choose."""
        from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner  # noqa: PLC0415

        model = worker.model_runner.get_model()
        target_modules = {id(module) for module in model.modules()}
        context = worker.vllm_config.compilation_config.static_forward_context
        every = [runner for runner in context.values() if isinstance(runner, MoERunner)]
        target = [runner for runner in every if id(runner) in target_modules] or every
        runners = sorted(target, key=lambda runner: runner.layer_id)
        self.recorded.layers = [runner.layer_id for runner in runners]
        self.recorded.kernels = kernels_of(runners)
        self.recorded.runner = type(worker.model_runner).__module__
        draw_gates(model, self.device)
        if self.kind == "copies":
            self._copy(runners)

    def _copy(self, runners: list[Any]) -> None:
        from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter  # noqa: PLC0415

        of_router = {}
        for runner in runners:
            layer, top_k = runner.layer_id, runner.router.top_k
            for name, dtype in (("ids", "int32"), ("physical", "int32"), ("weights", "float32")):
                self._buffers[name][layer] = self._empty(top_k, dtype)
            if runner.is_monolithic:
                self._inside(runner)
            else:
                of_router[id(runner.router)] = layer
                self._keep_logical(runner.router, layer)
        select = BaseRouter._select_experts

        def selected(router: Any, *args: Any, **kwargs: Any) -> Any:
            weights, ids = select(router, *args, **kwargs)
            layer = of_router.get(id(router))
            if layer is not None:
                self._keep("physical", layer, ids)
                self._keep("weights", layer, weights)
            return weights, ids

        BaseRouter._select_experts = selected

    def _empty(self, columns: int, dtype: str) -> Any:
        import torch  # noqa: PLC0415

        return torch.zeros((self.most_tokens, columns), dtype=getattr(torch, dtype), device=self.device)

    def _keep(self, name: str, layer: int, rows: Any) -> None:
        start = vllm_state.first_row()
        self._buffers[name][layer][start : start + len(rows)].copy_(rows)

    def _keep_logical(self, router: Any, layer: int) -> None:
        compute = router._compute_routing

        def computed(*args: Any, **kwargs: Any) -> Any:
            weights, ids = compute(*args, **kwargs)
            self._keep("ids", layer, ids)
            return weights, ids

        router._compute_routing = computed

    def _inside(self, runner: Any) -> None:
        """Follow a layer that routes inside its kernel."""
        layer, experts = runner.layer_id, runner.routed_experts
        kernel = fused_experts(runner)
        if hasattr(kernel, "report_ids"):  # a stand-in, which knows what it chose
            kernel.report_ids = partial(self._reported, layer)
            self.recorded.sources[layer] = "ids that the stand-in kernel reports"
            return
        self._experts[layer] = int(runner.moe_config.num_logical_experts)
        self._buffers["logits"][layer] = self._empty(self._experts[layer], "float32")
        self._routing[layer], self.recorded.sources[layer] = vllm_topk.routing(runner, type(kernel).__name__)
        forward = experts.forward_monolithic

        def forwarded(*args: Any, **kwargs: Any) -> Any:
            logits = kwargs["router_logits"] if "router_logits" in kwargs else args[1]
            self._dtypes[layer] = logits.dtype
            self._keep("logits", layer, logits)
            return forward(*args, **kwargs)

        experts.forward_monolithic = forwarded

    def _reported(self, layer: int, weights: Any, ids: Any) -> None:
        for name, rows in (("ids", ids), ("physical", ids), ("weights", weights)):
            self._keep(name, layer, rows)

    def idle_step(self) -> None:
        """An idle batch takes a number, and has no tokens."""
        recorded, empty = self.recorded, np.zeros((0, len(self.recorded.layers), 1), dtype=np.int64)
        recorded.ids.append(empty)
        if self.kind == "copies":
            recorded.physical.append(empty)
            recorded.weights.append(empty.astype(np.float32))
        if self._routing:
            recorded.ties.append(np.zeros(empty.shape[:2], dtype=bool))
        recorded.sizes.append(vllm_state.group_sizes())
        recorded.idle += 1

    def step(self, worker: Any, tokens: int) -> None:
        """Read the buffers after a step's forward."""
        if self.device == "cuda":
            import torch  # noqa: PLC0415

            torch.cuda.synchronize()
        recorded = self.recorded
        recorded.replays.append(self._replayed)
        recorded.micro_batches.append(self._micro_batches)
        recorded.sizes.append(vllm_state.group_sizes())
        if self.kind == "vllm":
            buffer = vllm_state.capturer_buffer(worker.model_runner)
            recorded.ids.append(buffer[:tokens, recorded.layers].cpu().numpy().astype(np.int64))
        else:
            self._route_again(tokens)
            for name, steps in (("ids", recorded.ids), ("physical", recorded.physical), ("weights", recorded.weights)):
                columns = [self._buffers[name][layer][:tokens].cpu().numpy() for layer in recorded.layers]
                stacked = np.stack(columns, axis=1)
                steps.append(stacked if name == "weights" else stacked.astype(np.int64))
        if self.file is not None:
            part = self.file.with_suffix(".part")
            part.write_bytes(pickle.dumps(recorded))
            part.replace(self.file)

    def _route_again(self, tokens: int) -> None:
        """Give the layers that route inside their experts, by vLLM's own top-k on the logits that they had."""
        if not self._routing:
            return
        ties = np.zeros((tokens, len(self.recorded.layers)), dtype=bool)
        for layer, route in self._routing.items():
            logits = self._buffers["logits"][layer][:tokens].to(self._dtypes[layer])
            weights, ids = route(logits)
            for name, rows in (("ids", ids), ("physical", ids), ("weights", weights)):
                self._keep(name, layer, rows)
            ties[:, self.recorded.layers.index(layer)] = vllm_topk.tied(logits, ids.shape[1]).cpu().numpy()
        self.recorded.ties.append(ties)


def fused_experts(runner: Any) -> Any:
    """The object that runs a layer's experts; None when its method has no such object."""
    kernel = getattr(runner.routed_experts.quant_method, "moe_kernel", None)
    return getattr(getattr(kernel, "impl", None), "fused_experts", None)


def kernels_of(runners: list[Any]) -> list[dict[str, Any]]:
    """Classes that run the layers, each combination with its layers."""
    seen: dict[tuple[str, str, str, bool], list[int]] = {}
    for runner in runners:
        method = type(runner.routed_experts.quant_method).__name__
        kernel = fused_experts(runner)
        experts = "" if kernel is None else type(kernel).__name__
        key = (method, experts, type(runner.router).__name__, bool(runner.is_monolithic))
        seen.setdefault(key, []).append(int(runner.layer_id))
    names = ("method", "experts", "router", "monolithic")
    return [{**dict(zip(names, key, strict=True)), "layers": layers} for key, layers in seen.items()]


def draw_gates(model: Any, device: str) -> int:
    """Draw the routers' matrices anew: dummy weights give every layer the same. Return how many were drawn.

    Quantised matrices (integers, 8-bit floats) stay as they are.
    """
    import torch  # noqa: PLC0415

    generator = torch.Generator(device=device).manual_seed(7)
    drawn = 0
    for name, parameter in model.named_parameters():
        is_wide = parameter.is_floating_point() and parameter.dtype.itemsize > 1
        if name.endswith(GATES) and is_wide:
            parameter.data.normal_(0, 0.5, generator=generator)
            drawn += 1
    return drawn
