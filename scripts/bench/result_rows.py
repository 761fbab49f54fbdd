"""What rows of the result files weigh that grow with a run: of analyses of real captures, and of drawn counts."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.analyze import analyze
from nvtxmoe_analysis.outputs.registry import parquet_only
from nvtxmoe_analysis.outputs.write import write_set

#: CSV files that have a row for something of every step, and what a row is.
GROWING = {
    "moe_load_imbalance": "(step, layer)",
    "moe_routing_weights_hist": "assignment",
    "moe_layer_timings": "(rank, step, layer)",
    "moe_layer_correlation": "(rank, step, layer)",
    "moe_straggler": "(step, layer)",
    "moe_collectives": "collective and rank",
}
#: Steps of the two files whose difference is weighed.
SHORT_STEPS, LONG_STEPS = 20, 70
LAYERS = 4


def csv_row_bytes(capture: Path) -> dict[str, tuple[int, float]]:
    """Rows, and bytes a row (heads left out), of the growing files of a capture that have any."""
    sizes = {}
    with TemporaryDirectory() as folder:
        results = analyze([capture], Path(folder)).folder
        for stem in GROWING:
            path = results / f"{stem}.csv"
            with path.open(newline="") as file:
                head = len(file.readline().encode())
                rows = sum(1 for _ in csv.reader(file))  # names of kernels may hold commas, and lines
            if rows:
                sizes[stem] = rows, (path.stat().st_size - head) / rows
    return sizes


def parquet_bytes(drawn: Iterable[npt.NDArray[np.uint16]], experts: int) -> float:
    """Bytes of moe_step_activations.parquet a (step, layer): the slope between two lengths.

    Parameters:
        drawn: experts of the tokens of each (step, layer), [tokens, top_k]; LONG_STEPS x LAYERS of them.
    """
    rows = [
        (0, number // LAYERS, number % LAYERS, len(ids), np.bincount(ids.ravel(), minlength=experts))
        for number, ids in enumerate(drawn)
    ]
    numbers = dict.fromkeys(("rank", "step", "layer_idx", "num_tokens"), pl.Int64)
    frame = pl.DataFrame(rows, schema={**numbers, "counts": pl.List(pl.UInt32)}, orient="row")
    (stem,) = parquet_only()
    sizes = []
    with TemporaryDirectory() as folder:
        for steps in (SHORT_STEPS, LONG_STEPS):
            (file,) = write_set(Path(folder), {stem: frame[: steps * LAYERS]}, {}, parquet_only=parquet_only())
            sizes.append(file.stat().st_size)
    return (sizes[1] - sizes[0]) / ((LONG_STEPS - SHORT_STEPS) * LAYERS)
