"""Which rows of a routing tensor are this rank's own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

#: Has the token offset of the micro-batch that a thread runs, in vLLM 0.33 and newer.
UBATCHING, TOKEN_OFFSET = "vllm.v1.worker.ubatching", "dbo_current_ubatch_token_offset"


def token_offset_of_thread() -> Callable[[], int] | None:
    """Return vLLM's function for the first token of this thread's micro-batch; None where vLLM has none."""
    try:
        token_offset: Callable[[], int] | None = getattr(import_module(UBATCHING), TOKEN_OFFSET, None)
    except ImportError:
        return None
    return token_offset


class UnknownLayoutError(LookupError):
    """Rows that can't be told apart; the message says what was found."""


def own_start(rows: int, dp_metadata: Any, dp_rank: int) -> int:
    """First own row.

    Parameters:
        rows: of the routing tensor.
        dp_metadata: vLLM's DPMetadata of the forward, None without data parallelism. Its numbers are on the CPU.

    Raises:
        UnknownLayoutError: sequence-parallel shards and the like.
    """
    if dp_metadata is None:
        return 0
    by_rank = [int(n) for n in dp_metadata.num_tokens_across_dp_cpu.tolist()]
    if rows == sum(by_rank):  # all ranks' tokens one after the other
        return sum(by_rank[:dp_rank])
    if rows == by_rank[dp_rank]:
        return 0
    shards = dp_metadata.local_sizes
    if shards is not None and rows == sum(shards) and len(shards) % len(by_rank) == 0:
        return sum(shards[: dp_rank * (len(shards) // len(by_rank))])
    raise UnknownLayoutError(f"its rows are divided in a way that is not known ({rows} rows, {by_rank} tokens a rank)")
