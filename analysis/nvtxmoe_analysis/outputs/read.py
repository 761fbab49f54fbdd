"""Reading a folder of results back: polars frames with declared types, and the JSON documents."""

from __future__ import annotations

import json
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.file_set import recover
from nvtxmoe_analysis.outputs.spec import DOCUMENTS, FOLDER, FRAMES, GPU_DOCUMENTS, Frame, names


def load(folder: str | PathLike[str]) -> Results:
    """Open a folder of results.

    Parameters:
        folder: DIR of ``nvtxmoe analyze -o DIR`` or ``nvtxmoe merge``, or ``moe_expert_tracking`` inside it.

    Raises:
        NvtxmoeError: no such folder, no result file in it, or files that a killed program was replacing and that cannot
            be put in place now. A frame is read when it is first asked for, and what is wrong with its file is said
            then.
    """
    path = Path(folder)
    inner = path / FOLDER
    for candidate in (inner, path):
        recover(candidate)
        if any(_file(candidate, name) is not None for name in names()):
            return Results(candidate)
    what = "no such folder" if not path.exists() else "no folder" if not path.is_dir() else "no result file in it"
    remedy = "Name the DIR of `nvtxmoe analyze INPUT -o DIR` or `nvtxmoe merge SESSION -o DIR`"
    raise NvtxmoeError(what, where=path, remedy=remedy)


def _file(folder: Path, name: str) -> Path | None:
    """The file of a frame or document, None where it is absent."""
    stem = FRAMES[name].stem if name in FRAMES else DOCUMENTS[name]
    forms = FRAMES[name].forms if name in FRAMES else ("json",)
    return next((file for form in forms if (file := folder / f"{stem}.{form}").is_file()), None)


class Results:
    """The results of one analysis. Each attribute is read from its file when it is first asked for, then kept.

    Columns and types: ``nvtxmoe_analysis.outputs.spec`` and docs/loading.md. Further columns of the file follow those.

    Raises:
        NvtxmoeError: by each attribute, when its file is absent (the message says what makes it), is damaged, or
            lacks a column because another version of nvtxmoe wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        there = ", ".join(name for name in names() if self.has(name))
        return f"Results({str(self.folder)!r}: {there})"

    def has(self, name: str) -> bool:
        """Whether the file of a frame or document is there.

        Raises:
            NvtxmoeError: there is no frame or document of that name in any results.
        """
        return self.path(name) is not None

    def path(self, name: str) -> Path | None:
        """The file of a frame or document, None where it is absent.

        Raises:
            NvtxmoeError: there is no frame or document of that name in any results.
        """
        if name not in names():
            raise NvtxmoeError(f"no frame or document {name!r}", remedy=f"Ask for one of {', '.join(names())}")
        return _file(self.folder, name)

    @cached_property
    def activations(self) -> pl.DataFrame:
        """moe_expert_activations: how often each expert was chosen."""
        return self._frame("activations")

    @cached_property
    def coselection(self) -> pl.DataFrame:
        """moe_expert_coselection: pairs of experts chosen for one token."""
        return self._frame("coselection")

    @cached_property
    def routing_weights(self) -> pl.DataFrame:
        """moe_routing_weights_hist: experts and weights of sampled tokens."""
        return self._frame("routing_weights")

    @cached_property
    def load_imbalance(self) -> pl.DataFrame:
        """moe_load_imbalance: how unevenly each step loaded each layer's experts."""
        return self._frame("load_imbalance")

    @cached_property
    def layer_timings(self) -> pl.DataFrame:
        """moe_layer_timings: GPU time of every (rank, step, layer)."""
        return self._frame("layer_timings")

    @cached_property
    def kernel_timings(self) -> pl.DataFrame:
        """moe_kernel_timings: GPU operations by name."""
        return self._frame("kernel_timings")

    @cached_property
    def layer_correlation(self) -> pl.DataFrame:
        """moe_layer_correlation: what the counts say beside what the GPU took, by (rank, step, layer)."""
        return self._frame("layer_correlation")

    @cached_property
    def layer_model(self) -> pl.DataFrame:
        """moe_layer_model: which feature explains each layer's time."""
        return self._frame("layer_model")

    @cached_property
    def straggler(self) -> pl.DataFrame:
        """moe_straggler: what unequal ranks cost, by (step, layer)."""
        return self._frame("straggler")

    @cached_property
    def collectives(self) -> pl.DataFrame:
        """moe_collectives: waiting and transfer of each collective on each rank."""
        return self._frame("collectives")

    @cached_property
    def balance_metrics(self) -> pl.DataFrame:
        """moe_balance_metrics: balance by several definitions."""
        return self._frame("balance_metrics")

    @cached_property
    def capacity(self) -> pl.DataFrame:
        """moe_capacity: tokens over capacity and empty slots, by capacity factor."""
        return self._frame("capacity")

    @cached_property
    def cross_layer(self) -> pl.DataFrame:
        """moe_cross_layer: how expert choice in one layer predicts another's."""
        return self._frame("cross_layer")

    @cached_property
    def cross_layer_paths(self) -> pl.DataFrame:
        """moe_cross_layer_paths: the strongest paths from expert to expert."""
        return self._frame("cross_layer_paths")

    @cached_property
    def step_activations(self) -> pl.DataFrame:
        """moe_step_activations: the counts of every (rank, step, layer), as a list by expert."""
        return self._frame("step_activations")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """moe_summary.json: each layer in ten numbers."""
        return self._document("summary")

    @cached_property
    def validation(self) -> dict[str, Any]:
        """moe_capture_validation.json: verdict, checks, coverage, inputs."""
        return self._document("validation")

    @cached_property
    def layer_model_document(self) -> dict[str, Any]:
        """moe_layer_model.json: the models nested by layer and kind of step, with their options."""
        return self._document("layer_model_document")

    @cached_property
    def straggler_document(self) -> dict[str, Any]:
        """moe_straggler.json: totals, and how the clocks were aligned."""
        return self._document("straggler_document")

    def _frame(self, name: str) -> pl.DataFrame:
        return read_frame(self._present(name), FRAMES[name])

    def _document(self, name: str) -> dict[str, Any]:
        file = self._present(name)
        try:
            value = json.loads(file.read_text())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise _damaged(file, str(error)) from error
        if not isinstance(value, dict):
            raise _damaged(file, "it holds no object")
        return value

    def _present(self, name: str) -> Path:
        file = self.path(name)
        if file is not None:
            return file
        stem, form = (FRAMES[name].stem, FRAMES[name].forms[-1]) if name in FRAMES else (DOCUMENTS[name], "json")
        gpu = FRAMES[name].gpu if name in FRAMES else name in GPU_DOCUMENTS
        remedy = (
            "It needs GPU time: `nvtxmoe analyze REPORT.nsys-rep -o DIR` of this version writes it, of a run under nsys"
            if gpu
            else "`nvtxmoe analyze INPUT -o DIR` or `nvtxmoe merge SESSION -o DIR` of this version writes it"
        )
        raise NvtxmoeError(f"no {stem}.{form}", where=self.folder, remedy=remedy)


def read_frame(file: Path, frame: Frame) -> pl.DataFrame:
    """A table with its declared types: the declared columns first, then what else the file has.

    Raises:
        NvtxmoeError: the file is damaged, or lacks a declared column.
    """
    try:
        table = _read_parquet(file, frame) if file.suffix == ".parquet" else _read_csv(file, frame)
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise _damaged(file, str(error).split("\n", 1)[0]) from error
    return table.select(*frame.columns, pl.exclude(*frame.columns)) if frame.columns else table


def _read_parquet(file: Path, frame: Frame) -> pl.DataFrame:
    table = pl.read_parquet(file)
    _require(file, frame, table.columns)
    return table.cast(dict(frame.columns))  # type: ignore[arg-type]  # polars wants a dict of exactly its own types


def _read_csv(file: Path, frame: Frame) -> pl.DataFrame:
    # Never inferred from the first rows: a column that is empty there, or whole numbers, would change its type.
    table = pl.read_csv(file, schema_overrides=dict(frame.columns), infer_schema=False)
    _require(file, frame, table.columns)
    return table.with_columns(_typed(table[name]) for name in table.columns if name not in frame.columns)


def _typed(texts: pl.Series) -> pl.Series:
    """A column that is not declared, of a later version: integers, floats or booleans where all its cells are."""
    if texts.null_count() == len(texts):
        return texts
    for dtype in (pl.Int64, pl.Float64):
        numbers: pl.Series = texts.cast(dtype, strict=False)
        if numbers.null_count() == texts.null_count():
            return numbers
    if set(texts.drop_nulls().unique()) <= {"true", "false"}:
        return texts == "true"
    return texts


def _require(file: Path, frame: Frame, found: list[str]) -> None:
    missing = [name for name in frame.columns if name not in found]
    if missing:
        raise NvtxmoeError(
            f"no column {', '.join(missing)}: another version of nvtxmoe wrote it, or another program changed it",
            where=file,
            remedy="Run `nvtxmoe analyze` of this version again",
        )


def _damaged(file: Path, reason: str) -> NvtxmoeError:
    return NvtxmoeError(f"cannot be read: {reason}", where=file, remedy="Run `nvtxmoe analyze` again")
