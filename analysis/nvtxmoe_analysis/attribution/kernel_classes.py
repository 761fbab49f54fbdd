"""What kind of work a kernel is, by its name. Classes alone go by names: where work belongs never does.

A name is looked at once an export, with the patterns in order: the first that is found decides. Each has the source
of the names that it is for. The names of Triton kernels that torch.compile writes say which operations were fused
(``triton_per_fused_fused_add_rms_norm_1``), not where, and often nothing (``triton_poi_fused_2``): these are
``other``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.attribution.gpu_operations import KINDS
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export

#: Classes by code.
CLASSES = ("attention", "collective", "sampling", "dense", "norm", "memory", "recording", "other")
ATTENTION, COLLECTIVE, SAMPLING, DENSE, NORM, MEMORY, RECORDING, OTHER = range(len(CLASSES))

KERNEL = KINDS.index("kernel")
GRAPH = KINDS.index("graph")

#: Kernels that torch.compile's Triton back end wrote. Their names list the operations that they were fused from, a
#: collective whose result they read among them.
COMPILED = r"^triton_(poi|red|per|for)_"

#: (class, regular expression, what it is for). Case counts unless the expression says otherwise.
PATTERNS: tuple[tuple[int, str, str], ...] = (
    (RECORDING, r"^nvtxmoe_", "nvtxmoe/capture: the kernel that counts a step's routing"),
    (NORM, r"^triton_\w*_fused_\w*(rms_norm|layer_norm)", "torch.compile, of vLLM's RMSNorm and of torch's layer norm"),
    (ATTENTION, r"^triton_\w*_fused_\w*(scaled_dot_product|flex_attention)", "torch.compile, of torch's attention"),
    (DENSE, r"^triton_(mm|tem)(_|$)", "torch.compile's templates of matrix products"),
    (OTHER, COMPILED, "torch.compile: fused elementwise work and reductions"),
    (COLLECTIVE, r"\bnccl\w*Kernel", "NCCL, src/device/generate.py: ncclDevKernel_AllReduce_Sum_bf16_RING_LL"),
    (COLLECTIVE, r"\bcross_device_reduce_", "vLLM, csrc/custom_all_reduce.cuh"),
    (COLLECTIVE, r"\ballreduce_prototype", "vLLM, csrc/quickreduce (ROCm)"),
    (
        COLLECTIVE,
        r"(?i)all_?reduce|all_?gather|reduce_?scatter|all_?to_?all",
        "PyTorch, CUDASymmetricMemoryOps.cu: multimem_all_reduce_kernel, two_shot_all_reduce_kernel_inplace; "
        "FlashInfer, comm: allreduce_fusion_kernel_oneshot_lamport, twoshotAllreduceKernel, moeAllToAllKernel",
    ),
    (COLLECTIVE, r"\bdeep_ep::(\w+::)*\w*(dispatch|combine)\b", "DeepEP: deep_ep::internode_ll::dispatch"),
    (COLLECTIVE, r"moeA2A\w*(Dispatch|Combine)", "FlashInfer and TensorRT-LLM: moeA2ADispatchKernel"),
    (COLLECTIVE, r"\bnvshmem", "NVSHMEM's own kernels, barriers among them"),
    (
        ATTENTION,
        r"\bkernel_unified_attention|\breduce_segments\b|\bkernel_reduce_segments|\bkernel_paged_attention|"
        r"\b_fwd_(grouped_)?kernel_stage|\bmerge_attn_states",
        "vLLM, v1/attention/ops: Triton attention and its reductions",
    ),
    (ATTENTION, r"reshape_and_cache|concat_and_cache|\bcp_gather_\w*cache", "vLLM: writing and reading the KV cache"),
    (ATTENTION, r"(?i)paged_attention|flash_?attn|flash_?fwd|flash_?mla|fmha", "FlashAttention, FlashMLA, CUTLASS"),
    (
        ATTENTION,
        r"\bflashinfer::\w*(Prefill|Decode|Attention|MLA|Merge\w*State)|\bBatch(Prefill|Decode)With",
        "FlashInfer: BatchPrefillWithPagedKVCacheKernel",
    ),
    (
        SAMPLING,
        r"\b_topk_topp_kernel|\b_topp_sb_|\brejection_(greedy|random)_sample|\bsample_recovered_tokens|"
        r"\b_gumbel_sample|\b_philox_gumbel|\b_(temperature|min_p|penalties|bad_words|bias|bincount|ranks)_kernel|"
        r"\b_(topk_log_softmax|rejection|resample|insert_resampled|flatten_sampled)_kernel|"
        r"\b_apply_grammar_bitmask|\bapply_repetition_penalties",
        "vLLM, v1/sample and v1/worker/gpu/sample",
    ),
    (SAMPLING, r"\bflashinfer::sampling::", "FlashInfer's sampling"),
    (SAMPLING, r"ArgMaxOps", "torch.argmax: greedy sampling"),
    (
        SAMPLING,
        r"cunn_SoftMaxForward|softmax_warp_forward|sbtopk::|mbtopk::|radixSortKV|bitonicSortKV|"
        r"exponential_kernel|exponential_and_transform",
        "torch: softmax, top-k, sort and exponential noise of the logits",
    ),
    (
        DENSE,
        r"(?i)^nvjet_|gemm|gemv|\bcublasLt::|\bsplitKreduce|\bcutlass::Kernel|\bcutlass::device_kernel|\bmarlin",
        "cuBLAS (nvjet_, gemv, splitKreduce), CUTLASS, DeepGEMM, Marlin",
    ),
    (NORM, r"(?i)rms_?norm|layer_?norm", "vLLM, csrc/layernorm_kernels.cu; FlashInfer's norm; torch's layer norm"),
)  # fmt: skip


#: Largest id of a name for which a table by id is made.
MOST_DENSE = 1 << 24


class KernelClasses:
    """The class of every name of an export."""

    def __init__(self, export: Export) -> None:
        strings = export.read(nsys_tables.STRINGS).filter(pl.col("value").str.contains(_ANY)).sort("id")
        self._idents = strings["id"].to_numpy()
        self._classes = np.append(classify_names(strings["value"]), np.int8(OTHER))
        self._dense: npt.NDArray[np.int8] | None = None
        if len(self._idents) and self._idents[0] >= 0 and self._idents[-1] < MOST_DENSE:
            self._dense = np.full(int(self._idents[-1]) + 2, OTHER, dtype=np.int8)
            self._dense[self._idents] = self._classes[:-1]

    @property
    def any_collective(self) -> bool:
        """Whether any text of the export looks like a collective's name."""
        return bool((self._classes == COLLECTIVE).any())

    def of(self, kind: int, names: pl.Series) -> npt.NDArray[np.int8]:
        """Class of each operation.

        Parameters:
            kind: index into KINDS, of all of them.
            names: ids as in ``Operations.frame["name"]``.
        """
        if kind != KERNEL or len(self._idents) == 0:
            return np.full(len(names), OTHER if kind in (KERNEL, GRAPH) else MEMORY, dtype=np.int8)
        idents = names.fill_null(-1).to_numpy()
        if self._dense is not None:
            # The entry past the last known id stands for all that are not there.
            last = len(self._dense) - 1
            return self._dense[np.where((idents < 0) | (idents > last), last, idents)]
        at = np.searchsorted(self._idents, idents)
        at[self._idents[np.minimum(at, len(self._idents) - 1)] != idents] = len(self._idents)
        classes: npt.NDArray[np.int8] = self._classes[at]
        return classes


def classify_names(names: pl.Series) -> npt.NDArray[np.int8]:
    """Class of each kernel name (text)."""
    text = pl.col("name")
    classes = pl.lit(OTHER)
    for code, pattern, _ in reversed(PATTERNS):
        classes = pl.when(text.str.contains(pattern)).then(code).otherwise(classes)
    frame = pl.DataFrame({"name": names}, schema={"name": pl.String})
    codes: npt.NDArray[np.int8] = frame.select(classes.cast(pl.Int8).alias("class"))["class"].to_numpy()
    return codes


_ANY = "|".join(f"(?:{pattern})" for _, pattern, _ in PATTERNS)
