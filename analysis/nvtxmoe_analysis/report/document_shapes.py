"""Check that a JSON document has the shape that the report reads. Otherwise it counts as damaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OTHER = "it has another shape: another program changed it, or another version of nvtxmoe wrote it"


def fits(name: str, document: Mapping[str, Any]) -> bool:
    """Return True if the report can read the document."""
    shapes = {
        "summary": _summary,
        "validation": _validation,
        "straggler_document": _straggler,
        "roofline_document": _roofline,
    }
    return shapes.get(name, _any)(document)


def _any(_: Mapping[str, Any]) -> bool:
    return True


def _summary(document: Mapping[str, Any]) -> bool:
    return all(_has(layer, "num_experts", "top_k") for layer in document.values())


def _validation(document: Mapping[str, Any]) -> bool:
    objects = all(isinstance(document.get(key) or {}, dict) for key in ("selection", "coverage", "clock", "options"))
    inputs, checks, reasons = (document.get(key, []) for key in ("inputs", "checks", "reasons"))
    if not (objects and isinstance(reasons, list) and _objects(checks) and _objects(inputs)):
        return False
    named = all({"name", "status", "message"} <= check.keys() for check in checks)
    return named and all(_objects(item.get("processes", [])) for item in inputs)


def _straggler(document: Mapping[str, Any]) -> bool:
    if not all(isinstance(document.get(key) or {}, dict) for key in ("straggler", "collectives", "clock")):
        return False
    straggler, collectives = document.get("straggler") or {}, document.get("collectives") or {}
    if straggler.get("cells"):
        layers = straggler.get("per_layer") or []
        if not _has(straggler.get("perfect_balance"), "saves_us") or not _objects(layers):
            return False
        if not all(_has(layer, "layer_idx", "excess_us") for layer in layers):
            return False
        if not _objects(straggler.get("slowest_rank") or []):
            return False
    return not collectives.get("split") or _has(collectives, "wait_us", "transfer_us", "kernels", "split")


def _roofline(document: Mapping[str, Any]) -> bool:
    return all(_objects(document.get(key) or []) for key in ("gpus", "unknown"))


def _objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _has(value: object, *keys: str) -> bool:
    """Return True for an object with a number at each of the keys."""
    return isinstance(value, dict) and all(isinstance(value.get(key), int | float) for key in keys)
