"""Pinned memory of the host that a step's counts arrive in, with a flag per program of the kernel."""

from __future__ import annotations

import itertools
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nvtxmoe.capture.recording.launch import Launch
from nvtxmoe.capture.recording.logits_launch import LogitsLaunch
from nvtxmoe.capture.recording.routing_tensors import Cells

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

#: Counts of a launch, and its flags, begin at multiples of so many, 16 bytes: a kernel is compiled for how its memory
#: is aligned.
ALIGNED = 4
#: Seconds between two looks at flags that are waited for, and after so many the device is waited for.
LOOK_S, LOOKS_S = 0.0005, 1.0
#: Processors that read memory in the order of the program: the counts that are read after a flag are those before it.
IN_ORDER = ("x86_64", "AMD64")


def flags_are_ordered() -> bool:
    """Whether this processor may read counts because it has read their flags."""
    return platform.machine() in IN_ORDER


@dataclass(frozen=True)
class Slot:
    """Memory for one step's counts, and what says that they have arrived.

    Attributes:
        number: its own in the process.
        outs: int32, as many as a launch's shape has, each aligned to 16 bytes.
        cells: the same as arrays, of the launches that count ids.
        recomputed: the same of those that recompute: [layers, parts, experts + 1] each.
        flags: int32 per launch, one per program: the kernel sets it to 1 after its counts, the reader sets it back.
        events: CUDA events, one per device.
    """

    number: int
    outs: tuple[Any, ...]
    cells: tuple[Cells, ...]
    recomputed: tuple[tuple[LogitsLaunch, npt.NDArray[Any]], ...]
    flags: tuple[npt.NDArray[np.int32], ...]
    events: tuple[Any, ...]

    def flagged(self) -> bool:
        """Whether every program has said that its counts have arrived."""
        return all(flags.all() for flags in self.flags)

    def clear(self) -> None:
        """Set the flags back for the next step."""
        for flags in self.flags:
            flags.fill(0)

    def wait_for_flags(self, device: torch.device) -> None:
        """Return when all flags are set.

        Raises:
            RuntimeError: the device has done its work, or failed, and a flag is missing.
        """
        until = time.monotonic() + LOOKS_S
        while not self.flagged():
            if time.monotonic() >= until:
                import torch  # noqa: PLC0415

                torch.cuda.synchronize(device)
                if not self.flagged():
                    raise RuntimeError("the counts of a step have not arrived, though the GPU has done its work")
                return
            time.sleep(LOOK_S)


_numbers = itertools.count()


def new_slot(launches: Sequence[Launch | LogitsLaunch], devices: int) -> Slot:
    """Take memory for these launches: of each the counts, then the flags."""
    import torch  # noqa: PLC0415  only where there are tensors of a GPU

    counts_sizes = [math.prod(launch.shape) for launch in launches]
    sizes = [size for launch, counts in zip(launches, counts_sizes, strict=True) for size in (counts, launch.programs)]
    padded = [-(-size // ALIGNED) * ALIGNED for size in sizes]
    host = torch.empty(sum(padded), dtype=torch.int32, pin_memory=True)
    parts = [part[:size] for part, size in zip(host.split(padded), sizes, strict=True)]
    outs, flags = parts[::2], tuple(part.numpy() for part in parts[1::2])
    counts = [(launch, out.numpy().reshape(launch.shape)) for out, launch in zip(outs, launches, strict=True)]
    slot = Slot(
        number=next(_numbers),
        outs=tuple(outs),
        cells=tuple(
            Cells(launch.layers, launch.top_k, numbers, launch.physical)
            for launch, numbers in counts
            if isinstance(launch, Launch)
        ),
        recomputed=tuple((launch, numbers) for launch, numbers in counts if isinstance(launch, LogitsLaunch)),
        flags=flags,
        events=tuple(torch.cuda.Event() for _ in range(devices)),
    )
    slot.clear()
    return slot
