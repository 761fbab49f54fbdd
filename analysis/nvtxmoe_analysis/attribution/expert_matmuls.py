"""Kernels that multiply rows by experts' weights: their time per (step, layer), and the rows of a tile as names tell.

Such a kernel is known by its name and runs in the phase ``experts``. Other kernels of the phase (alignment, activation,
quantisation, sums, copies) do not read experts' weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import polars as pl

from nvtxmoe_analysis.attribution.gpu_operations import KINDS
from nvtxmoe_analysis.attribution.ranges import PHASE_NAMES

#: (regular expression, source of the names that it is for): of names without return type, template and arguments.
PATTERNS: tuple[tuple[str, str], ...] = (
    (r"^fused_moe_kernel", "vLLM, fused_moe.py: fused_moe_kernel, fused_moe_kernel_gptq_awq"),
    (r"^_?(p_)?matmul_ogs|^_(p_)?matmul\b", "triton_kernels: _matmul_ogs_NNT_bf16xbf16xmxfp4_16x256x128x1_swiglu"),
    (r"(?i)marlin", "vLLM, csrc/moe/marlin_moe_wna16: marlin_moe_wna16::Marlin"),
    (r"moe_wna16_gemm", "vLLM, csrc/moe/moe_wna16.cu"),
    (r"(?i)gemm|gemv|\bnvjet_|\bcutlass::(Kernel|device_kernel)", "cuBLAS, CUTLASS grouped GEMM, DeepGEMM"),
    (r"(?i)\bbmm_\w*(e4m3|e2m1|bfloat16|fp16|mxe)", "TensorRT-LLM: bmm_E2m1_E2m1E2m1_Fp32"),
)
#: Kernels of the patterns above that only prepare for the product or end it.
NOT_PRODUCTS = r"(?i)quant|splitk_?reduce|prepare|gather|problem_size|get_group|expert_first|moe_align"
#: The kernel that vLLM's default tile sizes are for: see ``metrics.expert_tiles``.
TRITON = r"^fused_moe_kernel$"
#: Rows, columns and depth of a tile in names of triton_kernels.
TILE = re.compile(r"matmul\w*?_(\d+)x\d+x\d+(?:x\d+)?(?:_|$)")

COLUMNS = {
    "step_row": pl.Int32,
    "layer": pl.Int64,
    "matmul_count": pl.Int64,
    "matmul_ns": pl.Int64,
    "triton": pl.Boolean,
    "named_block_m": pl.Int64,
}


def expert_matmuls(in_layer: pl.DataFrame, names: Mapping[int, str]) -> pl.DataFrame:
    """Return the matrix products with experts' weights of each (step, layer) that has any: COLUMNS.

    ``matmul_ns`` is the sum of their durations. ``triton`` is true where all are vLLM's ``fused_moe_kernel``.
    ``named_block_m`` is the number of rows of a tile that the names of all of them contain; null where they contain
    none or differ.

    Parameters:
        in_layer, names: see ``Attribution``.
    """
    known = _known(names)
    if in_layer.is_empty() or known.is_empty():
        return pl.DataFrame(schema=COLUMNS)
    kernel, phase = KINDS.index("kernel"), PHASE_NAMES.index("experts")
    return (
        in_layer.lazy()
        .filter((pl.col("phase") == phase) & (pl.col("kind") == kernel))
        .select("step_row", "layer", pl.col("name").cast(pl.Int64), ns=pl.col("end") - pl.col("start"))
        .join(known.lazy(), on="name", how="inner")
        .group_by("step_row", "layer")
        .agg(
            matmul_count=pl.len(),
            matmul_ns=pl.col("ns").sum(),
            triton=pl.col("triton").all(),
            named_block_m=pl.when(
                (pl.col("block") == pl.col("block").first()).all() & (pl.col("block").first() > 0)
            ).then(pl.col("block").first()),
        )
        .select(*COLUMNS)
        .cast(COLUMNS)  # type: ignore[arg-type]
        .sort("step_row", "layer")
        .collect()
    )


def is_matmul(name: str) -> bool:
    """Return whether a kernel of the phase ``experts`` multiplies by experts' weights."""
    head = re.split(r"[<(]", name.removeprefix("void "), maxsplit=1)[0]
    return any(re.search(pattern, head) for pattern, _ in PATTERNS) and not re.search(NOT_PRODUCTS, head)


def block_in_name(name: str) -> int | None:
    """Return the rows of a tile that a kernel's name contains."""
    match = TILE.search(name)
    return int(match[1]) if match else None


def _known(names: Mapping[int, str]) -> pl.DataFrame:
    """Return the names of such kernels: ``name`` (id), ``triton``, ``block`` (0: not told)."""
    rows = [
        (ident, re.search(TRITON, name) is not None, block_in_name(name) or 0)
        for ident, name in names.items()
        if is_matmul(name)
    ]
    return pl.DataFrame(rows, schema={"name": pl.Int64, "triton": pl.Boolean, "block": pl.Int64}, orient="row")
