"""Stand-ins of vLLM 0.33's shape for the hooks' tests, and a recorder that keeps what it is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.router_logits import Routed
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors


class Module:
    """As torch.nn.Module: named children."""

    def __init__(self, **children: Any) -> None:
        self.children = children

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        yield prefix, self
        for name, child in self.children.items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Any]:
        yield from (module for _, module in self.named_modules())

    def named_parameters(self, recurse: bool = True) -> list[tuple[str, Any]]:
        return []


class MoERunner(Module):
    """vLLM's own."""

    moe_config: Any = None


class DeepGemmMegaMoEExperts(Module):
    """As vLLM 0.33's: the model routes, the experts hand the ids to ``capture_fn``."""

    def __init__(self, layer_id: int = 3, first: int = 4) -> None:
        super().__init__()
        self.capture_fn: Callable[[Any], None] | None = None
        self.layer_id, self.top_k = layer_id, 2
        self.num_experts, self.num_logical_experts = 8, 6
        self.num_local_experts, self.experts_start_idx = 4, first
        self.ran = 0

    def forward(self, topk_ids: Any) -> Any:
        if self.capture_fn is not None:
            self.capture_fn(topk_ids)
        self.ran += 1
        return topk_ids


class MuseSparkMegaMoEExperts(Module):
    """As vLLM 0.33's: no ``capture_fn``."""

    num_experts, top_k = 8, 2


class Ranges:
    """An emitter that keeps what was opened."""

    encoding = "kept"

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.deep = 0

    def push(self, name: str, layer: int, category: str) -> None:
        self.seen.append(name)
        self.deep += 1

    def push_step(self, payload: Any) -> None:
        raise AssertionError

    def pop(self) -> None:
        self.deep -= 1

    def mark(self, event: str, payload: Any) -> None:
        raise AssertionError

    def mark_rows(self, event: str, rows: Any) -> None:
        raise AssertionError

    def depth(self) -> int:
        return self.deep


class Sink:
    """Keeps moe.meta and the steps."""

    encoding, steps_a_send = "kept", 1

    def __init__(self) -> None:
        self.metas: list[dict[str, Any]] = []
        self.steps: list[int] = []

    def meta(self, text: bytes) -> None:
        self.metas.append(json.loads(text))

    def step_begins(self, step: Any) -> None:
        self.steps.append(step.number)

    def step_ends(self) -> None: ...

    def payload(self, event: str, payload: Any) -> None: ...

    def payloads(self, event: str, rows: Any) -> None: ...

    def pause(self) -> None: ...

    def conclude(self, summary: Mapping[str, Any]) -> None: ...

    def close(self, summary: Mapping[str, Any]) -> None: ...


class Hearing(Recorder):
    """A recorder that listens always and keeps the tensors."""

    def __init__(self) -> None:
        self.sink = Sink()
        super().__init__(lambda _: [self.sink])
        self.got: list[RoutingTensors] = []

    def listens(self, layer: int) -> bool:
        return self.records(layer)

    def routed(self, one: Routed) -> None:
        assert isinstance(one, RoutingTensors)
        self.got.append(one)
