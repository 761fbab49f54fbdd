"""The GPUs' peaks and the sizes of experts of a run, as documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.metrics.roofline.expert_sizes import device_of
from nvtxmoe_analysis.metrics.roofline.peaks import PeakOptions, peak_gb_per_s, peak_of, source_of

#: What a layer's experts are described by.
SIZES = ("expert_bytes", "hidden_size", "intermediate_size", "gated", "activation_dtype", "input_dtype")


def gpus(metas: Iterable[Meta], options: PeakOptions) -> list[dict[str, Any]]:
    """Return each GPU's name, ranks, peaks (``gb_per_s``, dense ``tflop_per_s`` by class of number types) and their
    source."""
    ranks: dict[str | None, set[int]] = {}
    for meta in metas:
        ranks.setdefault(device_of(meta), set()).add(meta.rank)
    rows = []
    for device in sorted(ranks, key=str):
        table = dict(peak_of(device).tflop_per_s)
        rows.append(
            {
                "name": device,
                "ranks": sorted(ranks[device]),
                "gb_per_s": peak_gb_per_s(device, options),
                "tflop_per_s": {"any": options.tflop_per_s} if options.tflop_per_s else table or None,
                "source": source_of(device, options),
            }
        )
    return rows


def layer_sizes(metas: Sequence[Meta]) -> list[dict[str, Any]]:
    """Return the sizes of a rank's experts, each with the ranks and layers that have them; null where unknown."""
    same_sizes: dict[tuple[Any, ...], tuple[set[int], set[int]]] = {}
    for meta in metas:
        for number, layer in meta.layers.items():
            ranks, layers = same_sizes.setdefault(tuple(getattr(layer, name) for name in SIZES), (set(), set()))
            ranks.add(meta.rank)
            layers.add(number)
    return [
        {**dict(zip(SIZES, key, strict=True)), "ranks": sorted(ranks), "layers": sorted(layers)}
        for key, (ranks, layers) in same_sizes.items()
    ]
