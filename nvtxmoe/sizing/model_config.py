"""The shape of a mixture-of-experts model, from its Hugging Face config.json. What isn't known is not guessed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvtxmoe.special_files import special_kind


@dataclass(frozen=True)
class ModelShape:
    """How many routers a model has, and over what.

    Attributes:
        blocks: decoder layers, dense ones included.
        layers: those with experts.
        experts: routed experts of such a layer.
        top_k: experts of a token.
    """

    model_type: str
    blocks: int
    layers: int
    experts: int
    top_k: int


def model_shape(source: Path | Mapping[str, Any]) -> ModelShape | None:
    """The shape that a config describes; None where it is not one of those known here, or a number is missing.

    Parameters:
        source: a parsed config.json, its path, or the path of the model's folder.
    """
    known = known_config(source)
    if known is None:
        return None
    name, config = known
    keys, moe_blocks = _KNOWN[name]
    blocks, experts, top_k = (_count(config.get(key)) for key in ("num_hidden_layers", *keys))
    if blocks is None or experts is None or top_k is None or top_k > experts:
        return None
    layers = moe_blocks(config, blocks)
    return ModelShape(name, blocks, len(layers), experts, top_k) if layers else None


def expert_blocks(source: Path | Mapping[str, Any]) -> tuple[int, ...] | None:
    """Numbers of the decoder layers with experts; None where ``model_shape`` is None."""
    known = known_config(source)
    if known is None or (shape := model_shape(source)) is None:
        return None
    name, config = known
    return _KNOWN[name][1](config, shape.blocks)


def known_config(source: Path | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The model_type that is known here and the part of the config that has it; None where there is none."""
    config = source if isinstance(source, Mapping) else read_config(source)
    for part in (config, None if config is None else config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(name := part.get("model_type"), str) and name in _KNOWN:
            return name, part
    return None


def read_config(path: Path) -> Mapping[str, Any] | None:
    """A parsed config.json, by its path or its folder's; None where there is none that can be read."""
    file = path / "config.json" if path.is_dir() else path
    try:
        if special_kind(file) is not None:
            return None
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _every(config: Mapping[str, Any], blocks: int) -> tuple[int, ...]:  # noqa: ARG001  as the others
    return tuple(range(blocks))


def _qwen(config: Mapping[str, Any], blocks: int) -> tuple[int, ...]:
    """Every ``decoder_sparse_step``-th block, but those that ``mlp_only_layers`` names."""
    every = _count(config.get("decoder_sparse_step", 1))
    dense = config.get("mlp_only_layers") or []
    if every is None or not isinstance(dense, list):
        return ()
    return tuple(block for block in range(blocks) if (block + 1) % every == 0 and block not in dense)


def _deepseek(config: Mapping[str, Any], blocks: int) -> tuple[int, ...]:
    """Every ``moe_layer_freq``-th block from ``first_k_dense_replace`` on."""
    first, every = config.get("first_k_dense_replace"), _count(config.get("moe_layer_freq", 1))
    if every is None or not isinstance(first, int) or isinstance(first, bool):
        return ()
    return tuple(block for block in range(blocks) if block >= first and block % every == 0)


#: By model_type: the keys of the number of experts and of top-k, and the blocks with experts, as vLLM builds them;
#: none where a number is missing.
_KNOWN: dict[str, tuple[tuple[str, str], Callable[[Mapping[str, Any], int], tuple[int, ...]]]] = {
    "qwen3_moe": (("num_experts", "num_experts_per_tok"), _qwen),
    "qwen3_vl_moe_text": (("num_experts", "num_experts_per_tok"), _qwen),
    "qwen2_moe": (("num_experts", "num_experts_per_tok"), _qwen),
    "mixtral": (("num_local_experts", "num_experts_per_tok"), _every),
    "olmoe": (("num_experts", "num_experts_per_tok"), _every),
    "deepseek_v2": (("n_routed_experts", "num_experts_per_tok"), _deepseek),
    "deepseek_v3": (("n_routed_experts", "num_experts_per_tok"), _deepseek),
    "gpt_oss": (("num_local_experts", "num_experts_per_tok"), _every),
}
