"""Payload schema 1: the names, layouts and meanings of what capture writes and analysis reads.

Everything is little-endian and packed. ``docs/reference/payload-schema.md`` is the prose of this module.
"""

from __future__ import annotations

import numpy as np

DOMAIN = "nvtxmoe"
SCHEMA = 1
KNOWN_SCHEMAS = frozenset({1})

# Marks and ranges.
META = "moe.meta"
STEP = "moe.step"
LAYER_PREFIX = "moe.layer."
COUNTS = "moe.counts"
PHYSICAL = "moe.physical"
TOPK = "moe.topk"
PAIRS = "moe.pairs"
COLLECTIVE = "moe.collective"
IDLE = "moe.idle"
PHASES = ("route", "dispatch", "experts", "combine", "shared")
PHASE_PREFIX = "moe."

# How a layer's ids are taken: references to what its router gave, a sink that its kernel fills, or the router's logits,
# from which the counting kernel chooses the experts again.
REFERENCES, SINK, RECOMPUTED = RECORDINGS = ("references", "sink", "recomputed")

#: Name of a loss in moe.meta: steps that are not recorded because the run got other ranks or experts. The name is
#: followed by the change in parentheses.
RANKS_CHANGED = "steps after ranks or experts changed"

# The word form: marks with int64 payloads, for stacks that carry no binary ones (see nvtxmoe.formats.word_payloads).
WORD_PREFIX = "moe.w."
WORD_EVENTS = ("meta", "step", "counts", "physical", "topk", "pairs")

#: Bytes of one binary array at most: an array with more rows is sent in several marks. nsys 2025.3 kept 4 MiB whole.
MOST_PAYLOAD_BYTES = 1 << 20

#: Payload of ``moe.step``. ``rank`` is the global rank, unique in the run.
STEP_DTYPE = np.dtype(
    [
        ("step", "<i8"),
        ("rank", "<i4"),
        ("num_tokens", "<i4"),
        ("num_reqs", "<i4"),
        ("prefill_tokens", "<i4"),
        ("decode_tokens", "<i4"),
        ("reserved", "<i4"),
    ]
)


def counts_dtype(num_experts: int) -> np.dtype[np.void]:
    """One element of ``moe.counts`` and ``moe.physical``: assignments that each expert got in one (step, layer)."""
    return np.dtype(
        [
            ("step", "<i8"),
            ("layer", "<i4"),
            ("rank", "<i4"),
            ("num_tokens", "<i4"),
            ("top_k", "<i4"),
            ("counts", "<u4", (num_experts,)),
        ]
    )


def topk_dtype(top_k: int) -> np.dtype[np.void]:
    """One element of ``moe.topk``: the experts and routing weights of one token, in routing order."""
    return np.dtype(
        [
            ("step", "<i8"),
            ("layer", "<i4"),
            ("token", "<i4"),
            ("experts", "<u2", (top_k,)),
            ("weights", "<f4", (top_k,)),
        ]
    )


def pairs_length(num_experts: int) -> int:
    """Number of unordered expert pairs: E(E-1)/2."""
    return num_experts * (num_experts - 1) // 2


def pairs_dtype(num_experts: int) -> np.dtype[np.void]:
    """Payload of ``moe.pairs``: exact co-selection of one layer over a span of steps.

    ``pairs`` is the upper triangle by rows: (0,1), (0,2), ... (0,E-1), (1,2), ...
    """
    return np.dtype(
        [
            ("first_step", "<i8"),
            ("last_step", "<i8"),
            ("layer", "<i4"),
            ("rank", "<i4"),
            ("num_tokens", "<i8"),
            ("pairs", "<u4", (pairs_length(num_experts),)),
        ]
    )
