"""How a capture will record each layer of a model, before a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from nvtxmoe.doctor import kernel_choice
from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import NOTE, OK, Finding
from nvtxmoe.doctor.examinations.gpu import device_names
from nvtxmoe.doctor.kernel_choice import RECOMPUTED, REFERENCES, SINK, Choice
from nvtxmoe.nsys_compatibility import version_numbers
from nvtxmoe.sizing.model_config import expert_blocks, known_config, model_shape, read_config

ORDER = 105
TOPIC = "recording of layers"
LOOK = "Run a few requests and look at `recording` in moe.meta"
MEANING = {
    REFERENCES: "the ids that the router gives, exact",
    SINK: "the ids that the kernel writes, exact; routing weights are unknown",
    RECOMPUTED: "top-k of the router's logits, exact except for ties",
}


def diagnose(context: Context) -> Iterator[Finding]:
    """One finding per range of layers, where a model is named."""
    if context.model is None or context.model_config is None:
        return
    config = read_config(context.model_config)
    gpu = context.gpu or next(iter(device_names()), None)
    if config is not None:
        yield from recording_ways(config, gpu, context.installed.versions.get("vllm"))


def recording_ways(config: Mapping[str, Any], gpu: str | None, vllm: str | None) -> Iterator[Finding]:
    """How each layer of a model will be recorded.

    Parameters:
        config: a parsed config.json.
        gpu: the name of the GPU that serves; None when it is not known.
        vllm: the version that serves; None when there is none.
    """
    known, blocks = known_config(config), expert_blocks(config)
    shape = model_shape(config)
    if known is None or blocks is None or shape is None:
        name = config.get("model_type")
        yield Finding(TOPIC, NOTE, f"not known: nothing is known here of model_type {name!r}", LOOK)
        return
    if gpu is None:
        yield Finding(TOPIC, NOTE, "not known: no GPU is seen here", "Name the GPU that will serve with --gpu")
        return
    generation = kernel_choice.generation(gpu)
    if generation is None:
        yield Finding(
            TOPIC, NOTE, f"not known on {gpu}: which kernels vLLM chooses was read for Hopper and Blackwell", LOOK
        )
        return
    yield from _version(vllm)
    name, part = known
    ways = {block: _way(config, part, name, generation, block) for block in blocks}
    dense = sorted(set(range(shape.blocks)) - set(blocks))
    if dense:
        yield Finding(TOPIC, OK, f"{ranges(dense)}: no experts, nothing to record", None, {"layers": dense})
    for (weights, choice), layers in _grouped(ways):
        yield _finding(layers, weights, choice, gpu, generation)
    drafts = part.get("num_nextn_predict_layers")
    if isinstance(drafts, int) and drafts > 0:
        last = shape.blocks + drafts - 1
        text = f"{ranges(range(shape.blocks, last + 1))}: a draft's (multi-token prediction), not of the model itself"
        yield Finding(TOPIC, NOTE, text, "With speculative decoding on, moe.meta tells how they are recorded")


def _version(vllm: str | None) -> Iterator[Finding]:
    source_version = ".".join(map(str, kernel_choice.READ_IN))
    if vllm is None:
        yield Finding(TOPIC, NOTE, f"no vLLM is installed here: what follows is true of vLLM {source_version}")
        return
    try:
        same = version_numbers(vllm)[:2] == kernel_choice.READ_IN
    except ValueError:
        same = False
    if not same:
        yield Finding(TOPIC, NOTE, f"what follows is true of vLLM {source_version}; for {vllm} it is not known", LOOK)


def _way(
    config: Mapping[str, Any], part: Mapping[str, Any], name: str, generation: str, block: int
) -> tuple[str | None, Choice | None]:
    """The format of a layer's experts and the kernel that runs them, each None when it is not known."""
    weights = kernel_choice.weights_format(config)
    if weights is not None and kernel_choice.left_out(config, block):
        weights = kernel_choice.BF16
    return weights, None if weights is None else kernel_choice.choose(generation, weights, name, part)


def _grouped(
    ways: Mapping[int, tuple[str | None, Choice | None]],
) -> Iterator[tuple[tuple[str | None, Choice | None], list[int]]]:
    """Ways, each with its layers in a row."""
    for way, layers in groupby(ways.items(), key=lambda item: item[1]):
        yield way, [layer for layer, _ in layers]


def _finding(layers: list[int], weights: str | None, choice: Choice | None, gpu: str, generation: str) -> Finding:
    where = f"on {gpu} ({generation})"
    details: dict[str, Any] = {"layers": layers, "weights": weights, "recording": choice.recording if choice else None}
    if weights is None:
        return Finding(
            TOPIC, NOTE, f"{ranges(layers)}: not known, the quantisation is not one known here", LOOK, details
        )
    if choice is None:
        return Finding(TOPIC, NOTE, f"{ranges(layers)}: not known for {weights} {where}", LOOK, details)
    text = f"{ranges(layers)}: {choice.recording} ({MEANING[choice.recording]}): {weights} {where} runs {choice.kernel}"
    if choice.otherwise:
        text += f"; {choice.otherwise}"
    return Finding(TOPIC, OK, text, None, details | {"kernel": choice.kernel, "otherwise": choice.otherwise})


def ranges(layers: Iterable[int]) -> str:
    """Numbers in ascending order as text: ``layers 0, 2-5``."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1][1:] = [layer]
        else:
            parts.append([layer])
    shown = ", ".join("-".join(map(str, part)) for part in parts)
    single = len(parts) == 1 and len(parts[0]) == 1
    return f"layer{'' if single else 's'} {shown}"
