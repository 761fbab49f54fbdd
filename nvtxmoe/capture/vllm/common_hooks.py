"""What the shapes of vLLM have in common: what they need, and the hooks that every adapter puts in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvtxmoe.capture.hooks import put, wrap
from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.cuda_graphs import hook_graphs
from nvtxmoe.capture.vllm import worker_hooks
from nvtxmoe.capture.vllm.capture_sources import hook_sources, sources
from nvtxmoe.capture.vllm.layer_hooks import Capture
from nvtxmoe.capture.vllm.moe_layer import MoeLayer
from nvtxmoe.capture.vllm.requirements import Need, OptionalHook

FUSED = "vllm.model_executor.layers.fused_moe"
NEEDS = (
    Need("vllm.v1.worker.gpu_worker", "Worker.execute_model", ("scheduler_output",)),
    Need("vllm.v1.worker.gpu_worker", "Worker.sample_tokens"),
    Need("vllm.v1.worker.gpu_worker", "Worker.execute_dummy_batch"),
    Need("vllm.v1.worker.gpu_worker", "Worker.load_model"),
    Need("vllm.v1.worker.gpu_worker", "Worker.compile_or_warm_up_model"),
    Need("vllm.v1.worker.gpu_worker", "Worker.shutdown"),
    Need(f"{FUSED}.runner.moe_runner", "MoERunner._maybe_dispatch"),
    Need(f"{FUSED}.runner.moe_runner", "MoERunner._maybe_combine"),
    Need(f"{FUSED}.router.base_router", "BaseRouter._apply_eplb_mapping", ("topk_ids",)),
    Need("vllm.distributed.parallel_state", "GroupCoordinator._all_reduce_out_place"),
    Need("vllm.forward_context", "get_forward_context"),
)
#: What newer vLLM has and capture uses where it is there.
OPTIONAL = {
    "recomputed layers": OptionalHook("0.24", (Need(f"{FUSED}.routed_experts", "RoutedExperts.forward_monolithic"),)),
    "sinks of kernels": OptionalHook(
        "0.32",
        (
            Need(f"{FUSED}.routed_experts_capturer", "RoutedExpertsSink", ("capture_fn",)),
            Need(f"{FUSED}.modular_kernel", "FusedMoEExpertsMonolithic.supports_routing_replay_capture"),
        ),
    ),
    "breakable CUDA graphs": OptionalHook(
        "0.22", (Need("vllm.compilation.breakable_cudagraph", "BreakableCUDAGraphCapture.replay"),)
    ),
    "micro-batches (DBO)": OptionalHook("0.33", (Need("vllm.v1.worker.ubatching", "dbo_current_ubatch_token_offset"),)),
    "DeepGEMM MegaMoE": OptionalHook(
        "0.33",
        (
            Need(f"{FUSED}.deep_gemm_mega_moe", "DeepGemmMegaMoEExperts.forward", ("topk_ids",)),
            Need(f"{FUSED}.deep_gemm_mega_moe", "DeepGemmMegaMoEExperts.layer_id"),
        ),
    ),
}


def install(capture: Capture, runner: type, find: Callable[[dict[str, Any]], list[MoeLayer]]) -> None:
    """Hook what every shape has."""
    import torch  # noqa: PLC0415  inside vLLM only
    from vllm.distributed.parallel_state import GroupCoordinator  # noqa: PLC0415
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter  # noqa: PLC0415
    from vllm.v1.worker.gpu_worker import Worker  # noqa: PLC0415

    if torch.version.cuda is not None:  # asking for a device would start CUDA here, which a fork does not survive
        hook_graphs(capture.recorder.graphs, capture.recorder.replayed)

    def find_layers(static_context: dict[str, Any]) -> list[MoeLayer]:
        others = sources(static_context, runner)
        hook_sources(capture, others)
        return find(static_context) + others

    wrap(Worker, "load_model", worker_hooks.load_hook(capture, find_layers))
    wrap(Worker, "execute_model", worker_hooks.step_hook(capture))
    wrap(Worker, "sample_tokens", worker_hooks.sample_hook(capture))
    wrap(Worker, "execute_dummy_batch", worker_hooks.idle_hook(capture))
    wrap(Worker, "shutdown", worker_hooks.shutdown_hook(capture))
    wrap(runner, "_maybe_dispatch", capture.phase_hook("dispatch"))
    wrap(runner, "_maybe_combine", capture.phase_hook("combine"))
    wrap(BaseRouter, "_apply_eplb_mapping", capture.eplb_hook())
    # Outside the opaque op a compiler may trace this call: then it runs bare.
    wrap(GroupCoordinator, "_all_reduce_out_place", capture.collective_hook(), skip=torch.compiler.is_compiling)


def reduces(runner: Any) -> bool:
    """Whether an all-reduce of a layer's result (or of its shared experts') follows the layer."""
    config = runner.moe_config
    if config.is_sequence_parallel or (config.tp_size <= 1 and config.ep_size <= 1):
        return False
    return not runner._fused_output_is_reduced or runner.shared_experts is not None


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
