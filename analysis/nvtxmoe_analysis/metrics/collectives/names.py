"""What is known of collective kernels by their names: whether every rank waits for every other, and who takes part.

A kernel that needs something of every rank before it can end does not end before the last rank's has begun. That
holds of reductions to all, of gathers to all and of barriers. It does not hold of a broadcast or a point-to-point
transfer (a sender may leave before the receiver has come), nor of DeepEP's combine (a rank waits only for those that
it sent tokens to) and low-latency kernels (sending and receiving may be two launches of one kernel).
"""

from __future__ import annotations

import polars as pl

#: (regular expression, where that shows). Names as nsys has them, demangled.
WAITS: tuple[tuple[str, str], ...] = (
    (r"\bnccl\w*Kernel\w*_(AllReduce|AllGather|ReduceScatter)(_|\b)", "NCCL, src/device, all_reduce.h and the like"),
    (r"\bcross_device_reduce_", "vLLM, csrc/custom_all_reduce.cuh: spins until every rank has set its flag"),
    (r"\b(multimem|one_shot|two_shot)_all_reduce_kernel", "PyTorch, CUDASymmetricMemoryOps.cu: sync_remote_blocks"),
    (
        r"\ballreduce_fusion_kernel_(oneshot|twoshot)",
        "FlashInfer, trtllm_allreduce_fusion.cuh: needs every rank's data",
    ),
    (r"\boneshotAllreduceFusionKernel", "FlashInfer, trtllm_mnnvl_allreduce.cuh: polls for every rank's data"),
    (r"\bdeep_ep::intranode::(cached_)?notify_(dispatch|combine)\b", "DeepEP, csrc/kernels/intranode.cu: a barrier"),
    (r"\bdeep_ep::intranode::dispatch\b", "DeepEP, csrc/kernels/intranode.cu: reads every rank's number of tokens"),
)

#: Kernels that wait likewise inside a layer. NCCL can't gather or scatter parts of unequal size: vLLM makes a group of
#: broadcasts, one from each rank, or of reductions, one to each (device_communicators/pynccl.py, all_gatherv and
#: reduce_scatterv), and NCCL launches a group as one kernel. In it every rank needs something of every other.
WAITS_IN_LAYERS = r"\bnccl\w*Kernel\w*_(Broadcast|Reduce)(_|\b)"

#: Kernels that only tensor-parallel groups use (vLLM, device_communicators/cuda_communicator.py).
TENSOR_ONLY = r"\bcross_device_reduce_"

_ANY = "|".join(f"(?:{pattern})" for pattern, _ in WAITS)


def waits_for_all(name: pl.Expr, in_layer: pl.Expr) -> pl.Expr:
    """Whether every rank's kernel is known to wait until every other rank's has begun.

    Parameters:
        in_layer: whether it was launched in ranges of a layer.
    """
    return name.str.contains(_ANY) | (in_layer & name.str.contains(WAITS_IN_LAYERS))


def tensor_only(name: pl.Expr) -> pl.Expr:
    """Whether only tensor-parallel groups use it."""
    return name.str.contains(TENSOR_ONLY)
