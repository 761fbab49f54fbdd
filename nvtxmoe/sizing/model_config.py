"""The shape of a mixture-of-experts model, from its Hugging Face config.json. What isn't known is not guessed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    config = source if isinstance(source, Mapping) else _read(source)
    for one in (config, None if config is None else config.get("text_config")):
        if isinstance(one, Mapping) and isinstance(name := one.get("model_type"), str) and name in _KNOWN:
            keys, moe_blocks = _KNOWN[name]
            blocks, experts, top_k = (_count(one.get(key)) for key in ("num_hidden_layers", *keys))
            if blocks is None or experts is None or top_k is None or top_k > experts:
                return None
            layers = moe_blocks(one, blocks)
            return ModelShape(name, blocks, layers, experts, top_k) if layers else None
    return None


def _read(path: Path) -> Mapping[str, Any] | None:
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _every(config: Mapping[str, Any], blocks: int) -> int | None:  # noqa: ARG001  as the others
    return blocks


def _qwen(config: Mapping[str, Any], blocks: int) -> int | None:
    """Every ``decoder_sparse_step``-th block, but those that ``mlp_only_layers`` names."""
    every = _count(config.get("decoder_sparse_step", 1))
    dense = config.get("mlp_only_layers") or []
    if every is None or not isinstance(dense, list):
        return None
    return sum((block + 1) % every == 0 and block not in dense for block in range(blocks))


def _deepseek(config: Mapping[str, Any], blocks: int) -> int | None:
    """Every ``moe_layer_freq``-th block from ``first_k_dense_replace`` on."""
    first, every = config.get("first_k_dense_replace"), _count(config.get("moe_layer_freq", 1))
    if every is None or not isinstance(first, int) or isinstance(first, bool):
        return None
    return sum(block >= first and block % every == 0 for block in range(blocks))


#: By model_type: the keys of the number of experts and of top-k, and which blocks have experts, as vLLM builds them.
_KNOWN: dict[str, tuple[tuple[str, str], Callable[[Mapping[str, Any], int], int | None]]] = {
    "qwen3_moe": (("num_experts", "num_experts_per_tok"), _qwen),
    "qwen3_vl_moe_text": (("num_experts", "num_experts_per_tok"), _qwen),
    "qwen2_moe": (("num_experts", "num_experts_per_tok"), _qwen),
    "mixtral": (("num_local_experts", "num_experts_per_tok"), _every),
    "olmoe": (("num_experts", "num_experts_per_tok"), _every),
    "deepseek_v2": (("n_routed_experts", "num_experts_per_tok"), _deepseek),
    "deepseek_v3": (("n_routed_experts", "num_experts_per_tok"), _deepseek),
    "gpt_oss": (("num_local_experts", "num_experts_per_tok"), _every),
}
