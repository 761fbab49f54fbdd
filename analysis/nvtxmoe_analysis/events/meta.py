"""What ``moe.meta`` holds: the process, its ranks, its layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvtxmoe.errors import NvtxmoeError, located
from nvtxmoe.formats import schema
from nvtxmoe_analysis.events.capture_state import CaptureState, capture_state, shown
from nvtxmoe_analysis.events.json_text import read_json
from nvtxmoe_analysis.readers import nsys_tables

RECAPTURE = "Capture again, or export the report again with --include-blobs=true"


#: Numbers of ranks, experts and layers in moe.meta are smaller: moe.topk has 16 bits for an expert.
MOST = 1 << 16
#: Numbers of the process in its groups and their sizes, which any reader may count with.
PARALLEL = ("ep_rank", "ep_size", "dp_rank", "dp_size", "pp_rank", "pp_size")


@dataclass(frozen=True)
class Layer:
    """What ``moe.meta`` says of one MoE layer."""

    layer: int
    name: str | None
    num_experts: int
    top_k: int
    local_experts: tuple[int, ...] | None
    block_m: int | None = None
    expert_bytes: int | None = None
    num_physical: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    gated: bool | None = None
    activation_dtype: str | None = None
    input_dtype: str | None = None


@dataclass(frozen=True)
class Meta:
    """``moe.meta`` of one process. ``raw`` has every key, also those this version does not use; ``marked_ns`` is when
    the mark was set, in the report's own time. ``windows`` are the first and last step, both inclusive, of each window
    that was recorded, in order; the last step of a window that was still open is null. Empty: all steps were recorded.
    """

    pid: int
    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    layers: dict[int, Layer]
    raw: dict[str, Any] = field(repr=False)
    capture: CaptureState = field(default_factory=CaptureState)
    marked_ns: int | None = None
    windows: tuple[tuple[int, int | None], ...] = ()

    @property
    def epoch_ns(self) -> int | None:
        """Unix time of the report's time 0, as far as ``clock`` tells: it was read a little before the mark was set."""
        clock = self.raw.get("clock")
        unix = clock.get("unix_ns") if isinstance(clock, dict) else None
        return unix - self.marked_ns if type(unix) is int and self.marked_ns is not None else None

    def emits(self, event: str) -> bool:
        """Whether the process was asked to send an event; one that does not say sends all."""
        emitted = self.raw.get("emit")
        return not isinstance(emitted, list) or event in emitted

    @property
    def tp_group(self) -> int:
        """Number of the tensor-parallel group: its ranks are consecutive and see the same tokens."""
        return self.rank // self.tp_size


def _meta(source: Path, pid: int, text: bytes) -> Meta:
    with located(f"{source}, moe.meta of process {pid & nsys_tables.PID_MASK}", RECAPTURE):
        try:
            raw = read_json(text, parse_constant=lambda _: None, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise NvtxmoeError(f"damaged payload: not JSON ({error})") from error
        if not isinstance(raw, dict):
            raise NvtxmoeError(f"damaged payload: a JSON object is wanted, found {type(raw).__name__}")
        number = raw.get("schema")
        if type(number) is not int or number not in schema.KNOWN_SCHEMAS:
            known = ", ".join(map(str, sorted(schema.KNOWN_SCHEMAS)))
            raise NvtxmoeError(
                f"payload schema {number!r}, and this nvtxmoe reads {known}",
                remedy="Analyse it with the version of nvtxmoe that captured it, or a newer one",
            )
        for key in PARALLEL:
            _number(raw, key, 0)
        layers = raw.get("layers")
        if not isinstance(layers, list) or not all(isinstance(entry, dict) for entry in layers):
            raise NvtxmoeError(f"damaged payload: layers is no list of objects, but {shown(layers)}")
        return Meta(
            pid=pid,
            rank=_number(raw, "rank"),
            world_size=_number(raw, "world_size", least=1),
            tp_rank=_number(raw, "tp_rank", 0),
            tp_size=max(1, _number(raw, "tp_size", 1)),
            layers={_number(entry, "layer"): _layer(entry) for entry in layers},
            raw=raw,
            capture=capture_state(_object(raw, "capture")),
            windows=_windows(raw.get("windows")),
        )


def _windows(value: object) -> tuple[tuple[int, int | None], ...]:
    windows = []
    for bounds in value if isinstance(value, list) else [] if value is None else [value]:
        first, last = bounds if isinstance(bounds, list) and len(bounds) == 2 else (None, None)
        if type(first) is not int or not (last is None or type(last) is int) or not 0 <= first < 1 << 62:
            raise NvtxmoeError(f"damaged payload: windows is {shown(value)}, not pairs of a first and a last step")
        windows.append((first, last))
    return tuple(windows)


def _object(raw: dict[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise NvtxmoeError(f"damaged payload: {key} is {shown(value)}, not an object")
    return value


def _finite(text: str) -> float | None:
    # Documents of ours must not hold what JSON has no word for.
    value = float(text)
    return value if math.isfinite(value) else None


def _number(entry: dict[str, Any], key: str, absent: int | None = None, *, least: int = 0, largest: int = MOST) -> int:
    value = absent if entry.get(key) is None else entry[key]
    if type(value) is not int or not least <= value <= largest:
        value_text = shown(value) if key in entry else "absent"
        raise NvtxmoeError(f"damaged payload: {key} is {value_text}, not a number from {least} to {largest}")
    return value


def _layer(entry: dict[str, Any]) -> Layer:
    local = entry.get("local_experts")
    if local is not None and not (isinstance(local, list) and all(type(e) is int for e in local)):
        raise NvtxmoeError(f"damaged payload: local_experts is {shown(local)}, not a list of numbers")
    name = entry.get("name")
    return Layer(
        layer=_number(entry, "layer"),
        name=None if name is None else str(name),
        num_experts=_number(entry, "num_experts", least=1),
        top_k=_number(entry, "top_k", least=1),
        local_experts=None if local is None else tuple(local),
        block_m=_known(entry, "block_m"),
        expert_bytes=_known(entry, "expert_bytes"),
        num_physical=_known(entry, "num_physical_experts"),
        hidden_size=_known(entry, "hidden_size"),
        intermediate_size=_known(entry, "intermediate_size"),
        gated=_truth(entry, "gated"),
        activation_dtype=_text(entry, "activation_dtype"),
        input_dtype=_text(entry, "input_dtype"),
    )


def _known(entry: dict[str, Any], key: str) -> int | None:
    return None if entry.get(key) is None else _number(entry, key, largest=1 << 62)


def _truth(entry: dict[str, Any], key: str) -> bool | None:
    value = entry.get(key)
    return value if isinstance(value, bool) else None


def _text(entry: dict[str, Any], key: str) -> str | None:
    value = entry.get(key)
    return value if isinstance(value, str) else None
