"""The two runs as comparisons want them, and which runs can't be compared at all."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.text import spans
from nvtxmoe_analysis.outputs.read import Results, load

#: Kind of all steps where nothing tells prefill from decode.
UNKNOWN = "unknown"
KINDS = ("decode", "prefill", "mixed", UNKNOWN)
KEY = ("rank", "step")

#: Columns of moe_layer_correlation that are compared.
TIMES = ("kernel_time_ns", "own_ns", "step_gpu_ns")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: ``A`` or ``B``.
        experts: number of experts and top-k by layer.
        times: ``rank``, ``step``, ``layer_idx``, ``num_tokens``, ``step_kind`` and TIMES; None where the run has no
            GPU time. Steps without tokens are left out.
        counts: ``rank``, ``step``, ``layer_idx``, ``num_tokens``, ``step_kind``, ``counts`` (a list by expert), of
            each group of ranks that shares tokens once. Cells without assignments are left out.
    """

    name: str
    loaded: Results
    experts: dict[int, tuple[int, int]]
    times: pl.DataFrame | None
    counts: pl.DataFrame

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.loaded.folder

    @property
    def steps(self) -> pl.DataFrame:
        """``rank``, ``step``, ``step_kind``, ``num_tokens``, one row each."""
        cells = self.counts if self.times is None else self.times
        return cells.group_by(*KEY, "step_kind").agg(pl.col("num_tokens").max()).sort(KEY)

    def says(self, key: str) -> set[str]:
        """What the run's processes say of themselves, as texts: ``device``, ``vllm``..."""
        processes: list[dict[str, Any]] = [p for i in self.loaded.validation["inputs"] for p in i["processes"]]
        return {str(process[key]) for process in processes if key in process}


def open_runs(folder_a: str | PathLike[str], folder_b: str | PathLike[str]) -> tuple[Run, Run]:
    """Both runs. Kinds of steps are told apart only where both runs know them.

    Raises:
        NvtxmoeError: a folder holds no results or lacks what is compared, or the runs' layers, experts or top-k
            differ.
    """
    loaded = load(folder_a), load(folder_b)
    by_kind = all(results.has("layer_correlation") for results in loaded)
    a, b = (_side(name, results, by_kind) for name, results in zip("AB", loaded, strict=True))
    _refuse_unlike(a, b)
    return a, b


def _side(name: str, loaded: Results, by_kind: bool) -> Run:
    try:
        experts = {
            int(layer.removeprefix("layer_")): (int(layer_summary["num_experts"]), int(layer_summary["top_k"]))
            for layer, layer_summary in loaded.document("summary").items()
        }
    except (KeyError, TypeError, ValueError) as error:
        what = "damaged: it does not tell number of experts and top-k of each layer"
        raise NvtxmoeError(what, where=loaded.path("summary"), remedy="Run `nvtxmoe analyze` again") from error
    counts = _whole_cells(loaded, experts)
    if not loaded.has("layer_correlation"):
        return Run(name, loaded, experts, None, counts.with_columns(step_kind=pl.lit(UNKNOWN)))
    kind = pl.col("step_kind") if by_kind else pl.lit(None, pl.String)
    times = loaded.layer_correlation.filter(pl.col("num_tokens") > 0, pl.col("step").is_not_null()).select(
        *KEY,
        "layer_idx",
        "num_tokens",
        pl.when(kind.is_in(KINDS)).then(kind).otherwise(pl.lit(UNKNOWN)).alias("step_kind"),
        *TIMES,
    )
    kinds = times.select(*KEY, "step_kind").unique(KEY, keep="first")
    return Run(name, loaded, experts, times, counts.join(kinds, on=KEY, how="inner", maintain_order="left"))


def _whole_cells(loaded: Results, experts: dict[int, tuple[int, int]]) -> pl.DataFrame:
    """Counts of cells that have assignments.

    Raises:
        NvtxmoeError: a cell has not as many counts as its layer has experts.
    """
    counts = loaded.frame("step_activations").filter(pl.col("step").is_not_null(), pl.col("counts").list.sum() > 0)
    expected_width = pl.col("layer_idx").replace_strict(
        {n: shape[0] for n, shape in experts.items()}, default=None, return_dtype=pl.Int64
    )
    odd = counts.filter(pl.col("counts").list.len().cast(pl.Int64).ne_missing(expected_width))
    if len(odd):
        cell = odd.row(0, named=True)
        num_experts = experts.get(cell["layer_idx"], ("nothing",))[0]
        raise NvtxmoeError(
            f"step {cell['step']} of layer {cell['layer_idx']} has counts of {len(cell['counts'])} experts, "
            f"moe_summary.json says {num_experts}",
            where=loaded.folder,
            remedy="Run `nvtxmoe analyze` again",
        )
    return counts


def _refuse_unlike(a: Run, b: Run) -> None:
    for side in (a, b):
        if not side.experts or side.counts.is_empty():
            remedy = "Compare two runs with tokens"
            raise NvtxmoeError("nothing was counted in this run", where=side.folder, remedy=remedy)
    if a.experts.keys() != b.experts.keys():
        raise NvtxmoeError(
            f"the runs have different layers: A {spans(sorted(a.experts))}, B {spans(sorted(b.experts))}",
            where=b.folder,
            remedy="Compare runs of models of one shape, or choose the layers with `nvtxmoe analyze --layers`",
        )
    for layer, shape in a.experts.items():
        for what, count_a, other in zip(("experts", "experts a token (top-k)"), shape, b.experts[layer], strict=True):
            if count_a != other:
                raise NvtxmoeError(
                    f"layer {layer} has {count_a} {what} in A and {other} in B",
                    where=b.folder,
                    remedy="Compare runs of models of one shape",
                )
