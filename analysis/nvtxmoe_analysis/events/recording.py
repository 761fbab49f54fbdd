"""How a process took its layers' expert ids, as moe.meta says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe_analysis.core.text import spans
from nvtxmoe_analysis.events.capture_state import shown
from nvtxmoe_analysis.events.meta import MOST, Meta


def recording_by_layer(meta: Meta) -> dict[int, str]:
    """``references``, ``sink``, ``recomputed`` or another word by layer; without hidden layers and those not told.

    Raises:
        NvtxmoeError: the key ``recording`` is neither a word nor layers by word.
    """
    declared = meta.raw.get("recording")
    if declared is None:
        return {}
    if isinstance(declared, str):
        by_layer = dict.fromkeys(meta.layers, declared)
    elif isinstance(declared, dict) and all(isinstance(layers, str) for layers in declared.values()):
        by_layer = {layer: way for way, layers in declared.items() for layer in _numbers(layers)}
    else:
        raise NvtxmoeError(f"damaged payload: recording is {shown(declared)}, not a word or layers by word")
    return {layer: way for layer, way in sorted(by_layer.items()) if layer not in meta.capture.hidden}


def recording_of(metas: Iterable[Meta]) -> dict[str, str]:
    """Layers of a run (``0-3, 5``) by how their expert ids were taken; empty where no process tells."""
    layers: dict[str, set[int]] = {}
    for meta in metas:
        try:
            ways = recording_by_layer(meta)
        except NvtxmoeError:
            continue  # the check ids_taken says it
        for layer, way in ways.items():
            layers.setdefault(way, set()).add(layer)
    return {way: spans(sorted(numbers)) for way, numbers in sorted(layers.items())}


def contradictions(meta: Meta) -> list[str]:
    """Return what of ``recording``, ``recomputed_tokens`` and ``ambiguous_tokens`` contradicts the rest of moe.meta.

    Raises:
        NvtxmoeError: see :func:`recording_by_layer` and :func:`recomputed_tokens`.
    """
    declared = meta.raw.get("recording")
    ways = recording_by_layer(meta)
    tokens, ambiguous = recomputed_tokens(meta)
    recomputed = {layer for layer, way in ways.items() if way == schema.RECOMPUTED}
    problems: list[str] = []
    if isinstance(declared, Mapping):
        named = [layer for layers in declared.values() for layer in _numbers(layers)]
        if twice := sorted(layer for layer, number in Counter(named).items() if number > 1):
            problems.append(f"recording names {_layers(twice)} in two ways")
        if unknown := sorted(set(named) - set(meta.layers)):
            problems.append(f"recording names {_layers(unknown)}, which the model has not")
        if missing := sorted(set(meta.layers) - set(named) - set(meta.capture.hidden)):
            problems.append(f"recording does not name {_layers(missing)}")
    if tokens and not recomputed:
        problems.append(f"{tokens:,} tokens are recomputed, and no layer is")
    if other := sorted(set(ambiguous) - recomputed):
        verb = "has" if len(other) == 1 else "have"
        problems.append(f"{_layers(other)} {verb} ambiguous tokens, and not recomputed ids")
    if sum(ambiguous.values()) > tokens:
        problems.append(f"{sum(ambiguous.values()):,} of {tokens:,} recomputed tokens are ambiguous")
    return problems


def _layers(numbers: list[int]) -> str:
    return f"{'layer' if len(numbers) == 1 else 'layers'} {spans(numbers)}"


def recomputed_tokens(meta: Meta) -> tuple[int, dict[int, int]]:
    """Tokens of recomputed layers, each layer's added up, and the ambiguous ones by layer; running totals.

    Raises:
        NvtxmoeError: the keys ``recomputed_tokens`` and ``ambiguous_tokens`` are no numbers.
    """
    tokens, ambiguous = meta.raw.get("recomputed_tokens", 0), meta.raw.get("ambiguous_tokens", {})
    if not _is_count(tokens) or not isinstance(ambiguous, Mapping) or not all(map(_is_count, ambiguous.values())):
        raise NvtxmoeError(f"damaged payload: ambiguous_tokens is {shown(ambiguous)} of {shown(tokens)}")
    return tokens, {_number(layer): count for layer, count in ambiguous.items()}


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _numbers(text: str) -> list[int]:
    """Layers of ``0-3,5``."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        begin, end = _number(first), _number(last if dash else first)
        if end < begin:
            raise NvtxmoeError(f"damaged payload: {shown(part)} is no range of layers")
        numbers += range(begin, end + 1)
    return numbers


def _number(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= MOST:
        return int(text)
    raise NvtxmoeError(f"damaged payload: {shown(text)} is no layer")
