"""What a process's capture said of itself: hooks that are off, events that were lost, layers that can't be seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema


@dataclass(frozen=True)
class CaptureState:
    """The key ``capture`` of moe.meta, or what the end of a journal says.

    Attributes:
        failures: the reason by hook that is off.
        lost: how often, by what was lost.
        hidden: the reason by layer whose routing can't be seen: it has no counts.
        ended: False if the process left a journal without an end record: it may have lost more.
    """

    failures: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    hidden: Mapping[int, str] = field(default_factory=dict)
    ended: bool = True

    @property
    def ranks_changed(self) -> list[str]:
        """Return each change of ranks or experts after which nothing is recorded: ``data_parallel_size 2 -> 3``."""
        name = schema.RANKS_CHANGED
        return [what[len(name) :].strip(" ()") for what in self.lost if what.startswith(name)]

    @property
    def healthy(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.failures or self.lost or self.hidden)

    def then(self, later: CaptureState) -> CaptureState:
        """Both together; numbers are running totals, so the later one's count."""
        return CaptureState(
            {**self.failures, **later.failures}, {**self.lost, **later.lost}, {**self.hidden, **later.hidden}
        )


def capture_state(raw: Mapping[str, Any]) -> CaptureState:
    """Read the keys ``failures``, ``lost`` and ``hidden_layers``; each may be absent.

    Raises:
        NvtxmoeError: one of them is not what it must be.
    """
    lost = _mapping(raw, "lost")
    hidden = _mapping(raw, "hidden_layers")
    if not all(type(n) is int and n >= 0 for n in lost.values()):
        raise NvtxmoeError(f"damaged payload: lost is {shown(lost)}, not numbers by name")
    if not all(layer.isascii() and layer.isdigit() and len(layer) < 10 for layer in hidden):
        raise NvtxmoeError(f"damaged payload: hidden_layers is {shown(hidden)}, not reasons by layer")
    return CaptureState(
        failures={name: str(reason) for name, reason in _mapping(raw, "failures").items()},
        lost={name: number for name, number in lost.items() if number},
        hidden={int(layer): str(reason) for layer, reason in hidden.items()},
    )


def _mapping(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise NvtxmoeError(f"damaged payload: {key} is {shown(value)}, not an object")
    return value


def shown(value: object) -> str:
    """A JSON value, short enough for an error."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
