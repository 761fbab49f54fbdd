"""What capture knows of the process, the model and a step: plain values, and moe.meta made of them."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nvtxmoe._version import __version__
from nvtxmoe.formats import schema


@dataclass(frozen=True)
class ExpertShape:
    """Sizes and number types of a layer's experts on this rank; None where unknown.

    Attributes:
        hidden_size: columns of the experts' input and output.
        intermediate_size: columns between the two matrix products, of this rank's slice.
        gated: whether the first product gives a gate too, twice ``intermediate_size`` columns.
        activation_dtype: type of the layer's input and output, as torch names it.
        input_dtype: type in which the products take their input; another one where activations are quantised.
    """

    hidden_size: int | None = None
    intermediate_size: int | None = None
    gated: bool | None = None
    activation_dtype: str | None = None
    input_dtype: str | None = None


@dataclass(frozen=True)
class LayerInfo:
    """One MoE layer of this process.

    Attributes:
        layer: its number, unique in the process (see ``identity.numbering``).
        num_experts: logical experts.
        local_experts: experts that this rank holds (physical ones where EPLB is on); None when unknown.
        expert_bytes: bytes of the weights of one expert on this rank; None when unknown.
        recording: one of ``schema.RECORDINGS``.
        shape: sizes and number types of its experts.
    """

    layer: int
    name: str
    num_experts: int
    top_k: int
    local_experts: tuple[int, ...] | None = None
    expert_bytes: int | None = None
    num_physical: int | None = None
    recording: str = schema.REFERENCES
    shape: ExpertShape = field(default_factory=ExpertShape)

    def as_dict(self) -> dict[str, Any]:
        """As moe.meta has it; what is not known is absent."""
        fields = {
            "layer": self.layer,
            "name": self.name,
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "local_experts": None if self.local_experts is None else list(self.local_experts),
            "expert_bytes": self.expert_bytes,
            "num_physical_experts": None if self.num_physical == self.num_experts else self.num_physical,
            **asdict(self.shape),
        }
        return {key: value for key, value in fields.items() if value is not None}


@dataclass(frozen=True)
class Identity:
    """Who this process is in the run. ``extra`` holds optional keys of moe.meta."""

    rank: int = 0
    world_size: int = 1
    tp_rank: int = 0
    tp_size: int = 1
    ep_rank: int = 0
    ep_size: int = 1
    dp_rank: int | None = None
    dp_size: int | None = None
    layers: tuple[LayerInfo, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


#: As ``schema.STEP_DTYPE``: the fields of ``Step`` in their order, and ``reserved``.
_STEP = struct.Struct("<q6i")


class Step(NamedTuple):
    """One scheduled step. Padding is not in ``num_tokens``."""

    number: int
    rank: int
    num_tokens: int
    num_reqs: int
    prefill_tokens: int
    decode_tokens: int

    def packed(self) -> bytes:
        """Payload of ``moe.step`` as bytes."""
        return _STEP.pack(*self, 0)

    def pack_into(self, buffer: bytearray) -> None:
        """Write the payload of ``moe.step`` to the beginning of a buffer of at least 32 bytes."""
        _STEP.pack_into(buffer, 0, *self, 0)

    def payload(self) -> Any:
        """Payload of ``moe.step``: a 0-d array."""
        return np.frombuffer(self.packed(), schema.STEP_DTYPE).reshape(())


def meta_text(
    identity: Identity,
    *,
    sample_every: int,
    emit: frozenset[str],
    encoding: str,
    held_bytes: int,
    capture: Mapping[str, Any] | None,
    hidden: Container[int] = (),
    recomputed: Mapping[str, Any] | None = None,
    windows: Sequence[Sequence[int | None]] | None = None,
) -> bytes:
    """The JSON of moe.meta.

    Parameters:
        held_bytes: memory that CUDA graphs keep for it.
        capture: failures, losses and hidden layers so far; left out while there are none.
        hidden: layers without counts.
        recomputed: keys on tokens of recomputed layers.
        windows: first and last step (None: still open) of each window so far; None where everything is recorded.
    """
    fields: dict[str, Any] = {
        "schema": schema.SCHEMA,
        "nvtxmoe": __version__,
        **dict(identity.extra),
        "rank": identity.rank,
        "world_size": identity.world_size,
        "tp_rank": identity.tp_rank,
        "tp_size": identity.tp_size,
        "ep_rank": identity.ep_rank,
        "ep_size": identity.ep_size,
        "dp_rank": identity.dp_rank,
        "dp_size": identity.dp_size,
        "sample_every": sample_every,
        "emit": sorted(emit),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "clock": {"unix_ns": time.time_ns(), "monotonic_ns": time.monotonic_ns()},
        "payload_encoding": encoding,
        "recording": recording_text([layer for layer in identity.layers if layer.layer not in hidden]),
        **(recomputed or {}),
        "held_bytes": held_bytes or None,
        "windows": windows,
        "num_layers": len(identity.layers),
        "layers": [layer.as_dict() for layer in identity.layers],
        "capture": dict(capture) if capture else None,
    }
    return json.dumps({key: value for key, value in fields.items() if value is not None}).encode()


def recording_text(layers: Sequence[LayerInfo]) -> str | dict[str, str]:
    """How ids are taken: one of ``schema.RECORDINGS`` where all layers are alike, else layers by it (``0-3,5``)."""
    by_way: dict[str, list[int]] = {}
    for layer in layers:
        by_way.setdefault(layer.recording, []).append(layer.layer)
    if len(by_way) < 2:
        return next(iter(by_way), schema.REFERENCES)
    return {way: _ranges(sorted(numbers)) for way, numbers in sorted(by_way.items())}


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
