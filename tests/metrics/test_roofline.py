"""The roofline of constructed captures, every number worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nvtxmoe_analysis.attribution.expert_matmuls import block_in_name, is_matmul
from nvtxmoe_analysis.metrics.roofline.peaks import PEAKS, PeakOptions, peak_gb_per_s, peak_tflop_per_s, source_of
from tests.support.cli import run
from tests.support.collective_simulation import GATHER
from tests.support.export_builder import Export, Process
from tests.support.written_results import Written, written

FUSED, ALIGN = "fused_moe_kernel", "void vllm::moe::moe_align_block_size_kernel<int>(const T1 *)"
ACTIVATION = "void vllm::act_and_mul_kernel<c10::BFloat16>(T1 *)"
OGS = "_matmul_ogs_NNT_bf16xbf16xmxfp4_16x256x128x1_swiglu"
#: A layer's entry in moe.meta: an expert has 8 x 4 x 3 = 96 weights.
SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 4,
    "gated": True,
    "activation_dtype": "bfloat16",
    "input_dtype": "float8_e4m3fn",
    "expert_bytes": 100,
    "block_m": 4,
}


def one_cell(
    folder: Path, device: str = "NVIDIA H200", kernels: tuple[str, ...] = (ALIGN, FUSED, ACTIVATION, FUSED),
    options: PeakOptions | None = None, **layer: Any,
) -> Written:  # fmt: skip
    """One decode step of three tokens and one layer; its four experts got 3, 2, 1 and 0 rows. Kernels last 100 ns."""
    export = Export()
    worker = Process(export, layers=1, meta={"device": device})
    entry = {**SIZES, **layer}
    worker.meta["layers"][0].update({key: value for key, value in entry.items() if value is not None})
    worker.send_meta()
    with worker.step(0), worker.layer(0):
        worker.kernel(40, "gate")
        with worker.phase("experts", 0):
            for name in kernels:
                worker.kernel(100, name)
    worker.counts(0, 0, [3, 2, 1, 0])
    return written(folder, export, formats=("parquet",), peaks=options)


def row_of(found: Written, stem: str = "moe_roofline") -> dict[str, Any]:
    return pl.read_parquet(found.folder / f"{stem}.parquet").row(0, named=True)


def test_by_hand(tmp_path: Path) -> None:
    row = row_of(one_cell(tmp_path))
    # 3 + 2 + 1 rows in three tiles of 4 rows.
    assert (row["routed_rows"], row["local_active_experts"], row["padded_rows"]) == (6, 3, 6)
    assert row["padding_pct"] == 50.0
    assert (row["block_m"], row["block_m_source"]) == (4, "moe.meta")
    # Of each row 8 + 4 elements of one byte are read, 4 + 8 of two bytes written.
    assert (row["weight_bytes"], row["activation_bytes"], row["needed_bytes"]) == (300, 6 * 36, 516)
    # A multiply and an add per weight and row.
    assert (row["routed_flop"], row["padded_flop"]) == (2 * 96 * 6, 2 * 96 * 6)
    assert (row["matmul_ns"], row["experts_ns"]) == (200, 400)
    assert row["weight_gb_per_s"] == pytest.approx(300 / 200)
    assert row["gb_per_s"] == pytest.approx(516 / 200)
    assert row["tflop_per_s"] == pytest.approx(1152 / 200 / 1000)
    assert row["experts_gb_per_s"] == pytest.approx(516 / 400)
    assert row["experts_tflop_per_s"] == pytest.approx(1152 / 400 / 1000)
    assert row["weight_mbu_pct"] == pytest.approx(100 * 1.5 / 4800)
    assert row["mbu_pct"] == pytest.approx(100 * 2.58 / 4800)
    assert row["mfu_pct"] == pytest.approx(100 * 0.00576 / 1979)
    assert row["flop_per_byte"] == pytest.approx(1152 / 516)
    assert row["limit"] == "memory"
    assert row["roofline_ns"] == pytest.approx(516 / 4800)
    assert row["roofline_pct"] == pytest.approx(100 * 516 / 4800 / 200)


def test_limit_by_options(tmp_path: Path) -> None:
    """With a bandwidth of 1,000 GB/s and 1 TFLOP/s, 516 bytes take 0.516 ns and 1,152 operations 1.152 ns."""
    found = one_cell(tmp_path, options=PeakOptions(1000.0, 1.0))
    row = row_of(found)
    assert row["limit"] == "compute"
    assert row["roofline_ns"] == pytest.approx(1.152)
    (gpu,) = found.json("moe_roofline")["gpus"]
    assert (gpu["gb_per_s"], gpu["tflop_per_s"], gpu["source"]) == (1000.0, {"any": 1.0}, "options")
    assert found.validation["options"]["peak_gb_per_s"] == 1000.0


def test_peaks_on_the_command_line(tmp_path: Path) -> None:
    one_cell(tmp_path)
    words = ("analyze", tmp_path / "built0.sqlite", "-o", tmp_path / "again", "--format", "parquet")
    assert run(*words, "--peak-gbs", "1000", "--peak-tflops", "1").code == 0
    row = pl.read_parquet(tmp_path / "again" / "moe_expert_tracking" / "moe_roofline.parquet").row(0, named=True)
    assert (row["limit"], row["mbu_pct"]) == ("compute", pytest.approx(100 * 2.58 / 1000))
    refused = run(*words, "--peak-gbs", "0")
    assert refused.code == 2
    assert "--peak-gbs" in refused.err


@pytest.mark.parametrize(
    ("absent", "null", "known"),
    [
        ("expert_bytes", ("weight_bytes", "needed_bytes", "gb_per_s", "mbu_pct", "limit"), ("routed_flop", "mfu_pct")),
        ("hidden_size", ("activation_bytes", "routed_flop", "mfu_pct", "limit"), ("weight_bytes", "weight_mbu_pct")),
        ("gated", ("routed_flop", "mfu_pct", "roofline_pct"), ("activation_bytes", "mbu_pct")),
        ("input_dtype", ("activation_bytes", "mbu_pct", "mfu_pct"), ("routed_flop", "tflop_per_s")),
        ("block_m", (), ("padded_rows",)),
    ],
)
def test_null_where_unknown(absent: str, null: tuple[str, ...], known: tuple[str, ...], tmp_path: Path) -> None:
    found = one_cell(tmp_path, **dict[str, Any]({absent: None}))
    row = row_of(found)
    assert [name for name in null if row[name] is not None] == []
    assert [name for name in known if row[name] is None] == []
    told = {entry["what"] for entry in found.json("moe_roofline")["unknown"]}
    assert {name for name in null if name in ("weight_bytes", "activation_bytes", "routed_flop", "mfu_pct")} <= told


@pytest.mark.parametrize("device", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "AMD Instinct MI300X", "a device"])
def test_gpu_without_peaks(device: str, tmp_path: Path) -> None:
    row = row_of(one_cell(tmp_path, device))
    assert (row["mbu_pct"], row["mfu_pct"], row["limit"], row["roofline_ns"]) == (None, None, None, None)
    assert row["gb_per_s"] == pytest.approx(2.58)


def test_expert_bytes_of_biases_alone(tmp_path: Path) -> None:
    """Less than a bit per weight was not the weights: 96 weights need 12 bytes at least."""
    assert row_of(one_cell(tmp_path, expert_bytes=11))["weight_bytes"] is None
    assert row_of(one_cell(tmp_path, expert_bytes=12))["weight_bytes"] == 36


def test_tiles_by_kernel_name(tmp_path: Path) -> None:
    """A tile of 16 rows in the name, not the default; without sizes the bytes may be of biases alone."""
    row = row_of(one_cell(tmp_path, kernels=(OGS, OGS), block_m=None))
    assert (row["block_m"], row["block_m_source"], row["padded_rows"]) == (16, "kernel name", 3 * 16 - 6)
    bare = one_cell(tmp_path, kernels=(OGS, OGS), block_m=None, hidden_size=None)
    assert row_of(bare)["weight_bytes"] is None


def test_default_tiles_are_of_the_triton_kernel(tmp_path: Path) -> None:
    row = row_of(one_cell(tmp_path, block_m=None))
    assert (row["block_m"], row["block_m_source"], row["padded_rows"]) == (16, "default", 3 * 16 - 6)
    row = row_of(one_cell(tmp_path, kernels=("void cutlass::device_kernel<x>(y)",), block_m=None))
    assert (row["matmul_ns"], row["block_m"], row["block_m_source"], row["padded_rows"]) == (100, None, None, None)


def test_unknown_kernels(tmp_path: Path) -> None:
    row = row_of(one_cell(tmp_path, kernels=(ALIGN, "mystery")))
    assert (row["matmul_ns"], row["gb_per_s"], row["limit"]) == (None, None, "memory")
    assert row["experts_gb_per_s"] == pytest.approx(516 / 200)


def test_collectives_in_the_phase_are_not_the_experts(tmp_path: Path) -> None:
    row = row_of(one_cell(tmp_path, kernels=(GATHER, FUSED)))
    assert (row["matmul_ns"], row["experts_ns"]) == (100, 100)


def test_summary_by_kind_and_batch_size(tmp_path: Path) -> None:
    """Steps of 1, 3, 4 and 5 tokens: 1, 3 to 4, 5 to 8. Rates are of sums."""
    export = Export()
    worker = Process(export, layers=1, top_k=1, meta={"device": "NVIDIA H200"})
    worker.meta["layers"][0].update(SIZES)
    worker.send_meta()
    for step, (tokens, ns) in enumerate([(1, 100), (3, 100), (4, 300), (5, 100)]):
        with worker.step(step, tokens=tokens), worker.layer(0), worker.phase("experts", 0):
            worker.kernel(ns, FUSED)
        worker.counts(step, 0, [tokens, 0, 0, 0], tokens=tokens)
    found = pl.read_parquet(written(tmp_path, export, formats=("parquet",)).folder / "moe_roofline_summary.parquet")
    rows = found.select("step_kind", "tokens_from", "tokens_to", "rows", "matmul_ns").rows()
    assert rows == [
        ("decode", None, None, 4, 600),
        ("decode", 1, 1, 1, 100),
        ("decode", 3, 4, 2, 400),
        ("decode", 5, 8, 1, 100),
    ]
    middle = found.row(2, named=True)
    needed = 100 + 3 * 36 + 100 + 4 * 36
    assert middle["gb_per_s"] == pytest.approx(needed / 400)
    assert middle["mbu_pct"] == pytest.approx(100 * needed / 400 / 4800)
    assert middle["tflop_per_s"] == pytest.approx(2 * 96 * 7 / 400 / 1000)
    assert middle["padding_pct"] == pytest.approx(100 * 1 / 8)
    assert (middle["limit"], middle["block_m_source"], middle["rows_known"]) == ("memory", "moe.meta", 2)


@pytest.mark.parametrize(
    ("name", "product"),
    [
        (FUSED, True),
        ("fused_moe_kernel_gptq_awq", True),
        (OGS, True),
        ("void marlin_moe_wna16::Marlin<__nv_bfloat16, (int)8>(const int4 *)", True),
        ("void cutlass::device_kernel<GemmUniversal>(T1::Params)", True),
        ("void deep_gemm::sm90_fp8_gemm_1d2d_impl<x>(float *)", True),
        ("bmm_E2m1_E2m1E2m1_Fp32_t128x8x512_s6", True),
        (ALIGN, False),
        (ACTIVATION, False),
        ("void vllm::moe::moe_sum_vec_kernel<c10::BFloat16>(T1 *)", False),
        ("void vllm::scaled_fp8_quant_kernel<x>(T2 *)", False),
        ("void get_group_gemm_starts<x>(int *)", False),
        ("void cublasLt::splitKreduce_kernel<x>(y)", False),
        ("void expandInputRowsKernel<TmaWarpSpecializedGroupedGemmInput>(x)", False),
    ],
)
def test_names_of_products(name: str, product: bool) -> None:
    assert is_matmul(name) is product


def test_tile_in_names() -> None:
    assert block_in_name(OGS) == 16
    assert block_in_name("_matmul_ogs_NNT_bf16xbf16xmxfp4_128x256x64") == 128
    assert block_in_name("nvjet_sm90_tst_64x8_64x16_1x2_h_bz_TNT") is None


def test_every_gpu_has_a_source() -> None:
    assert all(peak.source for peak in PEAKS.values())
    given = PeakOptions(gb_per_s=10.0)
    assert peak_gb_per_s("NVIDIA H200", given) == 10.0
    assert peak_tflop_per_s("NVIDIA H200", "bfloat16", given) == 989.5
    assert source_of("NVIDIA H200", given).endswith("bandwidth from the options")
    assert peak_tflop_per_s("NVIDIA H200", "float32", PeakOptions()) is None
    assert peak_tflop_per_s("NVIDIA H100 80GB HBM3", "nvfp4", PeakOptions()) is None
