"""What a vLLM process says of the step that it runs: its micro-batches, its groups of ranks, its capturer's buffer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def watch_micro_batches(note: Callable[[list[int]], None]) -> None:
    """Have every forward's division told, where each model runner hands the forward over to its micro-batches.

    Parameters:
        note: called with the first token of every micro-batch; with an empty list for a forward in one piece.
    """
    try:
        from vllm.forward_context import get_forward_context  # noqa: PLC0415
        from vllm.v1.worker.gpu.ubatch_utils import UBatchRunner  # noqa: PLC0415
        from vllm.v1.worker.gpu_ubatch_wrapper import UBatchWrapper  # noqa: PLC0415
    except ImportError:  # older than micro-batches of both model runners
        return
    call, prepare = UBatchWrapper.__call__, UBatchRunner.prepare

    def called(wrapper: Any, *args: Any, **kwargs: Any) -> Any:
        note(_first_tokens(get_forward_context().ubatch_slices))
        return call(wrapper, *args, **kwargs)

    def prepared(runner: Any, *args: Any, **kwargs: Any) -> Any:
        state = prepare(runner, *args, **kwargs)
        note(_first_tokens(state.slices))
        return state

    UBatchWrapper.__call__, UBatchRunner.prepare = called, prepared


def _first_tokens(slices: Any) -> list[int]:
    return [int(part.token_slice.start) for part in slices or ()]


def group_sizes() -> tuple[int, int]:
    """Ranks in vLLM's groups of data parallelism and of expert parallelism; 1 for a group that is not there."""
    state = sys.modules.get("vllm.distributed.parallel_state")
    groups = (getattr(state, "_DP", None), getattr(state, "_EP", None))
    data, expert = (1 if group is None else int(group.world_size) for group in groups)
    return data, expert


def first_row() -> int:
    """The row of the step's batch that this thread's micro-batch begins at; 0 without micro-batches."""
    try:
        from vllm.v1.worker.ubatching import dbo_current_ubatch_token_offset  # noqa: PLC0415
    except ImportError:  # older than micro-batches with an offset
        return 0
    return int(dbo_current_ubatch_token_offset())


def capturer_buffer(model_runner: Any) -> Any:
    """The buffer [tokens, layers, top_k] of vLLM's routed-experts capturer, wherever this model runner holds it.

    Raises:
        AttributeError: the runner has no capturer that this function knows.
    """
    capturer = getattr(model_runner, "routed_experts_capturer", None)  # model runner V1, to vLLM 0.32
    if capturer is None:
        connector = model_runner.aux_output_connector  # model runner V2
        capturer = connector._capturer
    return capturer.get_device_buffer() if hasattr(capturer, "get_device_buffer") else capturer.device_buffer
