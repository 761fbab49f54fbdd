"""Computes the roofline of a small capture by plain loops: the independent check of moe_roofline.

``python scripts/bench/roofline_by_hand.py CAPTURE.sqlite...`` prints a row per (rank, step, layer) as JSON. Nothing of
nvtxmoe_analysis is used: operations are placed by ``brute_force``, moe.meta and counts are read from the export's rows,
formulas and peaks are written down here again. docs/explanation/roofline.md explains them.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench.brute_capture import ARRAY_SCHEMA, HEADER_BYTES, Cell, CellKey, decode_counts, is_sealed
from scripts.bench.brute_force import Operation, attribute

#: GB/s, and TFLOP/s of 16-bit and 8-bit numbers, as on the data sheets (dense).
SHEETS = {"NVIDIA H100 80GB HBM3": (3350.0, 1979 / 2, 3958 / 2), "NVIDIA H200": (4800.0, 1979 / 2, 3958 / 2)}
BYTES = {"bfloat16": 2.0, "float16": 2.0, "float8_e4m3fn": 1.0}
PRODUCTS = ("fused_moe_kernel", "_matmul_ogs", "cutlass::Kernel")
TOGETHER = ("nccl", "cross_device_reduce")
MARKS = (
    "SELECT domainId, CAST(binaryData AS BLOB) FROM NVTX_EVENTS LEFT JOIN StringIds ON id = textId "
    "WHERE eventType = 34 AND coalesce(text, value) = ? ORDER BY start"
)
ARRAYS = f"SELECT domainId, schemaId FROM NVTX_PAYLOAD_SCHEMAS WHERE type = {ARRAY_SCHEMA}"

Row = dict[str, Any]


@dataclass(frozen=True)
class Rank:
    """What moe.meta says of one rank."""

    meta: Mapping[str, Any]

    def layer(self, number: int) -> Mapping[str, Any]:
        """Return the entry of a layer."""
        entry: Mapping[str, Any] = next(entry for entry in self.meta["layers"] if entry["layer"] == number)
        return entry

    @property
    def data_parallel(self) -> bool:
        """Whether ranks with tokens of their own share the experts."""
        return int(self.meta.get("dp_size") or 1) > 1


def marks(path: Path, name: str) -> list[tuple[bytes, bool]]:
    """Return the payloads of marks of one name, with whether each is an array."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        arrays = set(connection.execute(ARRAYS))
        rows = connection.execute(MARKS, (name,)).fetchall()
    return [(blob, (domain, int.from_bytes(blob[8:16], "little")) in arrays) for domain, blob in rows]


def ranks_of(paths: Sequence[Path]) -> dict[int, Rank]:
    """Return moe.meta by rank; the last one of a rank counts."""
    ranks = {}
    for path in paths:
        for blob, _ in marks(path, "moe.meta"):
            text = blob[HEADER_BYTES:]
            meta = json.loads(text[text.index(b"{") :])
            ranks[int(meta["rank"])] = Rank(meta)
    return ranks


def physical_counts(paths: Sequence[Path]) -> dict[CellKey, tuple[int, ...]]:
    """Return the counts of physical experts, where EPLB is on."""
    counts = {}
    for path in paths:
        with closing(sqlite3.connect(path)) as connection:
            sealed = is_sealed(connection)
        for blob, is_array in marks(path, "moe.physical"):
            counts.update({key: cell.counts for key, cell in decode_counts(blob, is_array, sealed=sealed)})
    return counts


def tokens_and_counts(
    key: CellKey, ranks: Mapping[int, Rank], cells: Mapping[CellKey, Cell], physical: Mapping[CellKey, tuple[int, ...]]
) -> tuple[int, list[int]] | None:
    """Return the tokens whose rows a rank's kernels got, and the rows of each expert that the rank holds.

    None where it can't be told: data-parallel ranks of which one has no counts in the step.
    """
    rank, step, layer = key
    layer_meta = ranks[rank].layer(layer)
    if ranks[rank].data_parallel:
        of_all = [cells.get((other, step, layer)) for other in sorted(ranks)]
        if any(cell is None for cell in of_all):
            return None
        tokens = sum(cell.num_tokens for cell in of_all if cell is not None)
        counts = [sum(each) for each in zip(*(cell.counts for cell in of_all if cell is not None), strict=True)]
    else:
        tokens = cells[key].num_tokens
        counts = list(physical.get(key, cells[key].counts))
    local_experts = layer_meta.get("local_experts")
    if local_experts is None and int(ranks[rank].meta.get("ep_size") or 0) > 1:
        return None
    return tokens, counts if local_experts is None else [counts[expert] for expert in local_experts]


def tile_rows(
    tokens: int, expert_rows: Sequence[int], names: Sequence[str], rank: Rank, layer: Mapping[str, Any]
) -> tuple[int, int] | None:
    """Return rows of a tile, and of all tiles; None where the kernel is not one whose tiles are known."""
    if layer.get("block_m"):
        block = int(layer["block_m"])
        return block, block * sum(-(-rows // block) for rows in expert_rows)
    sizes = {int(match[1]) for name in names if (match := re.search(r"_(\d+)x\d+x\d+", name))}
    if len(sizes) == 1 and all(name.startswith("_matmul_ogs") for name in names):
        (block,) = sizes
        return block, block * sum(-(-rows // block) for rows in expert_rows)
    if set(names) != {"fused_moe_kernel"}:
        return None
    block = 16 if tokens <= 32 else 32 if tokens <= 96 else 64 if tokens <= 512 else 128
    alone = int(rank.meta.get("ep_size") or rank.meta["world_size"]) == 1
    if alone and tokens * layer["top_k"] * 4 <= layer["num_experts"]:
        return block, block * sum(expert_rows)  # not sorted: a tile per assignment
    return block, block * sum(-(-rows // block) for rows in expert_rows)


def roofline(paths: Sequence[Path]) -> dict[CellKey, Row]:
    """Return the roofline of each (rank, step, layer) that has counts, of one run's exports."""
    answers = [attribute(path) for path in paths]
    ranks, physical = ranks_of(paths), physical_counts(paths)
    inside: dict[CellKey, list[Operation]] = defaultdict(list)
    for answer in answers:
        for operation in answer.operations:
            if operation.key is not None and operation.kind == "kernel" and operation.phase == "experts":
                inside[operation.key].append(operation)
    cells = {key: cell for answer in answers for key, cell in answer.cells.items()}
    return {key: row(key, inside[key], ranks, cells, physical) for key in sorted(cells)}


def row(
    key: CellKey,
    operations: Sequence[Operation],
    ranks: Mapping[int, Rank],
    cells: Mapping[CellKey, Cell],
    physical: Mapping[CellKey, tuple[int, ...]],
) -> Row:
    """Return the numbers of one (rank, step, layer); None where a size, a time or a peak is unknown."""
    rank, layer = ranks[key[0]], ranks[key[0]].layer(key[2])
    products = [operation for operation in operations if any(name in operation.name for name in PRODUCTS)]
    others = [operation for operation in operations if not any(name in operation.name for name in TOGETHER)]
    time = sum(operation.end_ns - operation.start_ns for operation in products) or None
    tokens_and_rows = tokens_and_counts(key, ranks, cells, physical)
    names = sorted({operation.name for operation in products})
    out: Row = dict.fromkeys(
        ("routed_rows", "active", "padded_rows", "weight_bytes", "activation_bytes", "routed_flop")
    )
    out |= {
        "matmul_ns": time,
        "experts_ns": sum(operation.end_ns - operation.start_ns for operation in others) or None,
        "known": bool(tokens_and_rows),
    }
    if tokens_and_rows is not None:
        tokens, expert_rows = tokens_and_rows
        out["routed_rows"], out["active"] = sum(expert_rows), sum(rows > 0 for rows in expert_rows)
        tiles = tile_rows(tokens, expert_rows, names, rank, layer)
        out["padded_rows"] = None if tiles is None else tiles[1] - sum(expert_rows)
        stored = layer.get("expert_bytes")
        named = any(name.startswith("_matmul_ogs") for name in names) and "hidden_size" not in layer
        out["weight_bytes"] = None if stored is None or named else out["active"] * stored
        out |= work(sum(expert_rows), layer)
    return out | against_sheet(out, rank.meta.get("device"), layer)


def work(rows: int, layer: Mapping[str, Any]) -> Row:
    """Return the bytes of activations and the operations of routed rows."""
    hidden, middle, gated = (layer.get(name) for name in ("hidden_size", "intermediate_size", "gated"))
    out: Row = {"activation_bytes": None, "routed_flop": None}
    if hidden is None or middle is None:
        return out
    if gated is not None:
        first = rows * hidden * (2 * middle if gated else middle)  # multiply-adds of the first product
        second = rows * middle * hidden
        out["routed_flop"] = 2 * (first + second)
    input_bytes, activation_bytes = (
        BYTES.get(layer.get("input_dtype", "")),
        BYTES.get(layer.get("activation_dtype", "")),
    )
    if input_bytes is not None and activation_bytes is not None:
        first_bytes = rows * (hidden * input_bytes + middle * activation_bytes)
        second_bytes = rows * (middle * input_bytes + hidden * activation_bytes)
        out["activation_bytes"] = int(first_bytes + second_bytes)
    return out


def against_sheet(out: Row, device: str | None, layer: Mapping[str, Any]) -> Row:
    """Return shares of the GPU's peaks, and which limit binds."""
    numbers: Row = dict.fromkeys(("mbu_pct", "mfu_pct", "limit", "roofline_ns"))
    if device not in SHEETS or out["matmul_ns"] is None:
        return numbers
    bandwidth, half, quarter = SHEETS[device]
    memory = compute = None
    if out["weight_bytes"] is not None and out["activation_bytes"] is not None:
        memory = (out["weight_bytes"] + out["activation_bytes"]) / bandwidth
        numbers["mbu_pct"] = 100 * memory / out["matmul_ns"]
    if out["routed_flop"] is not None and layer.get("input_dtype") in BYTES:
        throughput = quarter if layer["input_dtype"] == "float8_e4m3fn" else half
        compute = out["routed_flop"] / (throughput * 1000)
        numbers["mfu_pct"] = 100 * compute / out["matmul_ns"]
    if memory is not None and compute is not None and max(memory, compute) > 0:
        numbers["limit"] = "memory" if memory >= compute else "compute"
        numbers["roofline_ns"] = max(memory, compute)
    return numbers


if __name__ == "__main__":
    for cell, numbers in roofline([Path(word) for word in sys.argv[1:]]).items():
        print(json.dumps({**dict(zip(("rank", "step", "layer_idx"), cell, strict=True)), **numbers}))
