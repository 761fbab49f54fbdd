"""Renumber the experts of a checkpoint, so that vLLM's contiguous blocks of experts become a placement.

python examples/renumber_experts.py placements/moe_placement/fewest_active.vllm.json MODEL_FOLDER NEW_FOLDER

For checkpoints whose tensors are named ``...layers.L...experts.E...`` and ``...layers.L...gate...`` (Qwen3-MoE,
Mixtral, DeepSeek). Run it with a Python that has safetensors and torch, such as vLLM's. The model computes the same.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

LAYER, EXPERT = re.compile(r"\.layers\.(\d+)\."), re.compile(r"(?<=\.experts\.)\d+(?=\.)")
#: Tensors with a row per expert: the router's weights, and its bias for choosing experts.
ROUTER = re.compile(r"\.gate\.(weight|bias|e_score_correction_bias)$")
INDEX = "model.safetensors.index.json"

Orders = Mapping[int, Sequence[int]]


def renumbered(name: str, tensor: Any, orders: Orders) -> tuple[str, Any]:
    """Return a tensor under its new name, or with its rows in the new order; others as they are."""
    layer = LAYER.search(name)
    order = orders.get(int(layer[1])) if layer else None
    if order is None:
        return name, tensor
    if expert := EXPERT.search(name):
        new = order.index(int(expert[0]))
        return f"{name[: expert.start()]}{new}{name[expert.end() :]}", tensor
    return name, tensor[list(order)] if ROUTER.search(name) else tensor


def check(names: Sequence[str], orders: Orders) -> None:
    """Refuse a checkpoint whose routers would be renumbered without their experts, such as one with fused experts."""
    experts = {int(layer[1]) for name in names if EXPERT.search(name) and (layer := LAYER.search(name))}
    if layers := sorted(orders.keys() - experts):
        raise SystemExit(
            f"no tensor ...layers.{layers[0]}...experts.E... in the checkpoint: a tensor per expert is needed. "
            "Nothing was written."
        )


def main(placement: Path, source: Path, target: Path) -> None:
    """Write the renumbered checkpoint into a new folder, with the other files of the old one."""
    library, reader = import_module("safetensors.torch"), import_module("safetensors")  # of vLLM's environment

    document = json.loads(placement.read_text())
    orders = {int(layer): order for layer, order in document["checkpoint_order"].items()}
    names: list[str] = []
    for file in source.glob("*.safetensors"):
        with reader.safe_open(file, framework="pt") as opened:
            names += opened.keys()
    check(names, orders)
    target.mkdir(parents=True)
    for file in sorted(path for path in source.iterdir() if path.is_file() and path.suffix != ".safetensors"):
        shutil.copy(file, target)
    files: dict[str, str] = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors = dict(renumbered(name, tensor, orders) for name, tensor in library.load_file(file).items())
        library.save_file(tensors, target / file.name, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, file.name)
    if (target / INDEX).is_file():
        index = json.loads((target / INDEX).read_text())
        (target / INDEX).write_text(json.dumps({**index, "weight_map": files}, indent=2))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(f"usage: {sys.argv[0]} PLACEMENT.vllm.json MODEL_FOLDER NEW_FOLDER")
    main(*map(Path, sys.argv[1:]))
