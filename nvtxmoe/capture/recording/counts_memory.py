"""Pinned memory of the host that a step's counts arrive in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nvtxmoe.capture.recording.launch import Launch
from nvtxmoe.capture.recording.logits_launch import LogitsLaunch
from nvtxmoe.capture.recording.routing_tensors import Cells

if TYPE_CHECKING:
    import numpy.typing as npt

#: Counts of a launch begin at multiples of so many, 16 bytes: a kernel is compiled for how its memory is aligned.
ALIGNED = 4


@dataclass(frozen=True)
class Slot:
    """Memory for one step's counts, and the events that they have arrived, one per device.

    Attributes:
        number: its own in the process.
        outs: int32, as many as a launch's shape has, each aligned to 16 bytes.
        cells: the same as arrays, of the launches that count ids.
        recomputed: the same of those that recompute: [layers, parts, experts + 1] each.
    """

    number: int
    outs: tuple[Any, ...]
    cells: tuple[Cells, ...]
    recomputed: tuple[tuple[LogitsLaunch, npt.NDArray[Any]], ...]
    events: tuple[Any, ...]


_numbers = itertools.count()


def new_slot(launches: Sequence[Launch | LogitsLaunch], devices: int) -> Slot:
    """Take memory for the counts of these launches."""
    import torch  # noqa: PLC0415  only where there are tensors of a GPU

    sizes = [math.prod(launch.shape) for launch in launches]
    padded = [-(-size // ALIGNED) * ALIGNED for size in sizes]
    host = torch.empty(sum(padded), dtype=torch.int32, pin_memory=True)
    outs = [part[:size] for part, size in zip(host.split(padded), sizes, strict=True)]
    counts = [(launch, out.numpy().reshape(launch.shape)) for out, launch in zip(outs, launches, strict=True)]
    return Slot(
        number=next(_numbers),
        outs=tuple(outs),
        cells=tuple(
            Cells(launch.layers, launch.top_k, numbers, launch.physical)
            for launch, numbers in counts
            if isinstance(launch, Launch)
        ),
        recomputed=tuple((launch, numbers) for launch, numbers in counts if isinstance(launch, LogitsLaunch)),
        events=tuple(torch.cuda.Event() for _ in range(devices)),
    )
