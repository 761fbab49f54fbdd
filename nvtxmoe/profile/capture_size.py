"""How large a capture will be: the estimate for the model, the load and the settings of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from nvtxmoe.capture.startup.settings import Settings
from nvtxmoe.profile.server import option
from nvtxmoe.sizing.estimate import estimate
from nvtxmoe.sizing.model_config import ModelShape, model_shape
from nvtxmoe.sizing.model_source import config_file
from nvtxmoe_analysis.core.text import number

#: Steps and tokens a step that are assumed where no load is known.
USUAL_STEPS, USUAL_TOKENS = 1000, 32
_PARALLEL = (("--tensor-parallel-size", "-tp"), ("--data-parallel-size", "-dp"))


@dataclass(frozen=True)
class LoadSize:
    """A load: requests, how many at a time, and the tokens of each."""

    num_requests: int
    concurrency: int
    prompt_tokens: int
    max_tokens: int

    @property
    def steps(self) -> int:
        """Scheduler steps that it takes, when the requests are batched as far as they may be."""
        batches = -(-self.num_requests // self.concurrency)
        return batches * self.max_tokens

    @property
    def tokens(self) -> int:
        """Tokens of the mean step, rounded up."""
        return -(-self.num_requests * (self.prompt_tokens + self.max_tokens) // self.steps)


@dataclass(frozen=True)
class Size:
    """An estimate.

    Attributes:
        total_bytes: of all files of the run, None where the number of steps is not known.
        line: all of it, for people.
    """

    total_bytes: int | None
    line: str


def capture_size(
    command: Sequence[str], settings: Settings, *, mode: str, payload: str | None, load: LoadSize | None
) -> Size | None:
    """Estimate a run's files; None where the model is not known.

    Parameters:
        command: vLLM's server; its model's config.json must be here, as a folder or in Hugging Face's cache.
        settings: of capture.
        mode: nsys, moe or both.
        payload: encoding of NVTX payloads.
        load: None where the user sends the requests.
    """
    shape = _shape(command)
    if shape is None:
        return None
    steps, tokens = (load.steps, load.tokens) if load else (USUAL_STEPS, USUAL_TOKENS)
    sizes = estimate(
        shape,
        tokens=tokens,
        steps=steps,
        ranks=_ranks(command),
        log_interval=settings.log_interval,
        layers=None if settings.layers is None else len(settings.layers),
        emit=settings.emit,
        eager="--enforce-eager" in command,
    )
    sinks = {"nsys": ("nsys",), "moe": ("moe",)}.get(mode, ("nsys", "moe"))
    total, at_least = sizes.disk(sinks, payload or "words")
    about = "at least" if at_least else "about"
    line = f"estimate: {about} {human(total / steps)} a step of {number(tokens, 'token')} "
    line += f"({number(shape.layers, 'MoE layer')}, {shape.experts} experts, top-{shape.top_k})"
    if load is None:
        return Size(None, line)
    return Size(
        total, f"{line}; {number(steps, 'step')} for {number(load.num_requests, 'request')}: {about} {human(total)}"
    )


def _shape(command: Sequence[str]) -> ModelShape | None:
    model = option(command, "--model")
    for word, after in pairwise(command):
        if word == "serve" and not after.startswith("-"):
            model = after
    file = None if model is None else config_file(Path(model), os.environ)
    return None if file is None else model_shape(file)


def _ranks(command: Sequence[str]) -> int:
    ranks = 1
    for names in _PARALLEL:
        values = [value for name in names if (value := option(command, name)) is not None and value.isdecimal()]
        ranks *= int(values[0]) if values else 1
    return max(1, ranks)


def human(size_bytes: float) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:,.1f} {unit}"
    return f"{size_bytes / 1e3:.1f} kB"
