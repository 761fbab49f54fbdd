"""Kernels that multiply rows by experts' weights: their time per (step, layer), and the rows of a tile as names tell.

Such a kernel is known by its name and runs in the phase ``experts``. Other kernels of the phase (alignment, activation,
quantisation, sums, copies) do not read experts' weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from nvtxmoe_analysis.attribution.gpu_operations import KINDS
from nvtxmoe_analysis.attribution.ranges import PHASE_NAMES
from nvtxmoe_analysis.core.arrays import Bools, Ints
from nvtxmoe_analysis.core.grouping import dense, sums

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

#: Stands for the name of an operation that has none.
NO_NAME = np.iinfo(np.int64).min

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
    kernel, phase = KINDS.index("kernel"), PHASE_NAMES.index("experts")
    of_experts = np.flatnonzero((in_layer["phase"].to_numpy() == phase) & (in_layer["kind"].to_numpy() == kernel))
    name = in_layer["name"].gather(of_experts).fill_null(NO_NAME).to_numpy()
    place = np.searchsorted(known.idents, name)
    place[place == len(known.idents)] = 0
    product = np.flatnonzero(known.idents[place] == name) if len(known.idents) else np.zeros(0, dtype=np.intp)
    if not len(product):
        return pl.DataFrame(schema=COLUMNS)
    at, place = of_experts[product], place[product]
    step_row, start, end = (in_layer[column].gather(at).to_numpy() for column in ("step_row", "start", "end"))
    layers, layer = dense(in_layer["layer"].gather(at).to_numpy())
    cells, cell = dense(step_row.astype(np.int64) * len(layers) + layer)
    count = np.bincount(cell, minlength=len(cells))
    block = known.blocks[place]
    first_block = np.zeros(len(cells), dtype=np.int64)
    first_block[cell[::-1]] = block[::-1]  # the last one written is the first row's
    same_block = np.bincount(cell[block == first_block[cell]], minlength=len(cells)) == count
    named = pl.Series(first_block).set(pl.Series(~same_block | (first_block <= 0)), None)
    return pl.DataFrame(
        {
            "step_row": cells // len(layers),
            "layer": layers[cells % len(layers)],
            "matmul_count": count,
            "matmul_ns": sums(cell, end - start, len(cells)),
            "triton": np.bincount(cell[~known.triton[place]], minlength=len(cells)) == 0,
            "named_block_m": named,
        }
    ).cast(COLUMNS)  # type: ignore[arg-type]


def is_matmul(name: str) -> bool:
    """Return whether a kernel of the phase ``experts`` multiplies by experts' weights."""
    head = re.split(r"[<(]", name.removeprefix("void "), maxsplit=1)[0]
    return any(re.search(pattern, head) for pattern, _ in PATTERNS) and not re.search(NOT_PRODUCTS, head)


def block_in_name(name: str) -> int | None:
    """Return the rows of a tile that a kernel's name contains."""
    match = TILE.search(name)
    return int(match[1]) if match else None


class _Known(NamedTuple):
    """Names of such kernels: ids, rising; whether vLLM's ``fused_moe_kernel``; rows of a tile (0: not told)."""

    idents: Ints
    triton: Bools
    blocks: Ints


def _known(names: Mapping[int, str]) -> _Known:
    known = sorted((ident, name) for ident, name in names.items() if is_matmul(name))
    return _Known(
        np.array([ident for ident, _ in known], dtype=np.int64),
        np.array([re.search(TRITON, name) is not None for _, name in known], dtype=np.bool_),
        np.array([block_in_name(name) or 0 for _, name in known], dtype=np.int64),
    )
