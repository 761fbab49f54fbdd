"""What a results folder holds for placements: by layer the counts, and of each rank the time and the load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.arrays import Bools, Floats, Ints
from nvtxmoe_analysis.outputs.read import Results, check_whole
from nvtxmoe_analysis.outputs.registry import tables
from nvtxmoe_analysis.placement.layout import Counts, Load

DECODE, PREFILL = PHASES = ("decode", "prefill")
#: Phases in words: a step with any prefill is prefill here, so that mixed steps are in it.
PHASE_WORDS = {DECODE: "decode", PREFILL: "prefill and mixed"}
CORRELATION, STEP_COUNTS = "layer_correlation", "step_activations"
COLUMNS = (
    *("rank", "step", "layer_idx", "num_tokens", "prefill_tokens", "decode_tokens", "block_m", "launched_by"),
    *("local_experts", "local_activations", "local_active_experts", "local_expert_tiles", "weight_bytes"),
    *("own_ns", "step_gpu_ns"),
)
NEEDED = ("own_ns", "block_m", "local_activations", "local_active_experts", "local_expert_tiles")
FILTERS = {
    "first_step": "--steps",
    "last_step": "--steps",
    "skip_first": "--skip-first",
    "only": "--only",
    "layers": "--layers",
    "ranks": "--ranks",
}


@dataclass(frozen=True)
class LayerData:
    """Steps of a layer in which everything is known of all its ranks, in order.

    Attributes:
        ranks: numbers of the ranks that share its experts; the n-th is the expert-parallel rank n.
        steps: int64 [steps].
        prefill: bool [steps], steps with any prefill token.
        tokens: int64 [steps], of all ranks.
        own_tokens: int64 [steps, ranks], that the rank itself scheduled.
        block_m: int64 [steps].
        counts: [steps, experts].
        own_ns: float64 [steps, ranks].
        load: as measured.
        launched: int64 [steps, ranks], codes of the ways of launch.
        slots: of each rank, how many experts it holds.
        expert_bytes: of one expert's weights; None where unknown.
    """

    layer: int
    ranks: tuple[int, ...]
    steps: Ints
    prefill: Bools
    tokens: Ints
    own_tokens: Ints
    block_m: Ints
    counts: Counts
    own_ns: Floats
    load: Load
    launched: Ints
    slots: tuple[int, ...]
    expert_bytes: int | None

    @property
    def experts(self) -> int:
        """Number of logical experts."""
        return int(self.counts.shape[1])


@dataclass(frozen=True)
class RunData:
    """A run's layers, and what of it could not be used.

    Attributes:
        step_ns: by phase the GPU time of a step (mean over steps and ranks); None where unknown.
        steps: by phase their number.
        time_ns: by step number, the mean over ranks of its GPU time; steps of unknown time are left out.
        cells: (step, layer) of all; dropped: those in which something is not known of a rank.
        eplb: whether EPLB ran. monolithic: whether routing is inside the experts' kernel.
    """

    layers: tuple[LayerData, ...]
    step_ns: dict[str, float | None]
    steps: dict[str, int]
    time_ns: dict[int, float]
    cells: int
    dropped: int
    eplb: bool
    monolithic: bool

    @property
    def ranks(self) -> int:
        """How many ranks share experts."""
        return len(self.layers[0].ranks)


def read_run(results: Results) -> RunData:
    """Read what placements need.

    Raises:
        NvtxmoeError: results without GPU time, of one rank, without expert parallelism, filtered, or without a cell
            in which all is known.
    """
    document = results.document("validation")
    _refuse_filters(results, document)
    rows = _rows(results)
    _refuse_without_group(results, rows)
    counts = results.frame(STEP_COUNTS)
    processes = [process for source in document.get("inputs") or [] for process in source.get("processes") or []]
    recordings = " ".join(str(process.get("recording")) for process in processes)
    launches = pl.Enum(rows["launched_by"].drop_nulls().unique().sort().to_list())
    rows = rows.with_columns(launched=pl.col("launched_by").cast(launches).to_physical().cast(pl.Int64))
    by_layer = {key[0]: part for key, part in counts.group_by("layer_idx")}
    data = [
        _layer(int(str(key[0])), part, by_layer[key[0]])
        for key, part in rows.group_by("layer_idx", maintain_order=True)
        if key[0] in by_layer
    ]
    layers = sorted((layer for layer in data if layer is not None and len(layer.steps)), key=lambda layer: layer.layer)
    cells = rows.select("step", "layer_idx").n_unique()
    with_all_experts = rows.drop_nulls("local_experts").join(
        counts.group_by("layer_idx").agg(width=pl.col("counts").list.len().max()), on="layer_idx"
    )
    if not layers and len(with_all_experts) and (with_all_experts["local_experts"] >= with_all_experts["width"]).all():
        raise NvtxmoeError(
            "no expert-parallel group: every rank holds all experts",
            where=results.folder,
            remedy="Capture with expert parallelism (vLLM: --enable-expert-parallel)",
        )
    if not layers:
        raise NvtxmoeError(
            "no (step, layer) with counts, load and GPU time of all ranks",
            where=results.folder,
            remedy="Analyse the reports of all ranks together",
        )
    if len({layer.ranks for layer in layers}) > 1:
        raise NvtxmoeError(
            "layers are on different ranks (pipeline stages): one group of ranks is needed", where=results.folder
        )
    step_ns, steps, time_ns = _steps(rows)
    return RunData(
        tuple(layers),
        step_ns,
        steps,
        time_ns,
        cells,
        cells - sum(len(layer.steps) for layer in layers),
        any(bool(process.get("eplb")) for process in processes),
        "sink" in recordings or "recomputed" in recordings,
    )


def _refuse_filters(results: Results, document: dict[str, Any]) -> None:
    selection = document.get("selection") or {}
    used = sorted({option for name, option in FILTERS.items() if selection.get(name)})
    if used:
        raise NvtxmoeError(
            f"the results are filtered ({', '.join(used)}): a placement needs all ranks, layers and steps",
            where=results.folder,
            remedy="Analyse the capture again without filters",
        )


def _rows(results: Results) -> pl.DataFrame:
    """Return COLUMNS of moe_layer_correlation, nothing else of it, which is large."""
    path = results.path(CORRELATION)
    if path is None:
        raise NvtxmoeError(
            "no GPU time: moe_layer_correlation is absent",
            where=results.folder,
            remedy="Capture under nsys: `nvtxmoe profile -- COMMAND`, then `nvtxmoe analyze`",
        )
    if results.is_read(CORRELATION):
        return results.frame(CORRELATION).select(COLUMNS)
    types = {name: kind for name, kind in tables()[CORRELATION].types.items() if name in COLUMNS}
    try:
        if path.suffix == ".parquet":
            rows = pl.read_parquet(path, columns=list(COLUMNS)).cast(types)  # type: ignore[arg-type]
        else:
            rows = pl.scan_csv(path, schema_overrides=types).select(COLUMNS).collect(engine="streaming")
    except (pl.exceptions.PolarsError, UnicodeDecodeError):
        return results.frame(CORRELATION).select(COLUMNS)  # says what is wrong with the file
    check_whole(path, tables()[CORRELATION], rows)
    return rows


def _refuse_without_group(results: Results, rows: pl.DataFrame) -> None:
    where = results.folder
    if rows["own_ns"].null_count() == len(rows):
        raise NvtxmoeError("no GPU time of any layer", where=where, remedy="Capture again under nsys")
    ranks = rows["rank"].n_unique()
    if ranks < 2:
        raise NvtxmoeError(
            f"{ranks} rank: experts have one place only",
            where=where,
            remedy="Analyse a run of several ranks with expert parallelism, all reports together",
        )
    if rows["local_activations"].null_count() == len(rows):
        raise NvtxmoeError(
            "no expert-parallel group is known: moe.meta does not tell which rank holds which expert",
            where=where,
            remedy="Capture with expert parallelism (vLLM: --enable-expert-parallel)",
        )


def _steps(rows: pl.DataFrame) -> tuple[dict[str, float | None], dict[str, int], dict[int, float]]:
    """Return by phase a step's mean GPU time and the number of steps; by step its GPU time."""
    each = rows.group_by("step").agg(
        prefill=pl.col("prefill_tokens").sum() > 0, tokens=pl.col("num_tokens").sum(), ns=pl.col("step_gpu_ns").mean()
    )
    each = each.filter(pl.col("tokens") > 0)
    times: dict[str, float | None] = {}
    numbers: dict[str, int] = {}
    for phase in PHASES:
        of_phase = each.filter(pl.col("prefill") == (phase == PREFILL))
        mean_ns = of_phase["ns"].mean()
        times[phase] = float(mean_ns) if isinstance(mean_ns, (int, float)) else None
        numbers[phase] = len(of_phase)
    return times, numbers, dict(each.select("step", "ns").drop_nulls().iter_rows())


def _layer(layer: int, rows: pl.DataFrame, counts: pl.DataFrame) -> LayerData | None:
    """Return the steps of a layer in which all is known of all its ranks; None without expert parallelism."""
    ranks = rows["rank"].unique().sort()
    known = (
        rows.drop_nulls(NEEDED)
        .unique(["rank", "step"], keep="first")
        .filter((pl.len().over("step") == len(ranks)) & (pl.col("num_tokens").sum().over("step") > 0))
        .sort("step", "rank")
    )
    if known.is_empty() or len(ranks) < 2:
        return None
    # Groups of tensor-parallel ranks have one row, data-parallel ones add up.
    width = int(str(counts["counts"].list.len().max()))
    layer_rows = (
        counts.filter(pl.col("rank").is_in(ranks.implode()) & (pl.col("counts").list.len() == width))
        .join(known.select("step").unique(), on="step", how="semi")
        .sort("step")
    )
    if layer_rows.is_empty():
        return None
    matrix = layer_rows["counts"].explode().to_numpy().reshape(-1, width)
    steps, first = np.unique(layer_rows["step"].to_numpy(), return_index=True)
    if len(steps) < len(matrix):
        matrix = np.add.reduceat(matrix, first, axis=0)
    tokens = np.add.reduceat(layer_rows["num_tokens"].to_numpy(), first)
    known = known.filter(pl.col("step").is_in(pl.Series(steps).implode()))

    def table(name: str) -> Ints:
        values: Ints = known[name].to_numpy().reshape(-1, len(ranks)).astype(np.int64)
        return values

    at = np.isin(steps, table("step")[:, 0])
    steps, matrix, tokens = steps[at], matrix[at], tokens[at]
    load = Load(table("local_expert_tiles"), table("local_active_experts"), table("local_activations"))
    complete = load.rows.sum(axis=1) == matrix.sum(axis=1, dtype=np.int64)
    slots = table("local_experts")[-1] if known["local_experts"].null_count() == 0 else np.zeros(len(ranks), np.int64)
    if not complete.any():
        return None
    return LayerData(
        layer,
        tuple(ranks.to_list()),
        steps[complete],
        (known["prefill_tokens"].fill_null(0).to_numpy().reshape(-1, len(ranks)).sum(axis=1) > 0)[complete],
        tokens[complete],
        table("num_tokens")[complete],
        table("block_m").max(axis=1)[complete],
        matrix[complete],
        known["own_ns"].to_numpy().reshape(-1, len(ranks)).astype(np.float64)[complete],
        load.of(complete),
        table("launched")[complete],
        tuple(int(slot) for slot in slots),
        _expert_bytes(known),
    )


def _expert_bytes(rows: pl.DataFrame) -> int | None:
    """Return the bytes of one expert's weights on a rank, where the capture tells them."""
    with_experts = rows.filter(pl.col("local_active_experts") > 0).select(
        pl.col("weight_bytes") // "local_active_experts"
    )
    value = with_experts.to_series().drop_nulls().max()
    return int(value) if isinstance(value, int) and value > 0 else None
