"""Sizes of experts and peaks of GPUs, per (rank, layer), from moe.meta."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from nvtxmoe_analysis.events.meta import Layer, Meta
from nvtxmoe_analysis.metrics.roofline.peaks import TYPE_BITS, PeakOptions, peak_gb_per_s, peak_tflop_per_s

SCHEMA = {
    "rank": pl.Int64,
    "layer_idx": pl.Int64,
    "expert_bytes": pl.Int64,
    "weights": pl.Int64,
    "row_bits": pl.Int64,
    "weights_plausible": pl.Boolean,
    "peak_gb_per_s": pl.Float64,
    "peak_tflop_per_s": pl.Float64,
}


def expert_sizes(metas: Iterable[Meta], options: PeakOptions) -> pl.DataFrame:
    """Return a row per (rank, layer): SCHEMA, null where unknown.

    ``weights`` is the number of weights of an expert on the rank, ``row_bits`` the bits that a routed row moves: both
    inputs and both outputs of its two matrix products. ``weights_plausible`` is false where ``expert_bytes`` has less
    than a bit per weight: then something else was recorded (biases alone, say).
    """
    rows = {
        (meta.rank, number): (
            meta.rank,
            number,
            layer.expert_bytes,
            weights_of(layer),
            row_bits_of(layer),
            _plausible(layer),
            peak_gb_per_s(device_of(meta), options),
            peak_tflop_per_s(device_of(meta), layer.input_dtype, options),
        )
        for meta in metas
        for number, layer in meta.layers.items()
    }
    return pl.DataFrame(list(rows.values()), schema=SCHEMA, orient="row")


def device_of(meta: Meta) -> str | None:
    """Return the name of the process's GPU, as moe.meta has it."""
    device = meta.raw.get("device")
    return device if isinstance(device, str) else None


def weights_of(layer: Layer) -> int | None:
    """Return the weights of an expert: hidden_size x intermediate_size, three times with a gate, else twice."""
    if layer.hidden_size is None or layer.intermediate_size is None or layer.gated is None:
        return None
    return layer.hidden_size * layer.intermediate_size * (3 if layer.gated else 2)


def row_bits_of(layer: Layer) -> int | None:
    """Return the bits that a routed row moves: hidden_size + intermediate_size elements in, as many out."""
    bits = [TYPE_BITS.get(dtype or "") for dtype in (layer.input_dtype, layer.activation_dtype)]
    if layer.hidden_size is None or layer.intermediate_size is None or None in bits:
        return None
    return (layer.hidden_size + layer.intermediate_size) * sum(bit or 0 for bit in bits)


def _plausible(layer: Layer) -> bool:
    weights = weights_of(layer)
    return weights is None or layer.expert_bytes is None or 8 * layer.expert_bytes >= weights
