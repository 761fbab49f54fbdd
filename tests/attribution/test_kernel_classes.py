"""Names of kernels, as Nsight Systems shows them, and the class that each has."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from nvtxmoe_analysis.attribution import kernel_classes
from nvtxmoe_analysis.attribution.gpu_operations import KINDS
from nvtxmoe_analysis.attribution.kernel_classes import CLASSES, PATTERNS, KernelClasses, classify_names
from nvtxmoe_analysis.readers.open import open_export
from tests.support.export_builder import Export, Process

NAMES = {
    "attention": [
        "kernel_unified_attention",
        "reduce_segments",
        "reshape_and_cache_kernel_flash",
        "void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16>(const T1 *)",
        "void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<(int)128>>(flash::Flash_fwd_params)",
        "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<int>>>(T1::Params)",
        "void flashinfer::BatchPrefillWithPagedKVCacheKernel<float>(T1)",
        "fmhaSm100aKernel_QkvBfloat16OBfloat16H128PagedKvCausal",
    ],
    "collective": [
        "void vllm::cross_device_reduce_1stage<__nv_bfloat16, (int)2>(vllm::RankData *, vllm::RankSignals)",
        "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<(unsigned long)4096>)",
        "ncclSymkDevKernel_AllReduce_RSxLDMC_AGxSTMC_sum_bf16(ncclSymkDevWorkArgs)",
        "void <unnamed>::two_shot_all_reduce_kernel_inplace<c10::BFloat16, (int)16, (int)2>(T1 **)",
        "void <unnamed>::multimem_all_reduce_kernel<c10::BFloat16, (int)8>(T1 *)",
        "void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<"
        "(flashinfer::trtllm_allreduce_fusion::AllReduceFusionPattern)1>(kARResidualRMSNorm)",
        "void flashinfer::trtllm_mnnvl_allreduce::twoshotAllreduceKernel<(unsigned char)2>(T1 *)",
        "void deep_ep::internode_ll::dispatch<(bool)1, (bool)0, (int)4096>(void *)",
        "void deep_ep::intranode::combine<__nv_bfloat16, (int)8>(T1 *)",
        "void tensorrt_llm::kernels::moe_comm::moeA2ADispatchKernel<float>(T1)",
    ],
    "sampling": [
        "_topk_topp_kernel",
        "rejection_greedy_sample_kernel",
        "_gumbel_sample_kernel",
        "void flashinfer::sampling::TopKTopPSamplingFromProbKernel<(unsigned int)1024>(T1)",
        "void at::native::reduce_kernel<(int)512, at::native::ReduceOp<float, at::native::ArgMaxOps<float>>>(T)",
        "void at::native::<unnamed>::cunn_SoftMaxForward<(int)4, float, float, float>(T4 *, const T2 *, int)",
        "void at::native::sbtopk::gatherTopK<float, unsigned int, (int)2, (bool)0>(T1)",
    ],
    "dense": [
        "nvjet_sm90_tst_64x8_64x16_4x1_v_bz_TNT",
        "void gemv2T_kernel_val<int, int, __nv_bfloat16>(T1)",
        "void cublasLt::splitKreduce_kernel<(int)32, (int)16, int>(cublasLt::cublasSplitKParams<T6>)",
        "void cutlass::Kernel2<cutlass_80_simt_sgemm_128x32_8x5_nn_align1>(T1::Params)",
        "void deep_gemm::sm90_fp8_gemm_1d2d_impl<(unsigned int)0>(float *)",
        "triton_mm",
        "triton_tem_fused_mm_0",
    ],
    "norm": [
        "triton_per_fused_fused_add_rms_norm_1",
        "triton_red_fused_fused_add_rms_norm_moe_forward_0",
        "void vllm::fused_add_rms_norm_kernel<c10::BFloat16, (int)8>(T1 *)",
        "void at::native::<unnamed>::vectorized_layer_norm_kernel<float, float>(int)",
    ],
    "recording": ["nvtxmoe_count"],
    "other": [
        "triton_poi_fused_3",
        # torch.compile names what was fused: this one only reads a collective's result.
        "triton_poi_fused_add_all_reduce_4",
        "_compute_slot_mapping_kernel",
        "void at::native::vectorized_elementwise_kernel<(int)4, at::native::FillFunctor<int>>(int, T2, T3)",
        "void at::native::_scatter_gather_elementwise_kernel<(int)128, (int)8>(T1)",
        "void deep_ep::layout::get_dispatch_layout<(int)256, (int)32>(const long *)",
        "k",
        "",
    ],
}


@pytest.mark.parametrize("wanted", NAMES)
def test_names(wanted: str) -> None:
    names = NAMES[wanted]
    found = [CLASSES[code] for code in classify_names(pl.Series(names, dtype=pl.String))]
    assert dict(zip(names, found, strict=True)) == dict.fromkeys(names, wanted)


def test_every_pattern_has_a_name_of_its_own() -> None:
    """The first pattern that fits decides: none is there in vain, and each says where its names come from."""
    names = [name for some in NAMES.values() for name in some]
    seen = set()
    for name in names:
        fits = [pattern for _, pattern, _ in PATTERNS if re.search(pattern, name)]
        seen.update(fits[:1])
    unused = {pattern for _, pattern, _ in PATTERNS} - seen
    # Names that no card at hand has shown; they follow the projects' sources.
    assert {p for p in unused if "scaled_dot_product" not in p and "prototype" not in p and "nvshmem" not in p} == set()
    assert all(len(source) > 10 for _, _, source in PATTERNS)


def opened(folder: Path, *names: str, first: int = 1) -> KernelClasses:
    export = Export()
    Process(export).send_meta()
    export.strings |= {name: first + at for at, name in enumerate(names)}
    return KernelClasses(open_export(export.save(folder / "names.sqlite")))


@pytest.mark.parametrize("first", [100, 1 << 40])
def test_ids(tmp_path: Path, first: int) -> None:
    """Ids few or far apart, unknown ones, and those of copies."""
    classes = opened(tmp_path, "ncclDevKernel_X", "k", "nvtxmoe_count", first=first)
    ids = pl.Series([first + 2, first, first + 1, first + 77, 3, 0, -17, None, 1 << 50])
    found = [CLASSES[code] for code in classes.of(KINDS.index("kernel"), ids)]
    assert found == ["recording", "collective", *["other"] * 7]
    assert classes.any_collective
    assert [CLASSES[code] for code in classes.of(KINDS.index("memcpy"), pl.Series([-17, -18]))] == ["memory"] * 2
    assert [CLASSES[code] for code in classes.of(KINDS.index("memset"), pl.Series([-1]))] == ["memory"]
    assert [CLASSES[code] for code in classes.of(KINDS.index("graph"), pl.Series([-2]))] == ["other"]


def test_no_name_of_any_class(tmp_path: Path) -> None:
    classes = opened(tmp_path, "k", first=100)
    assert not classes.any_collective
    assert classes.of(KINDS.index("kernel"), pl.Series([100, 101])).tolist() == [kernel_classes.OTHER] * 2
