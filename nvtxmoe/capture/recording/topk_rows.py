"""Rows of moe.topk: the tokens of one layer in a sampled step."""

from __future__ import annotations

from typing import Any

import numpy as np

from nvtxmoe.capture.recording.routing_tensors import Sample
from nvtxmoe.formats import schema


def topk_rows(step: int, sample: Sample) -> Any:
    """Return a structured array, one row per token; weights are NaN where they are not known."""
    rows = np.zeros(len(sample.experts), schema.topk_dtype(sample.experts.shape[1]))
    rows["step"], rows["layer"], rows["token"] = step, sample.layer, np.arange(len(rows))
    rows["experts"] = sample.experts
    rows["weights"] = np.nan if sample.weights is None else sample.weights
    return rows
