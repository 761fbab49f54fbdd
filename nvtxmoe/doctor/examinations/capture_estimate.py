"""The bytes that a capture of a model would take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nvtxmoe.doctor.bytes_text import human
from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import NOTE, OK, Finding
from nvtxmoe.sizing.estimate import Estimate
from nvtxmoe_analysis.core.text import number

ORDER = 110


def diagnose(context: Context) -> Iterator[Finding]:
    """The estimate, where a model is named."""
    if context.model is None:
        return
    if context.model_config is None:
        yield Finding(
            "estimate",
            NOTE,
            f"{context.model}: neither a folder or config.json here nor a model in the local Hugging Face cache",
            "Give the folder of a local model, or its name on the hub once it is downloaded",
        )
    elif context.estimate is None:
        yield Finding(
            "estimate",
            NOTE,
            f"{context.model}: no config.json of a mixture of experts that is known here",
            "Give the folder of a local model",
        )
    else:
        yield size(context.estimate, context.encoding, context.model)


def size(estimated: Estimate, encoding: str, model: Path) -> Finding:
    """The estimate in words."""
    shape = estimated.shape
    nsys_bytes, at_least = estimated.disk(("nsys",), encoding)
    direct_bytes, _ = estimated.disk(("moe",), encoding)
    steps = estimated.steps
    floor = "at least " if at_least else ""
    what = (
        f"{model.name or model}: {number(shape.layers, 'MoE layer')}, {shape.experts} experts, top-{shape.top_k}. "
        f"{number(steps, 'eager step')} of {number(estimated.tokens, 'token')} a rank: "
        f"{floor}{human(nsys_bytes)} under nsys "
        f"({human(nsys_bytes / steps)} a step), {human(direct_bytes)} directly ({human(direct_bytes / steps)} a step)"
    )
    return Finding("estimate", OK, what, None, estimated.as_dict())
